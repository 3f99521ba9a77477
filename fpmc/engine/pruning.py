r"""Leaving images out of the sum, with proof that they hardly count.

In a block B of pixels the squared differences sum to no less than |B| times the square of their
mean (Jensen). So, with :math:`\bar z` and :math:`\bar x_n` the means over blocks, every distance
has a lower bound that takes a number per block:

.. math:: (Q \delta_n)_k \ge \sum_B |B| \big(\min_{p \in B} Q_{kp}\big) (\bar z_B - \bar x_{nB})^2

(summed over channels). The images with the smallest bounds are compared with z in full, which gives
each estimator a log-weight :math:`t_k` that its largest one reaches. An image whose log-weights are
bounded by less than :math:`t_k + \log(\varepsilon / N)` for all k is left out: first by coarse
blocks, then, of the rest, by finer ones. With the bounds on its log-weights,
:math:`\ell_{kn} \le u_{kn}`, what is left out at one of the two scales carries at most
:math:`\beta_k = \sum_n e^{u_{kn} - t_k} \le \varepsilon` of estimator k's weight. As values lie in
[-1, 1], a posterior mean moves by at most twice the sum of both, and so does what the responses
mix of them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fpmc.checks import as_fraction, as_whole_number
from fpmc.engine import planning, tiling
from fpmc.engine.apart import apart
from fpmc.engine.tiling import CACHE_FRIENDLY, FLOAT64
from fpmc.operators import Box, Dense, Identity, Ones, Operator
from fpmc.source import Source

__all__ = ["Pruned", "denoise_pruned"]

BLOCKS = (4, 2)
"""Sides of the blocks, coarse to fine."""

BINARY = (Box, Identity, Ones)
"""Operators whose rows are zeros and ones."""

ROUNDING = 1e-12
"""What float64 may change a distance or its bound by, relative to it, with room to spare."""


@dataclass(frozen=True)
class Pruned:
    """An answer from a part of the source.

    Attributes:
        x_hat: The denoised images, shape (b, c, h, w).
        bound: No value of a noisy image's answer is further than this from the answer over the
            whole source, but for the answer's own rounding; shape (b,), float64.
        kept: How many source images were summed over, shape (b,).
    """

    x_hat: Float[Tensor, "b c h w"]
    bound: Float[Tensor, " b"]
    kept: Int[Tensor, " b"]


@apart
def denoise_pruned(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    eps: float,
    budget: int | None = None,
) -> Pruned:
    """The collection's answer over those source images that may matter. Not differentiable.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q.
        responses: R, with as many estimators; every pixel needs a positive sum.
        source: S.
        eps: ε, the share of any estimator's weight that may be left out at each of the two scales,
            above 0 and up to 1.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out. Where Q
            on blocks would take more than a quarter of it, or the kept images more than half, no
            image is left out. The source's means over the coarse blocks are made once if they take
            no more than a quarter; else, and for the finer blocks, the source is read for every z.

    Raises:
        TypeError: If ε or the budget is not a number.
        ValueError: If ε lies outside its range, or the budget is too small.
    """
    eps = as_fraction(eps, "eps", zero=False)
    budget = tiling.DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    sides = [side for side in BLOCKS if side <= min(source.shape[1:])]
    if _bytes(queries, source.shape) > budget // 4:
        sides = []
    levels = [_Level.of(queries, source.shape, side, z.device) for side in sides]
    room = min(budget // 4, CACHE_FRIENDLY)
    left = budget - sum(level.rows.nbytes + level.group.nbytes for level in levels)
    if levels and levels[0].means_bytes(source) <= budget // 4:
        known = levels[0].means(source, torch.arange(len(source)), z.device, room)
        levels[0] = replace(levels[0], known=known)
        left -= known.nbytes
    operators = (queries, responses)
    answers, bounds, counts = torch.empty_like(z), [], []
    for m in range(len(z)):
        one, part, bound = z[m : m + 1], source, 0.0
        if levels:
            kept, lost = _candidates(one.double(), sigma, queries, source, eps, levels, room)
            if len(kept) < len(source) and len(kept) * source.images[0].nbytes <= budget // 2:
                part, bound = _subset(source, kept), 2 * lost
        copied = 0 if part is source else part.images.nbytes
        answers[m : m + 1] = planning.denoise(one, sigma, *operators, part, left - copied)
        bounds.append(bound)
        counts.append(len(part))
    return Pruned(answers, torch.tensor(bounds, dtype=torch.float64), torch.tensor(counts))


def _bytes(queries: Operator, shape: tuple[int, int, int]) -> int:
    """What making Q on blocks takes at most."""
    pixels = math.prod(queries.shape)
    if isinstance(queries, Dense):
        return 3 * queries.matrix.numel() * FLOAT64
    if not isinstance(queries, BINARY):
        return (4 * queries.k + pixels) * pixels * FLOAT64
    blocks = pixels // min(BLOCKS) ** 2
    return (3 * pixels + 6 * queries.k) * blocks * FLOAT64


@dataclass(frozen=True)
class _Level:
    """Q on blocks.

    Attributes:
        side: Of a block.
        rows: |B| min Q over each block, every different row once, shape (g, c or 1, blocks).
        group: The row of each estimator, shape (k,).
        known: The whole source's means over blocks, if there is room for them.
    """

    side: int
    rows: Float[Tensor, "g c blocks"]
    group: Int[Tensor, " k"]
    known: Float[Tensor, "n channels blocks"] | None = None

    @staticmethod
    def of(queries: Operator, shape: tuple[int, int, int], side: int, device) -> "_Level":
        if not isinstance(queries, BINARY):
            dense = queries.dense().detach()
            lowest = -functional.max_pool2d(-dense.view(queries.k, -1, *shape[1:]), side)
        else:  # rows of zeros and ones: a block counts if all of it is inside
            channels = shape[0] if len(queries.shape) == 3 else 1
            blocks = (shape[1] // side, shape[2] // side)
            eye = torch.eye(math.prod(blocks) * channels, dtype=torch.float64)
            inside = eye.view(-1, channels, *blocks)
            inside = inside.repeat_interleave(side, 2).repeat_interleave(side, 3)
            rest = (0, shape[2] - inside.shape[3], 0, shape[1] - inside.shape[2])
            inside = functional.pad(inside, rest).movedim(0, -1)
            sums = queries.apply(inside if len(queries.shape) == 3 else inside[0])
            lowest = (sums == side**2).double().view(queries.k, channels, *blocks)
        rows, group = (lowest.flatten(2) * side**2).to(device).unique(dim=0, return_inverse=True)
        return _Level(side, rows, group)

    def means_bytes(self, source: Source) -> int:
        """What the source's means over blocks take."""
        c, h, w = source.shape
        return len(source) * c * (h // self.side) * (w // self.side) * FLOAT64

    def means(
        self, source: Source, index: Tensor, device: torch.device, room: int
    ) -> Float[Tensor, "m c blocks"]:
        """Means over blocks of some images."""
        parts = index.split(max(1, room // (2 * math.prod(source.shape) * FLOAT64)))
        images = (source.read(part, torch.float64, device) for part in parts)
        return torch.cat([functional.avg_pool2d(x, self.side).flatten(2) for x in images])

    def bounds(
        self,
        z: Float[Tensor, "1 c h w"],
        source: Source,
        index: Tensor,
        room: int,
    ) -> Iterator[tuple[Tensor, Float[Tensor, "g m"]]]:
        """Lower bounds on the distances of each group, for some images at a time."""
        z_means = functional.avg_pool2d(z, self.side).flatten(2)
        per_x = (8 * z.numel() + 4 * len(self.rows)) * FLOAT64
        for part in index.split(max(1, room // per_x)):
            read = self.known is None
            x = self.means(source, part, z.device, room) if read else self.known[part]
            squares = (x - z_means).square_()
            if self.rows.shape[1] == 1:
                squares = squares.sum(1, keepdim=True)
            yield part, self.rows.flatten(1) @ squares.flatten(1).T


def _candidates(
    z: Float[Tensor, "1 c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    eps: float,
    levels: list[_Level],
    room: int,
) -> tuple[Int[Tensor, " m"], float]:
    """The images that may matter, and the share of any weight that the others carry at most."""
    index = torch.arange(len(source), device=z.device)
    near = _nearest(z, sigma, source, levels[0], index, room)
    reached = _reached(z, sigma, queries, source, near, room)
    threshold = math.log(eps / len(source))
    lost = 0.0
    for level in levels:
        least = torch.full((len(level.rows),), math.inf, dtype=torch.float64, device=z.device)
        least = least.scatter_reduce(0, level.group, reached, "amin")
        survivors, share = [], torch.zeros_like(least)
        for part, distances in level.bounds(z, source, index, room):
            above = _highest(distances, sigma, source, part) - least.unsqueeze(1)
            above += ROUNDING * (distances / (2 * sigma**2) + least.abs().unsqueeze(1))
            keep = (above > threshold).any(0)
            survivors.append(part[keep])
            share += above[:, ~keep].exp().sum(1)
        index = torch.cat(survivors)
        lost += share.max().item()
    return index, lost


def _nearest(
    z: Tensor, sigma: float, source: Source, level: _Level, index: Tensor, room: int
) -> Int[Tensor, " m"]:
    """For every group, the image whose log-weight may be the largest; each position once."""
    best = position = None
    for part, distances in level.bounds(z, source, index, room):
        value, at = _highest(distances, sigma, source, part).max(1)
        if best is None:
            best, position = value, part[at]
        else:
            position = torch.where(value > best, part[at], position)
            best = torch.maximum(value, best)
    return position.unique()


def _reached(
    z: Tensor, sigma: float, queries: Operator, source: Source, index: Tensor, room: int
) -> Float[Tensor, " k"]:
    """The largest log-weight of every estimator among some images."""
    queries, best = queries.to(z), torch.full((queries.k,), -math.inf, dtype=z.dtype)
    per_x = (8 * z.numel() + 4 * queries.k) * FLOAT64
    for part in index.split(max(1, room // per_x)):
        delta = (source.read(part, torch.float64, z.device) - z).square_()
        if len(queries.shape) == 2:
            delta = delta.sum(1)
        distances = queries.apply(delta.movedim(0, -1))
        best = torch.maximum(best.to(z), _highest(distances, sigma, source, part).amax(1))
    return best


def _highest(distances: Tensor, sigma: float, source: Source, index: Tensor) -> Tensor:
    """Log-weights at these distances."""
    ell = distances * (-1 / (2 * sigma**2))
    if source.log_weights is not None:
        ell += source.log_weights[index.to(source.log_weights.device)].to(ell)
    return ell


def _subset(source: Source, index: Tensor) -> Source:
    """Some of the images, with their weights."""
    index = index.to(source.images.device)
    weights = source.log_weights
    if weights is not None:
        weights = weights[index.to(weights.device)]
        weights = (weights - weights.max()).clamp(min=-700).exp()
    return Source(source.images[index], weights)
