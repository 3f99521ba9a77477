r"""Squares that also see the source's patches elsewhere, on a CPU: compiled, a displacement a time.

Two patches of z and of a source image that are compared lie a displacement apart, and all pairs
with the same displacement share its squared differences,

.. math:: \delta_{nt}(i) = \sum_c \big(z_c(i) - x_{nc}(i + t)\big)^2 ,

whose sums over squares are running sums. So a pair of images costs a plane of squared differences
a displacement, whatever the squares' side, and an exponential for each pair of patches. A pixel
whose square the border cuts may move along that border alone, so its class is the displacements
that are 0 across it, with the squares clipped as those of LS are; a corner has the displacement 0.

In the overlap of the two images, everything is as in :mod:`fpmc.engine.cpu.squares` for one-hot
responses: LANES source images side by side, distances and sums over the source in float64, weights
in float32. But there are more of them, so 64 weights at a time are left out where a pixel's largest
so far makes all that may be left out less than a rounding. So are the accuracy and what
:func:`fpmc.engine.cpu.squares.safe` asks. Threads share out displacements, or where there are fewer
of them, the source.

Going back, each displacement spreads w (s − s̄) over its squares.
"""

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu import displacements_kernels
from fpmc.engine.cpu.buffers import as_parts, buffers, empty, need, spread
from fpmc.engine.cpu.compiled import LANES, readable
from fpmc.engine.cpu.threads import Fit, Share, fit, in_parts, shares, side_by_side
from fpmc.engine.problem import Problem
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.units import from_units, in_units
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["Displacements"]


LOST = 2e-8
"""Of the weights over a pixel's largest, which may be left out together."""


class _Work(NamedTuple):
    """Of one thread: images of parts of the source, at displacements own, own + step, …"""

    share: list[Share]
    own: int
    step: int


class Displacements:
    """A :class:`fpmc.engine.autograd.Backend` for clipped squares whose source is translated.

    Attributes:
        log_norms: The normalisers of the last answer, a tensor for each part of the batch; like z
            and the answer they are not counted in the budget.
    """

    lanes = LANES
    """Source images at a time."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.log_norms: list[Tensor] = []

    @staticmethod
    def covers(source: Source, device: torch.device) -> bool:
        """Whether all is on the CPU, with a compiler, and stored as a type that it reads."""
        return readable(source, device)

    @property
    def count(self) -> int:
        """The number of displacements."""
        (h, w), p = self.problem.queries.shape, self.problem.queries.p
        return (2 * (h - p) + 1) * (2 * (w - p) + 1)

    def fit(self, batch: int, *, back: bool) -> Fit | None:
        """What of so many noisy images fits the budget, forward or back; None if nothing does."""
        problem = self.problem
        needed = need(*problem.operators, problem.source, back=back, moving=True)
        return fit(needed, batch, 1, max(self._tiles, self.count), problem.budget)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        chosen, queries = self.fit(len(z), back=False), self.problem.queries
        shared, cutoff = self._shared(chosen.threads), self._cutoff()
        self.log_norms = []

        def part(z: Tensor) -> Tensor:
            stored = as_parts(z, self.problem)

            def work(task: _Work, softmax: OnlineSoftmax) -> None:
                own = buffers(queries, stored[0].x, moving=True)
                for index, begin, end in task.share:
                    query, x, _ = stored[index]
                    arrays = (*softmax.arrays(), own)
                    displacements_kernels.mean(
                        query, x, begin, end, task.own, task.step, cutoff, *arrays
                    )

            softmaxes = [OnlineSoftmax.empty((len(z), *queries.grid), z.shape) for _ in shared]
            side_by_side(work, list(zip(shared, softmaxes, strict=True)))
            merged = reduce(OnlineSoftmax.merge, softmaxes)
            self.log_norms.append(merged.log_norm())
            return from_units(merged.mean(), z, self.problem.source)

        return in_parts(part, chosen.b, z)

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The formula is that of :mod:`fpmc.engine.streaming.vjp`; s is float64."""
        chosen = self.fit(len(z), back=True)

        def part(*batches: Tensor) -> Tensor:
            return self._to_z(chosen.threads, *batches)

        return in_parts(part, chosen.b, z, x_hat, gradient, torch.cat(self.log_norms))

    def _to_z(self, threads: int, z, x_hat, gradient, log_norm) -> Tensor:
        queries, stored = self.problem.queries, as_parts(z, self.problem)
        shared = self._shared(threads)
        g = gradient.double().contiguous().numpy()
        answer = in_units(x_hat, self.problem.source).numpy()
        norm, average = log_norm.numpy(), (g * answer).sum(1)

        def work(task: _Work, total: Tensor) -> None:
            slopes = empty((queries.shape[1], LANES))
            own = (slopes, buffers(queries, stored[0].x, moving=True), spread(queries))
            for index, begin, end in task.share:
                query, x, _ = stored[index]
                arrays = (norm, average, answer, total.numpy(), *own)
                displacements_kernels.vjp(query, g, x, begin, end, task.own, task.step, *arrays)

        totals = [torch.zeros(z.shape, dtype=torch.float64) for _ in shared]
        side_by_side(work, list(zip(shared, totals, strict=True)))
        return reduce(Tensor.add_, totals).mul_(-2 * stored[0].query.scale).to(z)

    @property
    def _tiles(self) -> int:
        return sum(-(-len(part) // LANES) for part in self.problem.source.parts)

    def _shared(self, threads: int) -> list[_Work]:
        sizes = [len(part) for part in self.problem.source.parts]
        if self.count > self._tiles:
            (whole,) = shares(sizes, 1, LANES)
            return [_Work(whole, own, threads) for own in range(threads)]
        return [_Work(share, 0, 1) for share in shares(sizes, threads, LANES)]

    def _cutoff(self) -> np.float32:
        """How far below a pixel's largest log-weight others do not count, all of them together."""
        (h, w), p = self.problem.queries.shape, self.problem.queries.p
        most = len(self.problem.source) * (h - p + 1) * (w - p + 1)
        return np.float32(math.log(most / LOST))
