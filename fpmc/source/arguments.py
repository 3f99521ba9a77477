"""What a source is given beside its images: weights, labels, parents, and positions."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fpmc.checks import kind

__all__ = ["as_dataset", "as_labels", "as_log_weights", "as_parents", "as_positions"]


def as_dataset(name: Any) -> str | None:
    """Return a dataset's name, or None.

    Raises:
        TypeError: If it is neither.
    """
    if name is None or isinstance(name, str):
        return name
    raise TypeError(f"dataset: got {type(name).__name__}, wanted a dataset's name")


def as_labels(labels: Any, n: int) -> Int64[Tensor, " n"]:
    """Return each image's class, on the CPU.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If there is not one for each of n images.
    """
    return _whole_numbers(labels, n, "labels", "each image's class")


def as_parents(parents: Any, n: int) -> Int64[Tensor, " n"]:
    """Return the position of the image that each is a copy of, −1 for originals, on the CPU.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If there is not one for each of n images, or one is out of range or a copy
            itself.
    """
    parents = _whole_numbers(parents, n, "parents", "the position of the image each is a copy of")
    least, most = (value.item() for value in parents.aminmax())
    if least < -1 or most >= n:
        raise ValueError(f"parents: got {least} to {most}, wanted positions up to {n - 1}, or -1")
    if (parents[parents[parents >= 0]] >= 0).any():
        raise ValueError("parents: got positions of copies, wanted those of originals")
    return parents


def as_positions(index: Any, n: int) -> Int[Tensor, " m"]:
    """Return positions of images as a flat tensor on the CPU.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If one is not from 0 to n − 1.
    """
    try:
        index = torch.as_tensor(index).flatten().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"index: got {kind(index)}, wanted positions of images") from None
    if index.numel() == 0:
        return index.long()
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"index: got {index.dtype}, wanted positions of images")
    index = index.long()  # of bytes, PyTorch would make a mask
    first, last = (value.item() for value in index.aminmax())
    if first < 0 or last >= n:
        raise ValueError(f"index: got positions {first} to {last}, wanted 0 to {n - 1}")
    return index


def as_log_weights(weights: Any, n: int) -> Float[Tensor, " n"]:
    """Return logarithms of weights, scaled to sum to 1.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If there are not n, or one is not positive and finite.
    """
    try:
        if not isinstance(weights, Tensor) or weights.is_complex():
            weights = np.asarray(weights, np.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64)
    except (TypeError, ValueError):
        weights = None
    if weights is None:
        raise TypeError("weights: got something else than real numbers, wanted s_n > 0")
    if tuple(weights.shape) != (n,):
        raise ValueError(f"weights: got shape {tuple(weights.shape)}, wanted ({n},)")
    if not (weights.isfinite().all() and (weights > 0).all()):
        raise ValueError("weights: got values that are not positive and finite, wanted s_n > 0")
    log_weights = weights.log()
    return log_weights - log_weights.logsumexp(0)


def _whole_numbers(values: Any, n: int, name: str, wanted: str) -> Int64[Tensor, " n"]:
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)  # of floats
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name}: got something else than whole numbers, wanted {wanted}")
    if tuple(values.shape) != (n,):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, wanted ({n},)")
    return values.to("cpu", torch.int64)
