r"""What every kernel reads: z in the units that the source is stored in, and a constant per pixel.

A constant c_p taken from each pixel's difference, the same for all n, adds the same
:math:`(Qc)_k/2\sigma^2` to all log-weights of an estimator: no posterior changes. The smaller
:math:`\delta_n - c` is for the images that have the weight, the less a rounded product loses.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cuda.precisions import Precision
from fpmc.engine.problem import log_weights, parts
from fpmc.engine.units import scale, units
from fpmc.source import Source

__all__ = ["SAMPLE", "Inputs", "expected_difference", "prepare"]

SAMPLE = 64
"""Source images from which :func:`expected_difference` takes means and variances."""


class Inputs(NamedTuple):
    """What the kernels read of a part of the source.

    Attributes:
        z: Noisy images in stored units, shape (b, c, h, w).
        offset: c, in their square, with the pixels of Q: shape (b, *pixels); None if exact.
        x: The source's images as stored, shape (n, c, h, w).
        log_weights: log S(x_n), shape (n,); None if all are equal.
        scale: −1 / 2σ², in stored units: one number.
        mid_range: The middle of the range of x. Taken from x where rounded weights of a sum of
            nearly one are mixed, it keeps their error from being multiplied by more than half the
            range.
    """

    z: Tensor
    offset: Tensor | None
    x: Tensor
    log_weights: Tensor | None
    scale: Tensor
    mid_range: float


def prepare(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    source: Source,
    pixels: tuple[int, ...],
    precision: Precision,
) -> list[Inputs]:
    """Make the kernels' inputs, for each part of the source.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        source: S.
        pixels: Q's shape, (h, w) or (c, h, w).
        precision: How the kernels compute.
    """
    unit, shift = units(source)
    z = z.detach().double()
    c = expected_difference(z, sigma, source, pixels).mul_(unit**2) if precision.reduced else None
    scaled = z.add(shift).mul_(unit).to(precision.dtype).contiguous()
    offset = None if c is None else c.to(precision.dtype).contiguous()
    once = scaled.new_tensor(scale(sigma, source)), unit * shift
    return [
        Inputs(scaled, offset, x, prior, *once)
        for x, prior in parts(source, log_weights(source, scaled))
    ]


def expected_difference(
    z: Float[Tensor, "b c h w"], sigma: float, source: Source, pixels: tuple[int, ...]
) -> Float[Tensor, "b ..."]:
    r"""A guess at the difference between z and the images that have the weight.

    With m and v each dimension's mean and variance over a few source images, the expectation of
    :math:`(z - x)^2` if x were Gaussian given z, each dimension on its own:

    .. math:: c = \Big(\frac{\sigma^2}{v + \sigma^2}\Big)^2 (z - m)^2 + \frac{v\sigma^2}{v+\sigma^2}

    summed over channels if Q is. It goes to σ² per dimension at low noise and to the mean over
    the source at high noise.

    Args:
        z: Noisy images in [-1, 1] and noise, float64, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        source: S.
        pixels: Q's shape, (h, w) or (c, h, w).

    Returns:
        c, shape (b, *pixels).
    """
    few = torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long()
    v, m = torch.var_mean(source.read(few, torch.float64, z.device), 0, correction=0)
    share = sigma**2 / (v + sigma**2)
    c = (z - m).mul_(share).square_().add_(v * share)
    return c.sum(1) if len(pixels) == 2 else c
