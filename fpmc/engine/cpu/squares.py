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

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu import squares_kernels, squares_vjp
from fpmc.engine.cpu.backend import Looped
from fpmc.engine.cpu.compiled import LANES
from fpmc.engine.cpu.squares_kernels import Query, Room, Spread
from fpmc.engine.cpu.squares_vjp import Slopes
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
from fpmc.engine.memory import FLOAT32, FLOAT64, tolerance
from fpmc.modes import without_autograd
from fpmc.operators import Box, Identity, Operator
from fpmc.source import Source

__all__ = ["Squares", "denoise", "fits", "need", "safe", "vjp"]


class Squares(Looped):
    """Squares, there and back; see :class:`Looped`.

    Attributes:
        log_norms: The normalisers of the last answer, a tensor for each part of the batch; like z
            and the answer they are not counted in the budget.
    """

    lanes = LANES

    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.log_norms: list[Tensor] = []
        return super().answer(z)

    def kept(self) -> tuple[Tensor, ...]:
        return (torch.cat(self.log_norms),)

    def need(self, *, back: bool) -> Need:
        return need(self.queries, self.responses, self.source, back=back)

    def there(self, threads: int, z: Tensor) -> Tensor:
        operators = (self.queries, self.responses, self.source)
        return denoise(z, self.sigma, *operators, threads, self.log_norms)

    def back(self, threads: int, *batches: Tensor) -> Tensor:
        return vjp(*batches, self.sigma, self.queries, self.responses, self.source, threads)


def fits(queries: Operator, responses: Operator, source: Source, device: torch.device) -> bool:
    """Whether Q is squares, R squares on as many centres or one-hot, and all of it on the CPU."""
    if not (isinstance(queries, Box) and readable(source, device)):
        return False
    if isinstance(responses, Box):
        return responses.grid == queries.grid
    return isinstance(responses, Identity) and responses.shape == queries.grid


def safe(z: Float[Tensor, "b c h w"], sigma: float, p: int) -> bool:
    """Whether running sums over squares of side p are exact enough for this z."""
    c, h, w = z.shape[1:]
    farthest = c * p**2 * (z.detach().abs().max().item() + 1) ** 2
    error = (h + w) * torch.finfo(torch.float64).eps * farthest / (2 * sigma**2)
    return error <= tolerance(sigma) / 10


def need(queries: Box, responses: Box | Identity, source: Source, *, back: bool = False) -> Need:
    """The working memory of :func:`denoise`, or of :func:`vjp`."""
    c, h, w = source.shape
    d, k, grid_w = c * h * w, queries.k, queries.grid[1]
    tile = d * source.images.element_size()
    query = ((queries.p + 1) * w + grid_w) * FLOAT64 + grid_w * FLOAT32
    tiles = -(-len(source) // LANES)
    if back:
        spread = (queries.p + 2) * w * FLOAT32
        slopes = ((_side(responses) + 1) * w + grid_w) * FLOAT64
        thread = LANES * (tile + query + spread + slopes)
        return Need(thread, (6 * d + 5 * k) * FLOAT64 + tiles, (d + 3 * k) * FLOAT64)
    spread = (responses.p + 2) * w * FLOAT32 if isinstance(responses, Box) else 0
    return Need(
        LANES * (tile + query + spread), (4 * d + 4 * k) * FLOAT64 + tiles, (d + 2 * k) * FLOAT64
    )


@without_autograd
def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Box,
    responses: Box | Identity,
    source: Source,
    threads: int,
    log_norms: list[Tensor] | None = None,
) -> Float[Tensor, "b c h w"]:
    """The answer x̂ of (10), where :func:`fits` and :func:`safe` hold. Not differentiable.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q.
        responses: R.
        source: S.
        threads: How many threads share the source out.
        log_norms: A list to which the estimators' log-normalisers are appended, shape
            (b, grid_h, grid_w).
    """
    z_scaled, scale, log_weights = scaled(z, sigma, source)
    query = Query(z_scaled.numpy(), log_weights, scale, _before(queries))
    parts = shares(len(source), threads, LANES)
    one_hot = isinstance(responses, Identity)
    passes = _one_pass if one_hot else _two_passes
    mean, log_norm = passes(query, queries, responses, source, parts)
    if log_norms is not None:
        log_norms.append(log_norm)
    return answer(mean, z, source)


@without_autograd
def vjp(
    z: Float[Tensor, "b c h w"],
    x_hat: Float[Tensor, "b c h w"],
    gradient: Float[Tensor, "b c h w"],
    log_norm: Float[Tensor, "b grid_h grid_w"],
    sigma: float,
    queries: Box,
    responses: Box | Identity,
    source: Source,
    threads: int,
) -> Float[Tensor, "b c h w"]:
    """The gradient with respect to z, given that with respect to the answer.

    The formula is that of :mod:`fpmc.engine.streaming.passes`; s is float64, the weights are
    float32.

    Args:
        z: Noisy images, shape (b, c, h, w).
        x_hat: What :func:`denoise` answered.
        gradient: g, the gradient with respect to it.
        log_norm: The estimators' log-normalisers, as :func:`denoise` found them.
        sigma: The noise level σ > 0.
        queries: Q.
        responses: R.
        source: S.
        threads: How many threads share the source out.
    """
    z_scaled, scale, log_weights = scaled(z, sigma, source)
    query = Query(z_scaled.numpy(), log_weights, scale, _before(queries))
    g = (gradient.double() / responses.coverage()).contiguous().numpy()
    parts, (b, x) = shares(len(source), threads, LANES), (len(z), source.images.detach().numpy())
    middle = in_units(x_hat, source).numpy()
    rooms = [_room(queries, source) for _ in parts]
    slopes = [_slopes(g, queries, responses) for _ in parts]
    needed = torch.ones(b, -(-len(source) // LANES), dtype=torch.bool).numpy()

    def first(part: tuple[int, int], sums: Tensor, room: Room, slopes: Slopes) -> None:
        arrays = (log_norm.numpy(), *sums.numpy(), needed)
        squares_vjp.averages(query, slopes, x, *part, *arrays, room)

    def second(part: tuple[int, int], total: Tensor, room: Room, slopes: Slopes) -> None:
        arrays = (log_norm.numpy(), average, needed, middle, total.numpy())
        squares_vjp.vjp(query, slopes, x, *part, *arrays, room, _spread(queries))

    if isinstance(responses, Identity):
        average = (g * middle).sum(1)
    else:
        sums = [torch.zeros(2, *log_norm.shape, dtype=torch.float64) for _ in parts]
        side_by_side(first, list(zip(parts, sums, rooms, slopes, strict=True)))
        mass, total = reduce(Tensor.add_, sums)
        average = total.div_(mass).numpy()
    totals = [torch.zeros(b, *source.shape, dtype=torch.float64) for _ in parts]
    side_by_side(second, list(zip(parts, totals, rooms, slopes, strict=True)))
    return reduce(Tensor.add_, totals).mul_(-2 * scale).to(z)


def _one_pass(query, queries, responses, source, parts) -> tuple[Tensor, Tensor]:
    def work(part: tuple[int, int], sums: Sums, room: Room) -> None:
        squares_kernels.gather(query, x, *part, *sums.arrays(), room)

    x, b = source.images.detach().numpy(), len(query.z)
    sums = [Sums(b, queries.grid, source.shape) for _ in parts]
    rooms = [_room(queries, source) for _ in parts]
    side_by_side(work, list(zip(parts, sums, rooms, strict=True)))
    merged = reduce(Sums.merge, sums)
    return merged.mean(), merged.log_norm()


def _two_passes(query, queries, responses, source, parts) -> tuple[Tensor, Tensor]:
    def first(part: tuple[int, int], sums: Sums, room: Room) -> None:
        peak, mass, _ = sums.arrays()
        squares_kernels.log_sums(query, x, *part, peak, mass, needed, room)

    def second(part: tuple[int, int], total: Tensor, room: Room, spread: Spread) -> None:
        arrays = (log_norm.numpy(), needed, _before(responses), total.numpy())
        squares_kernels.mix(query, x, *part, *arrays, room, spread)

    x, b = source.images.detach().numpy(), len(query.z)
    needed = torch.empty(b, -(-len(source) // LANES), dtype=torch.bool).numpy()
    rooms = [_room(queries, source) for _ in parts]
    sums = [Sums(b, queries.grid) for _ in parts]
    side_by_side(first, list(zip(parts, sums, rooms, strict=True)))
    log_norm = reduce(Sums.merge, sums).log_norm()
    del sums
    spreads = [_spread(responses) for _ in parts]
    totals = [torch.zeros(b, *source.shape, dtype=torch.float64) for _ in parts]
    side_by_side(second, list(zip(parts, totals, rooms, spreads, strict=True)))
    return reduce(Tensor.add_, totals).div_(responses.coverage()), log_norm


def _before(op: Box | Identity) -> int:
    """Pixels of a square above and left of the pixel that stands for it."""
    return op.p // 2 if isinstance(op, Box) and op.border == "clip" else 0


def _side(op: Box | Identity) -> int:
    return op.p if isinstance(op, Box) else 1


def _room(queries: Box, source: Source) -> Room:
    (c, h, w), grid_w = source.shape, queries.grid[1]
    shapes = ((queries.p, w, LANES), (w, LANES), (grid_w, LANES))
    tile = torch.zeros(c, h, w, LANES, dtype=source.images.dtype)
    sums = (torch.empty(shape, dtype=torch.float64).numpy() for shape in shapes)
    return Room(tile.numpy(), *sums, torch.empty(grid_w, LANES, dtype=torch.float32).numpy())


def _slopes(g: np.ndarray, queries: Box, responses: Box | Identity) -> Slopes:
    w = queries.shape[1]
    shapes = ((_side(responses), w, LANES), (w, LANES), (queries.grid[1], LANES))
    buffers = (torch.empty(shape, dtype=torch.float64).numpy() for shape in shapes)
    return Slopes(g, _before(responses), *buffers)


def _spread(op: Box) -> Spread:
    w = op.shape[1]
    shapes = ((op.p, w, LANES), (w, LANES), (w, LANES))
    return Spread(*(torch.empty(shape, dtype=torch.float32).numpy() for shape in shapes))
