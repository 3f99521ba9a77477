r"""One estimator that sees the whole image, on a CPU: the optimal denoiser, compiled.

A single pass over the source, an image at a time: its distance to every noisy image, as a sum of
squared differences, then a running maximum, a sum of weights and a weighted sum of images, which
shrink when the maximum rises. All of it is float64, and nothing is ever expanded or cancelled. It
reads the source once as it is stored; a matrix product would need it as float64 in memory first,
which pays for many noisy images at once.

The gradient with respect to z, with the slopes :math:`s_n = g^\top (x_n - \hat x)`, of which the
posterior's mean is 0, is :math:`\frac{1}{\sigma^2} \sum_n w_n s_n (x_n - \hat x)`: one pass, too.
"""

import math
from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu.compiled import compiled, readable
from fpmc.engine.cpu.threads import Fit, Need, Share, fit, in_parts, shares, side_by_side
from fpmc.engine.memory import FLOAT64
from fpmc.engine.problem import Problem, log_weights, parts
from fpmc.engine.softmax import CUTOFF, OnlineSoftmax
from fpmc.engine.units import from_units, in_units, scale
from fpmc.modes import without_autograd
from fpmc.operators import Ones, Operator
from fpmc.source import Source

__all__ = ["WholeImage"]


class WholeImage:
    """A :class:`fpmc.engine.autograd.Backend` for Ones Q and R."""

    lanes = 1
    """Source images that threads cannot share out."""

    def __init__(self, problem: Problem):
        self.problem = problem

    @staticmethod
    def covers(
        queries: Operator, responses: Operator, source: Source, device: torch.device
    ) -> bool:
        """Whether Q and R both see the whole image as one, and all of it is on the CPU."""
        ones = isinstance(queries, Ones) and isinstance(responses, Ones)
        return ones and readable(source, device)

    def fit(self, batch: int, *, back: bool) -> Fit | None:
        """What of so many noisy images fits the budget, forward or back; None if nothing does."""
        source = self.problem.source
        d = math.prod(source.shape)
        need = Need(d * FLOAT64, (6 if back else 4) * d * FLOAT64, (d + 2) * FLOAT64)
        return fit(need, batch, self.lanes, len(source), self.problem.budget)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        chosen = self.fit(len(z), back=False)

        def mean(z: Tensor) -> Tensor:
            flat = in_units(z, self.problem.source).flatten(1)
            return from_units(
                self._sum(_answer, chosen.threads, flat).mean(), z, self.problem.source
            )

        return in_parts(mean, chosen.b, z)

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        chosen, source = self.fit(len(z), back=True), self.problem.source
        slope = -2 * scale(self.problem.sigma, source)

        def to_z(z: Tensor, x_hat: Tensor, gradient: Tensor) -> Tensor:
            flat, answer = (in_units(a, source).flatten(1) for a in (z, x_hat))
            g = gradient.double().flatten(1).contiguous()
            softmax = self._sum(_vjp, chosen.threads, flat, g, answer)
            return softmax.mean().mul_(slope).view(z.shape).to(z)

        return in_parts(to_z, chosen.b, z, x_hat, gradient)

    def _sum(self, loop: Callable, threads: int, *batches: Tensor) -> OnlineSoftmax:
        """What a compiled loop sums over the source, threads' parts merged."""
        source, (z, *_) = self.problem.source, batches
        stored = [
            ((z.new_empty(0) if prior is None else prior).numpy(), x.numpy())
            for x, prior in parts(source, log_weights(source, z.cpu()))
        ]
        arrays, factor = [batch.numpy() for batch in batches], scale(self.problem.sigma, source)

        def work(share: list[Share], softmax: OnlineSoftmax, row: Tensor) -> None:
            for part, begin, end in share:
                prior, x = stored[part]
                loop(*arrays, prior, factor, x, begin, end, *softmax.arrays(), row.numpy())

        shared = shares([len(x) for _, x in stored], threads, self.lanes)
        softmaxes = [OnlineSoftmax.empty((len(z),), tuple(z.shape)) for _ in shared]
        rows = [torch.empty_like(z[0]) for _ in shared]
        side_by_side(work, list(zip(shared, softmaxes, rows, strict=True)))
        return reduce(OnlineSoftmax.merge, softmaxes)


@compiled
def _answer(z, log_weights, scale, x, begin, end, peak, mass, total, row):
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
def _vjp(z, g, answer, log_weights, scale, x, begin, end, peak, mass, total, row):
    """Take images in, as :func:`_answer`: g, the answers and the total have z's shape (b, d)."""
    for n in range(begin, end):
        _read(x, n, row)
        for m in range(len(z)):
            ell = _log_weight(z[m], row, scale, log_weights, n)
            if ell > peak[m]:
                _rise(m, ell, peak, mass, total)
            if ell >= peak[m] - CUTOFF:  # equal where a spacing of ℓ is more
                weight, slope = math.exp(ell - peak[m]), 0.0
                for d in range(len(row)):
                    slope += g[m, d] * (row[d] - answer[m, d])
                mass[m] += weight
                for d in range(len(row)):
                    total[m, d] += weight * slope * (row[d] - answer[m, d])


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
