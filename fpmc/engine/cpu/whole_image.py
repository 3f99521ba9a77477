r"""One estimator that sees the whole image, on a CPU: the optimal denoiser, compiled.

A single pass over the source, an image at a time: its distance to every noisy image, as a sum of
squared differences, then a running maximum, a sum of weights and a weighted sum of images, which
shrink when the maximum rises. All of it is float64, and nothing is ever expanded or cancelled. It
reads the source once as it is stored; a matrix product would need it as float64 in memory first,
which pays for many noisy images at once.
"""

import math
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu.backend import Looped
from fpmc.engine.cpu.compiled import CUTOFF, compiled
from fpmc.engine.cpu.threads import (
    Need,
    Sums,
    answer,
    in_units,
    readable,
    scaled,
    shares,
    side_by_side,
)
from fpmc.engine.memory import FLOAT64
from fpmc.modes import without_autograd
from fpmc.operators import Ones, Operator
from fpmc.source import Source

__all__ = ["WholeImage", "denoise", "fits", "need", "vjp"]


class WholeImage(Looped):
    """The optimal denoiser, there and back; see :class:`Looped`."""

    def need(self, *, back: bool) -> Need:
        return need(self.source, back=back)

    def there(self, threads: int, z: Tensor) -> Tensor:
        return denoise(z, self.sigma, self.source, threads)

    def back(self, threads: int, *batches: Tensor) -> Tensor:
        return vjp(*batches, self.sigma, self.source, threads)


def fits(queries: Operator, responses: Operator, source: Source, device: torch.device) -> bool:
    """Whether Q and R both see the whole image as one, and all of it is on the CPU."""
    return readable(source, device) and isinstance(queries, Ones) and isinstance(responses, Ones)


def need(source: Source, *, back: bool = False) -> Need:
    """The working memory of :func:`denoise`, or of :func:`vjp`."""
    d = math.prod(source.shape)
    return Need(d * FLOAT64, (6 if back else 4) * d * FLOAT64, (d + 2) * FLOAT64)


@without_autograd
def denoise(
    z: Float[Tensor, "b c h w"], sigma: float, source: Source, threads: int
) -> Float[Tensor, "b c h w"]:
    """The optimal denoiser's answer. Not differentiable.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        source: S.
        threads: How many threads share the source out.
    """
    z_scaled, scale, log_weights = scaled(z, sigma, source)
    x, flat = source.images.detach().numpy(), z_scaled.flatten(1)

    def work(part: tuple[int, int], sums: Sums, row: Tensor) -> None:
        _gather(flat.numpy(), log_weights, scale, x, *part, *sums.arrays(), row.numpy())

    parts = shares(len(source), threads, 1)
    sums = [Sums(len(z), (), flat.shape[1:]) for _ in parts]
    rows = [torch.empty_like(flat[0]) for _ in parts]
    side_by_side(work, list(zip(parts, sums, rows, strict=True)))
    merged = reduce(Sums.merge, sums)
    mean = merged.mean()
    return answer(mean.view(z.shape), z, source)


@without_autograd
def vjp(
    z: Float[Tensor, "b c h w"],
    x_hat: Float[Tensor, "b c h w"],
    gradient: Float[Tensor, "b c h w"],
    sigma: float,
    source: Source,
    threads: int,
) -> Float[Tensor, "b c h w"]:
    r"""The gradient with respect to z, given that with respect to the answer, in one pass.

    With the slopes :math:`s_n = g^\top (x_n - \hat x)`, of which the posterior's mean is 0, it is
    :math:`\frac{1}{\sigma^2} \sum_n w_n s_n (x_n - \hat x)`.

    Args:
        z: Noisy images, shape (b, c, h, w).
        x_hat: What :func:`denoise` answered.
        gradient: g, the gradient with respect to it.
        sigma: The noise level σ > 0.
        source: S.
        threads: How many threads share the source out.
    """
    z_scaled, scale, log_weights = scaled(z, sigma, source)
    x, flat = source.images.detach().numpy(), z_scaled.flatten(1)
    g, middle = gradient.double().flatten(1).contiguous(), in_units(x_hat, source).flatten(1)

    def work(part: tuple[int, int], sums: Sums, row: Tensor) -> None:
        arrays = (flat.numpy(), g.numpy(), middle.numpy(), log_weights, scale)
        _pull(*arrays, x, *part, *sums.arrays(), row.numpy())

    parts = shares(len(source), threads, 1)
    sums = [Sums(len(z), (), (flat.shape[1],)) for _ in parts]
    rows = [torch.empty_like(flat[0]) for _ in parts]
    side_by_side(work, list(zip(parts, sums, rows, strict=True)))
    merged = reduce(Sums.merge, sums)
    return merged.mean().mul_(-2 * scale).view(z.shape).to(z)


@compiled
def _gather(z, log_weights, scale, x, begin, end, peak, mass, total, row):
    """Take images in: z (b, d), x (N, c, h, w), peak and mass (b), total (b, d), row (d)."""
    for n in range(begin, end):
        _read(x, n, row)
        for m in range(len(z)):
            ell = _log_weight(z[m], row, scale, log_weights, n)
            if ell > peak[m]:
                _rise(m, ell, peak, mass, total)
            if ell >= peak[m] - CUTOFF:  # equal where a spacing of ℓ is more
                weight = math.exp(ell - peak[m])
                mass[m] += weight
                for d in range(len(row)):
                    total[m, d] += weight * row[d]


@compiled
def _pull(z, g, middle, log_weights, scale, x, begin, end, peak, mass, total, row):
    """Take images in, as :func:`_gather`: g, the answers and the total have z's shape (b, d)."""
    for n in range(begin, end):
        _read(x, n, row)
        for m in range(len(z)):
            ell = _log_weight(z[m], row, scale, log_weights, n)
            if ell > peak[m]:
                _rise(m, ell, peak, mass, total)
            if ell >= peak[m] - CUTOFF:  # equal where a spacing of ℓ is more
                weight, slope = math.exp(ell - peak[m]), 0.0
                for d in range(len(row)):
                    slope += g[m, d] * (row[d] - middle[m, d])
                mass[m] += weight
                for d in range(len(row)):
                    total[m, d] += weight * slope * (row[d] - middle[m, d])


@compiled
def _read(x, n, row):
    """An image as a row of numbers."""
    _, c, h, w = x.shape
    at = 0
    for channel in range(c):
        for i in range(h):
            for j in range(w):
                row[at + j] = x[n, channel, i, j]
            at += w


@compiled
def _log_weight(z, row, scale, log_weights, n):
    distance = 0.0
    for d in range(len(row)):
        difference = z[d] - row[d]
        distance += difference * difference
    return scale * distance + (log_weights[n] if len(log_weights) else 0.0)


@compiled
def _rise(m, ell, peak, mass, total):
    """A new largest log-weight: what was summed relative to the old one shrinks."""
    shrink = math.exp(peak[m] - ell)
    mass[m] *= shrink
    for d in range(total.shape[1]):
        total[m, d] *= shrink
    peak[m] = ell
