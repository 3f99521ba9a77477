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
in float32, and 64 weights at a time left out below e⁻⁸⁰ of their pixel's largest so far. So are
the accuracy and what :func:`fpmc.engine.cpu.squares.safe` asks. Threads share out displacements, or
where there are fewer of them, the source.

Going back, each displacement spreads w (s − s̄) over its squares.
"""

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu import displacements_kernels
from fpmc.engine.cpu.buffers import as_query, buffers, empty, need, spread, stored
from fpmc.engine.cpu.compiled import LANES, readable
from fpmc.engine.cpu.threads import Fit, fit, in_parts, ranges, side_by_side
from fpmc.engine.problem import Problem
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.units import from_units, in_units
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["Displacements"]


class _Share(NamedTuple):
    """Of one thread: source images begin … end − 1, displacements own, own + step, …"""

    begin: int
    end: int
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
        needed = need(*problem.operators, problem.source, back=back, wide=True)
        tiles = -(-len(problem.source) // LANES)
        return fit(needed, batch, 1, max(tiles, self.count), problem.budget)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        chosen, queries = self.fit(len(z), back=False), self.problem.queries
        x, shares = stored(self.problem.source), self._shares(chosen.threads)
        self.log_norms = []

        def work(share: _Share, softmax: OnlineSoftmax) -> None:
            own = buffers(queries, x, wide=True)
            displacements_kernels.mean(query, x, *share, *softmax.arrays(), own)

        def part(z: Tensor) -> Tensor:
            nonlocal query
            query = as_query(z, self.problem)
            softmaxes = [OnlineSoftmax.empty((len(z), *queries.grid), z.shape) for _ in shares]
            side_by_side(work, list(zip(shares, softmaxes, strict=True)))
            merged = reduce(OnlineSoftmax.merge, softmaxes)
            self.log_norms.append(merged.log_norm())
            return from_units(merged.mean(), z, self.problem.source)

        query = None
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
        queries, query = self.problem.queries, as_query(z, self.problem)
        x, shares = stored(self.problem.source), self._shares(threads)
        g = gradient.double().contiguous().numpy()
        answer = in_units(x_hat, self.problem.source).numpy()
        norm, average = log_norm.numpy(), (g * answer).sum(1)

        def work(share: _Share, total: Tensor) -> None:
            slopes = empty((queries.shape[1], LANES))
            own = (slopes, buffers(queries, x, wide=True), spread(queries))
            arrays = (norm, average, answer, total.numpy())
            displacements_kernels.vjp(query, g, x, *share, *arrays, *own)

        totals = [torch.zeros(z.shape, dtype=torch.float64) for _ in shares]
        side_by_side(work, list(zip(shares, totals, strict=True)))
        return reduce(Tensor.add_, totals).mul_(-2 * query.scale).to(z)

    def _shares(self, threads: int) -> list[_Share]:
        size = len(self.problem.source)
        if self.count > -(-size // LANES):
            return [_Share(0, size, own, threads) for own in range(threads)]
        return [_Share(*part, 0, 1) for part in ranges(size, threads, LANES)]
