"""Pixel values 0 … 255 and images in [-1, 1], one made of the other."""

import torch
from torch import Tensor

from fpmc.checks import kind

__all__ = ["to_float", "to_uint8"]


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
