r"""Squares on a CPU: compiled running sums, whose cost does not depend on the squares' side.

For a noisy image and LANES source images at a time, δ, the distances and the weights of a few rows
of squares stay in cache; no map of a whole image is made. With one-hot responses one pass over the
source does. With squares as responses a first pass finds each estimator's normaliser, and a second
one mixes; it skips a tile of which no weight exceeds e⁻⁸⁰ of its estimator's largest so far: for
large squares at low noise, some of them. Threads share the source out.

Distances, log-weights, normalisers and the sums over the source are float64; a weight is the
float32 exponential of the log-weight less the largest one (or less the normaliser): subtracted in
float64, so that the difference t is rounded to float32 and not the log-weight. Where a weight
matters t is small: the rounding changes a weight of e⁻ᵗ by at most t e⁻ᵗ 6e-8, and the exponential
itself is good to 3e-7. So the answer is good to a few float32 roundings of its own.

A running sum keeps what it cancelled: with S the distance of the farthest square that z and the
range of the source allow, and the unit roundoff ε = 1.1e-16, an error of up to 2 (h + w) ε S may
stay. :func:`safe` asks that this moves no log-weight by more than a tenth of what the answer may be
off, which is so for noisy images of that σ; an outlier among the pixels may break it.
"""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu import squares_kernels, squares_vjp
from fpmc.engine.cpu.buffers import Part, as_parts, buffers, need, slopes, spread
from fpmc.engine.cpu.compiled import LANES, readable
from fpmc.engine.cpu.running_sums import Buffers, Spread
from fpmc.engine.cpu.squares_vjp import Slopes
from fpmc.engine.cpu.threads import Fit, Share, fit, in_parts, shares, side_by_side
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.units import from_units, in_units
from fpmc.modes import without_autograd
from fpmc.operators import Box, Identity, Operator
from fpmc.source import Source

__all__ = ["Squares", "safe"]


class Squares:
    """A :class:`fpmc.engine.autograd.Backend` for squares as Q, and squares or one-hot rows as R.

    Attributes:
        log_norms: The normalisers of the last answer, a tensor for each part of the batch; like z
            and the answer they are not counted in the budget.
    """

    lanes = LANES
    """Source images that threads cannot share out."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.log_norms: list[Tensor] = []

    @staticmethod
    def covers(
        queries: Operator, responses: Operator, source: Source, device: torch.device
    ) -> bool:
        """Whether R has the squares of Q, or is one-hot at their centres, and all is on the CPU."""
        if not (isinstance(queries, Box) and readable(source, device)):
            return False
        if isinstance(responses, Box):
            return responses.grid == queries.grid
        return isinstance(responses, Identity) and responses.shape == queries.grid

    def fit(self, batch: int, *, back: bool) -> Fit | None:
        """What of so many noisy images fits the budget, forward or back; None if nothing does."""
        problem = self.problem
        needed = need(*problem.operators, problem.source, back=back)
        return fit(needed, batch, self.lanes, len(problem.source), problem.budget)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        chosen, (queries, responses) = self.fit(len(z), back=False), self.problem.operators
        passes = _one_pass if isinstance(responses, Identity) else _two_passes
        self.log_norms = []

        def part(z: Tensor) -> Tensor:
            shared = self._shares(chosen)
            found, log_norm = passes(as_parts(z, self.problem), queries, responses, shared)
            self.log_norms.append(log_norm)
            return from_units(found, z, self.problem.source)

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
            return self._to_z(self._shares(chosen), *batches)

        return in_parts(part, chosen.b, z, x_hat, gradient, torch.cat(self.log_norms))

    def _to_z(self, shared: list[list[Share]], z, x_hat, gradient, log_norm) -> Tensor:
        queries, responses = self.problem.operators
        stored = as_parts(z, self.problem)
        g = (gradient.double() / responses.coverage()).contiguous().numpy()
        answer, norm = in_units(x_hat, self.problem.source).numpy(), log_norm.numpy()
        own = [buffers(queries, stored[0].x) for _ in shared]
        sloped = [slopes(g, queries, responses) for _ in shared]

        def first(share: list[Share], sums: Tensor, own: Buffers, sloped: Slopes) -> None:
            for part, begin, end in share:
                query, x, needed = stored[part]
                arrays = (norm, *sums.numpy(), needed, own)
                squares_vjp.averages(query, sloped, x, begin, end, *arrays)

        def second(share: list[Share], total: Tensor, own: Buffers, sloped: Slopes) -> None:
            back = spread(queries)
            for part, begin, end in share:
                query, x, needed = stored[part]
                arrays = (norm, average, needed, answer, total.numpy(), own, back)
                squares_vjp.vjp(query, sloped, x, begin, end, *arrays)

        if isinstance(responses, Identity):
            average = (g * answer).sum(1)
        else:
            sums = [torch.zeros(2, *log_norm.shape, dtype=torch.float64) for _ in shared]
            side_by_side(first, list(zip(shared, sums, own, sloped, strict=True)))
            mass, total = reduce(Tensor.add_, sums)
            average = total.div_(mass).numpy()
        totals = [torch.zeros(z.shape, dtype=torch.float64) for _ in shared]
        side_by_side(second, list(zip(shared, totals, own, sloped, strict=True)))
        return reduce(Tensor.add_, totals).mul_(-2 * stored[0].query.scale).to(z)

    def _shares(self, chosen: Fit) -> list[list[Share]]:
        sizes = [len(part) for part in self.problem.source.parts]
        return shares(sizes, chosen.threads, LANES)


def safe(largest: float, sigma: float, queries: Box, c: int) -> bool:
    """Whether running sums over squares are exact enough for a z with no value beyond ±largest.

    Args:
        largest: The largest absolute value of the noisy images.
        sigma: Their noise level.
        queries: The squares.
        c: The number of channels.
    """
    farthest = c * queries.p**2 * (largest + 1) ** 2
    error = sum(queries.shape) * torch.finfo(torch.float64).eps * farthest / (2 * sigma**2)
    return error <= tolerance(sigma) / 10


def _one_pass(stored: list[Part], queries, responses, shared) -> tuple[Tensor, Tensor]:
    """The posterior mean in stored units, and the log-normalisers, with one-hot responses."""

    def work(share: list[Share], softmax: OnlineSoftmax, own: Buffers) -> None:
        for part, begin, end in share:
            query, x, _ = stored[part]
            squares_kernels.mean(query, x, begin, end, *softmax.arrays(), own)

    shape = stored[0].query.z.shape
    softmaxes = [OnlineSoftmax.empty((shape[0], *queries.grid), shape) for _ in shared]
    own = [buffers(queries, stored[0].x) for _ in shared]
    side_by_side(work, list(zip(shared, softmaxes, own, strict=True)))
    merged = reduce(OnlineSoftmax.merge, softmaxes)
    return merged.mean(), merged.log_norm()


def _two_passes(stored: list[Part], queries, responses, shared) -> tuple[Tensor, Tensor]:
    """The same, with squares as responses."""

    def first(share: list[Share], softmax: OnlineSoftmax, own: Buffers) -> None:
        for part, begin, end in share:
            query, x, needed = stored[part]
            squares_kernels.log_norm(query, x, begin, end, *softmax.arrays(), needed, own)

    def second(share: list[Share], total: Tensor, own: Buffers, back: Spread) -> None:
        for part, begin, end in share:
            query, x, needed = stored[part]
            arrays = (log_norm.numpy(), needed, responses.before, total.numpy())
            squares_kernels.mix(query, x, begin, end, *arrays, own, back)

    shape = stored[0].query.z.shape
    own = [buffers(queries, stored[0].x) for _ in shared]
    softmaxes = [OnlineSoftmax.empty((shape[0], *queries.grid)) for _ in shared]
    side_by_side(first, list(zip(shared, softmaxes, own, strict=True)))
    log_norm = reduce(OnlineSoftmax.merge, softmaxes).log_norm()
    del softmaxes
    spreads = [spread(responses) for _ in shared]
    totals = [torch.zeros(shape, dtype=torch.float64) for _ in shared]
    side_by_side(second, list(zip(shared, totals, own, spreads, strict=True)))
    return reduce(Tensor.add_, totals).div_(responses.coverage()), log_norm
