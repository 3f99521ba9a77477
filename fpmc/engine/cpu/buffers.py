"""What the compiled squares are asked, the buffers of their threads, and the bytes of both."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpmc.engine.cpu.compiled import LANES
from fpmc.engine.cpu.running_sums import Buffers, Query, Spread
from fpmc.engine.cpu.squares_vjp import Slopes
from fpmc.engine.cpu.threads import Need
from fpmc.engine.memory import FLOAT32, FLOAT64
from fpmc.engine.problem import Problem, log_weights, parts
from fpmc.engine.units import in_units, scale
from fpmc.operators import Box, Identity
from fpmc.source import Source

__all__ = ["Part", "as_parts", "buffers", "empty", "need", "slopes", "spread"]


class Part(NamedTuple):
    """What the kernels read of a part of the source.

    Attributes:
        query: The noisy images, and the part's log-weights.
        x: Its images, shape (n, c, h, w).
        needed: Whether a second pass needs a tile, shape (b, tiles); a first pass writes it.
    """

    query: Query
    x: np.ndarray
    needed: np.ndarray


def need(
    queries: Box, responses: Box | Identity, source: Source, *, back: bool, moving: bool = False
) -> Need:
    """The working memory of an answer, or of going back; moving as for :func:`buffers`."""
    c, h, w = source.shape
    d, k, grid_w = c * h * w, queries.k, queries.grid[1]
    tile = d * max(source.images.dtype.itemsize, FLOAT32 * moving)
    query = ((queries.p + 1) * w + grid_w) * FLOAT64 + grid_w * FLOAT32
    query += 2 * queries.p * FLOAT64 * moving
    tiles = sum(-(-len(part) // LANES) for part in source.parts)
    if back:
        spread = (queries.p + 2) * w * FLOAT32
        slopes = ((_side(responses) + 1) * w + grid_w) * FLOAT64
        thread = LANES * (tile + query + spread + slopes)
        return Need(thread, (6 * d + 5 * k) * FLOAT64 + tiles, (d + 3 * k) * FLOAT64)
    spread = (responses.p + 2) * w * FLOAT32 if isinstance(responses, Box) else 0
    return Need(
        LANES * (tile + query + spread), (4 * d + 4 * k) * FLOAT64 + tiles, (d + 2 * k) * FLOAT64
    )


def as_parts(z: Tensor, problem: Problem) -> list[Part]:
    """What these noisy images ask of each part of the source, with the squares of Q."""
    source = problem.source
    in_stored, factor = in_units(z, source), scale(problem.sigma, source)
    found = []
    for x, prior in parts(source, log_weights(source, in_stored)):
        prior = in_stored.new_empty(0) if prior is None else prior
        query = Query(in_stored.numpy(), prior.numpy(), factor, problem.queries.before)
        needed = torch.ones(len(z), -(-len(x) // LANES), dtype=torch.bool)
        found.append(Part(query, x.numpy(), needed.numpy()))
    return found


def buffers(queries: Box, x: np.ndarray, *, moving: bool = False) -> Buffers:
    """A thread's, for distances under these squares to images like x.

    Where squares move within images, a tile is read so often that it pays to keep bytes as float32.
    Then the sums along columns have p zeros before and after them.
    """
    (c, h, w), grid_w = x.shape[1:], queries.grid[1]
    dtype = torch.from_numpy(x[:0]).dtype
    dtype = torch.float32 if moving and dtype == torch.uint8 else dtype
    tile = torch.zeros(c, h, w, LANES, dtype=dtype).numpy()
    ring = torch.zeros(queries.p, w, LANES, dtype=torch.float64).numpy()
    column = torch.zeros(w + 2 * queries.p * moving, LANES, dtype=torch.float64).numpy()
    totals, weights = empty((grid_w, LANES)), empty((grid_w, LANES), torch.float32)
    return Buffers(tile, ring, column, totals, weights)


def slopes(g: np.ndarray, queries: Box, responses: Box | Identity) -> Slopes:
    """A thread's, for s."""
    w = queries.shape[1]
    shapes = ((_side(responses), w, LANES), (w, LANES), (queries.grid[1], LANES))
    return Slopes(g, responses.before, *map(empty, shapes))


def spread(op: Box) -> Spread:
    """A thread's, for the transpose of these squares."""
    w = op.shape[1]
    shapes = ((op.p, w, LANES), (w, LANES), (w, LANES))
    return Spread(*(empty(shape, torch.float32) for shape in shapes))


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> np.ndarray:
    """An array that PyTorch allocates, whose memory it aligns and tests can count."""
    return torch.empty(shape, dtype=dtype).numpy()


def _side(op: Box | Identity) -> int:
    return op.p if isinstance(op, Box) else 1
