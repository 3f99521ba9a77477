"""Checks of what callers pass in: one error that names the argument, what came, what was wanted."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpmc.modes import is_transformed, refuse_tracing, refuse_transforms

__all__ = [
    "as_answer",
    "as_device",
    "as_fraction",
    "as_generator",
    "as_images",
    "as_noise_level",
    "as_noise_levels",
    "as_not_negative",
    "as_positive",
    "as_shape",
    "as_whole_number",
    "kind",
]

EXTREME = 1e100
"""Larger values, and noise levels below its inverse, overflow when they are squared."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def kind(value: Any) -> str:
    """What an error calls the value: a tensor's dtype, or the name of another type."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def as_noise_level(sigma: Any, name: str = "sigma") -> float:
    """Return σ as a float.

    Args:
        sigma: One number between 1e-100 and 1e100; a tensor or array with one element will do.
        name: What the error calls it.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it holds more than one number, or one outside the range, or is a tensor that
            requires gradients.
    """
    if isinstance(sigma, Tensor | np.ndarray):
        if math.prod(sigma.shape) != 1:
            raise ValueError(
                f"{name}: got shape {tuple(sigma.shape)}, wanted one noise level per call"
            )
        _refuse_gradients(sigma, name)
        refuse_transforms(sigma, name)
        sigma = sigma.item()
    if isinstance(sigma, bool) or not isinstance(sigma, Real):
        raise TypeError(f"{name}: got {type(sigma).__name__}, wanted a positive number")
    try:
        number = float(sigma)
    except OverflowError:
        number = math.inf
    if not 1 / EXTREME <= number <= EXTREME:
        raise ValueError(f"{name}: got {sigma}, wanted a positive number, 1e-100 to 1e100")
    return number


def as_noise_levels(sigma: Any, b: int, name: str = "sigma") -> list[float]:
    """Return b noise levels, one for each image.

    Args:
        sigma: One number, as :func:`as_noise_level` takes it, for all images; or a tensor or array
            of them, with shape (b,) or (b, 1, 1, 1).
        b: Number of images.
        name: What an error calls it.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If they are not as many as the images, or as :func:`as_noise_level` does.
    """
    if not isinstance(sigma, Tensor | np.ndarray) or math.prod(sigma.shape) == 1:
        return [as_noise_level(sigma, name)] * b
    if tuple(sigma.shape) not in ((b,), (b, 1, 1, 1)):
        raise ValueError(
            f"{name}: got shape {tuple(sigma.shape)}, wanted one noise level, or one for each of "
            f"{b} images: ({b},) or ({b}, 1, 1, 1)"
        )
    refuse_transforms(sigma, name)
    _refuse_gradients(sigma, name)
    values = sigma.reshape(-1).tolist()
    levels = {value: as_noise_level(value, name) for value in dict.fromkeys(values)}
    return [levels[value] for value in values]


def _refuse_gradients(sigma: Any, name: str) -> None:
    if isinstance(sigma, Tensor) and sigma.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: got a tensor that requires gradients, wanted a number: nothing is "
            "differentiated with respect to it"
        )


def as_whole_number(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Return a whole number between ``least`` and ``most``, both included.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If it lies outside the range.
    """
    wanted = f"at least {least}" if most is None else f"between {least} and {most}"
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_whole = isinstance(value, int) or (
        is_number and math.isfinite(value) and value == int(value)
    )
    if not is_number or not is_whole:
        raise TypeError(f"{name}: got {value!r}, wanted a whole number {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")
    return int(value)


def as_positive(value: Any, name: str, *, finite: bool = True) -> float:
    """Return a number above 0 as a float.

    Args:
        value: The number.
        name: What the error calls it.
        finite: Whether infinity is refused.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it is not above 0, NaN, or infinite where that is refused.
    """
    return _as_number(value, name, value_range="above 0", lowest=math.ulp(0.0), finite=finite)


def as_not_negative(value: Any, name: str, *, finite: bool = True) -> float:
    """Return a number from 0 as a float; arguments and errors as of :func:`as_positive`."""
    return _as_number(value, name, value_range="from 0", lowest=0.0, finite=finite)


def _as_number(value: Any, name: str, *, value_range: str, lowest: float, finite: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a number {value_range}")
    if not value >= lowest or (finite and math.isinf(value)):
        raise ValueError(f"{name}: got {value}, wanted a {'finite ' * finite}number {value_range}")
    return float(value)


def as_shape(shape: Any, name: str) -> tuple[int, int, int]:
    """Return the (c, h, w) of images, or of features that lie as they do.

    Raises:
        TypeError: If a side is no whole number.
        ValueError: If there are not three of them, or one is below 1.
    """
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 3:
        raise ValueError(f"{name}: got {shape!r}, wanted (c, h, w)")
    c, h, w = (as_whole_number(side, name, 1) for side in shape)
    return c, h, w


def as_fraction(value: Any, name: str, *, zero: bool = True) -> float:
    """Return a number between 0 and 1 as a float.

    Args:
        value: The number; 1 is allowed.
        name: What the error calls it.
        zero: Whether 0 is allowed.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it lies outside the range.
    """
    wanted = f"a number {'from' if zero else 'above'} 0 {'to' if zero else 'and up to'} 1"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted {wanted}")
    if not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")
    return float(value)


def as_images(
    images: Any, name: str, shape: tuple[int, ...] | None = None, *, empty: bool = False
) -> Tensor:
    """Return a batch of finite floating-point images.

    Inside a transform of ``torch.func``, where values cannot be read, they are not looked at.

    Args:
        images: Floating-point tensor with shape (b, c, h, w).
        name: What the error calls it.
        shape: The (c, h, w) that is wanted, if it matters.
        empty: Whether b may be 0.

    Raises:
        TypeError: If it is not a dense floating-point tensor.
        ValueError: If its shape is another or has a 0 in it, or it holds NaN, infinities or
            values beyond 1e100.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: got {type(images).__name__}, wanted a torch tensor")
    if images.dtype not in FLOATS or images.layout != torch.strided or images.is_nested:
        layout = "nested" if images.is_nested else images.layout
        raise TypeError(
            f"{name}: got {images.dtype}, {layout}, wanted a dense floating-point tensor"
        )
    wanted = "(b, c, h, w)" if shape is None else f"(b, {', '.join(map(str, shape))})"
    wrong = images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != tuple(shape))
    if wrong or 0 in images.shape[empty:]:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, wanted {wanted}")
    if len(images) == 0 or is_transformed(images):
        return images
    refuse_tracing(images, name)
    low, high = (value.item() for value in images.detach().aminmax())
    if not (low >= -EXTREME and high <= EXTREME):
        raise ValueError(f"{name}: got NaN or infinite values, wanted finite ones")
    return images


def as_answer(x_hat: Any, z: Tensor, name: str) -> Tensor:
    """Return a denoiser's answer to z.

    Args:
        x_hat: The answer.
        z: Noisy images, shape (b, c, h, w).
        name: What the error calls the denoiser.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it has another shape than z.
    """
    if not isinstance(x_hat, Tensor):
        raise TypeError(f"{name}: gave {type(x_hat).__name__}, wanted a torch tensor")
    if x_hat.shape != z.shape:
        raise ValueError(f"{name}: gave shape {tuple(x_hat.shape)}, for {tuple(z.shape)}")
    return x_hat


def as_device(device: str | torch.device, name: str = "device") -> torch.device:
    """Return a device that there is, and that computes.

    Raises:
        ValueError: If PyTorch knows none of that name, this machine or build has none, or it is
            the one whose tensors hold no values.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # as PyTorch's builds differ
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: got {device!r}, which cannot be used ({reason})") from error
    if found.type == "meta":
        raise ValueError(f"{name}: got {device!r}, whose tensors hold no values")
    return found


def as_generator(
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
    otherwise: int | None = None,
) -> torch.Generator:
    """Return a generator: the one given, or a new one on the CPU with the seed that is given.

    Args:
        seed: A seed, or a generator.
        generator: A generator, in its place.
        otherwise: The seed if neither is given; None if one must be.

    Raises:
        TypeError: If the seed is neither a generator nor a whole number, or the generator none.
        ValueError: If the seed is negative or 2⁶³ or more, or both or neither are given.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {kind(generator)}, wanted a torch.Generator")
    if seed is not None and generator is not None:
        raise ValueError("seed: got a generator, too, wanted one of the two")
    if seed is None and generator is None:
        if otherwise is None:
            raise ValueError("seed: got none and no generator, wanted one of the two")
        seed = otherwise
    found = seed if generator is None else generator
    if isinstance(found, torch.Generator):
        return found
    return torch.Generator().manual_seed(as_whole_number(found, "seed", 0, 2**63 - 1))
