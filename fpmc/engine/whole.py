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

from fpmc.engine.compiled import CUTOFF, compiled
from fpmc.engine.parallel import Need, Sums, answer, readable, scaled, shares, side_by_side
from fpmc.engine.tiling import FLOAT64
from fpmc.operators import Box, Ones, Operator
from fpmc.source import Source

__all__ = ["denoise", "fits", "need"]


def fits(queries: Operator, responses: Operator, source: Source, device: torch.device) -> bool:
    """Whether Q and R both see the whole image as one, and all of it is on the CPU."""
    return readable(source, device) and _sees_all(queries) and _sees_all(responses)


def need(source: Source) -> Need:
    """The working memory of :func:`denoise`."""
    d = math.prod(source.shape)
    return Need(d * FLOAT64, 4 * d * FLOAT64, (d + 2) * FLOAT64)


@torch.no_grad()
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
    mean = merged.total.div_(merged.mass.unsqueeze(1))
    return answer(mean.view(z.shape), z, source)


def _sees_all(op: Operator) -> bool:
    return isinstance(op, Ones) or (isinstance(op, Box) and op.k == 1)


@compiled
def _gather(z, log_weights, scale, x, begin, end, peak, mass, total, row):
    """Take images in: z (b, d), x (N, c, h, w), peak and mass (b), total (b, d), row (d)."""
    _, c, h, w = x.shape
    for n in range(begin, end):
        at = 0
        for channel in range(c):
            for i in range(h):
                for j in range(w):
                    row[at + j] = x[n, channel, i, j]
                at += w
        bias = log_weights[n] if len(log_weights) else 0.0
        for m in range(len(z)):
            distance = 0.0
            for d in range(len(row)):
                difference = z[m, d] - row[d]
                distance += difference * difference
            ell = scale * distance + bias
            if ell > peak[m]:
                shrink = math.exp(peak[m] - ell)
                mass[m] *= shrink
                for d in range(len(row)):
                    total[m, d] *= shrink
                peak[m] = ell
            if ell > peak[m] - CUTOFF:
                weight = math.exp(ell - peak[m])
                mass[m] += weight
                for d in range(len(row)):
                    total[m, d] += weight * row[d]
