"""Checks of what callers pass in: one error that names the argument, what came, what was wanted."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_generator", "as_images", "as_noise_level", "as_whole_number"]


def as_noise_level(sigma: Any, name: str = "sigma") -> float:
    """Return σ as a float.

    Args:
        sigma: One positive finite number; a tensor or array with a single element will do.
        name: What the error calls it.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it holds more than one number, or one that is not positive and finite.
    """
    if isinstance(sigma, Tensor | np.ndarray):
        if math.prod(sigma.shape) != 1:
            raise ValueError(
                f"{name}: got shape {tuple(sigma.shape)}, wanted one noise level per call"
            )
        sigma = sigma.item()
    if isinstance(sigma, bool) or not isinstance(sigma, Real):
        raise TypeError(f"{name}: got {type(sigma).__name__}, wanted a positive number")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"{name}: got {sigma}, wanted a positive finite number")
    return float(sigma)


def as_whole_number(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Return a whole number between ``least`` and ``most``, both included.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If it lies outside the range.
    """
    wanted = f"at least {least}" if most is None else f"between {least} and {most}"
    if isinstance(value, bool) or not isinstance(value, Real) or value != int(value):
        raise TypeError(f"{name}: got {value!r}, wanted a whole number {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")
    return int(value)


def as_images(
    images: Any, name: str, shape: tuple[int, ...] | None = None, *, empty: bool = False
) -> Tensor:
    """Return a batch of finite floating-point images.

    Args:
        images: Floating-point tensor with shape (b, c, h, w).
        name: What the error calls it.
        shape: The (c, h, w) that is wanted, if it matters.
        empty: Whether b may be 0.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is another, or it holds NaN or infinities.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: got {type(images).__name__}, wanted a torch tensor")
    if not images.is_floating_point():
        raise TypeError(f"{name}: got {images.dtype}, wanted a floating-point tensor")
    wanted = "(b, c, h, w)" if shape is None else f"(b, {', '.join(map(str, shape))})"
    wrong = images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != tuple(shape))
    if wrong or (0 in images.shape[1:]) or (len(images) == 0 and not empty):
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, wanted {wanted}")
    if not images.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinite values, wanted finite ones")
    return images


def as_generator(seed: int | torch.Generator) -> torch.Generator:
    """Return a generator: the one given, or a new one on the CPU with this seed.

    Raises:
        TypeError: If it is neither a generator nor a whole number.
        ValueError: If the seed is negative.
    """
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(as_whole_number(seed, "seed", 0))
