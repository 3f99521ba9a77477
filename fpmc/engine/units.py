"""The units that a source's images are stored in, so that none of them has to be converted.

Bytes u stand for values x = u / 127.5 − 1; floats for themselves. In units of bytes a noisy image
is (z + 1) · 127.5, and squared differences are 127.5² times as large.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.source import Source

__all__ = ["from_units", "in_units", "scale", "units"]


def units(source: Source) -> tuple[float, float]:
    """Stored units of a value of 1, and what is added to a value before."""
    return (127.5, 1.0) if source.images.dtype == torch.uint8 else (1.0, 0.0)


def in_units(images: Float[Tensor, "b c h w"], source: Source) -> Float[Tensor, "b c h w"]:
    """Images in the units that the source is stored in, a float64 copy."""
    unit, shift = units(source)
    return images.detach().to(torch.float64, copy=True).add_(shift).mul_(unit).contiguous()


def from_units(
    mean: Float[Tensor, "b ..."], z: Float[Tensor, "b c h w"], source: Source
) -> Float[Tensor, "b c h w"]:
    """A posterior mean, back in [-1, 1], with z's shape and type; overwritten if it is float64."""
    unit, shift = units(source)
    return mean.double().div_(unit).sub_(shift).view_as(z).to(z)


def scale(sigma: float, source: Source) -> float:
    """−1 / 2σ², in stored units."""
    return -0.5 / (sigma * units(source)[0]) ** 2
