"""Pixel values and what they stand for: 0 … 255 and [-1, 1], arrays and tensors."""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fpmc.checks import kind

__all__ = ["as_uint8", "from_numpy", "to_float", "to_uint8"]


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map pixel values 0 … 255 to [-1, 1]: u ↦ u / 127.5 − 1. Any shape; uint8 to ``dtype``.

    Raises:
        TypeError: If they are not a tensor of uint8.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images: got {kind(images)}, wanted a tensor of uint8 pixel values")
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to the nearest pixel value 0 … 255, clamping what lies outside. Any shape.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If they hold NaN.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images: got {kind(images)}, wanted a floating-point tensor")
    if images.isnan().any():
        raise ValueError("images: got NaN, wanted numbers")
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_numpy(images: np.ndarray) -> Tensor:
    """The same memory as a tensor, also if it is read-only, which torch warns of: nobody writes."""
    if images.dtype.kind not in "uif":
        raise TypeError(f"images: got an array of {images.dtype}, wanted uint8 or floats")
    if isinstance(images, np.ma.MaskedArray):
        raise TypeError("images: got a masked array, wanted a plain one")
    if any(stride < 0 for stride in images.strides):
        images = np.ascontiguousarray(images)
    images = images.astype(images.dtype.newbyteorder("="), copy=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def as_uint8(images: Any, name: str = "images") -> UInt8[Tensor, "n c h w"]:
    """Return images of pixel values as a tensor of the same memory.

    Args:
        images: A tensor or an array.
        name: What the error calls them.

    Raises:
        TypeError: If they are not uint8.
        ValueError: If their shape is not (n, c, h, w), or has a 0 in it.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        images = from_numpy(images)
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"{name}: got {kind(images)}, wanted uint8 pixel values")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name}: got shape {tuple(images.shape)}, wanted (n, c, h, w), none of them 0"
        )
    return images
