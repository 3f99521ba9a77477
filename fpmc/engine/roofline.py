"""What a call costs at least: its operations, its memory traffic, and what a device can do."""

import math
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import torch

from fpmc.engine.problem import Problem
from fpmc.engine.sparsity import Windowed
from fpmc.engine.streaming.arithmetic import Dtypes
from fpmc.engine.streaming.regions import Region
from fpmc.engine.streaming.sizes import Tile
from fpmc.operators import Box, Dense, Ones, Operator

__all__ = [
    "Cost", "Peaks", "cuda", "displacements", "measure_peaks", "orbit", "squares", "streaming",
    "translations", "whole_image",
]  # fmt: skip

EXP = 15
"""Operations that an exponential counts for."""


class Peaks(NamedTuple):
    """What a device can do.

    Attributes:
        flops: Operations a second, of a float64 matrix product.
        flops32: The same, of a float32 one.
        bytes: Bytes a second, of a copy, read and written.
    """

    flops: float
    flops32: float
    bytes: float


class Cost(NamedTuple):
    """What a call takes.

    Attributes:
        flops: Operations in float64.
        flops32: Operations in float32.
        bytes: Bytes of the source and its copies that pass through main memory.
    """

    flops: float
    flops32: float
    bytes: float


@lru_cache(maxsize=4)
def measure_peaks(device: str | torch.device = "cpu") -> Peaks:
    """Time matrix products and a copy, the best of three each, with the threads there are.

    Args:
        device: Where.
    """
    device = torch.device(device)
    long = torch.ones(2**23, dtype=torch.float64, device=device)
    copy = torch.empty_like(long)
    return Peaks(
        *(_product_rate(dtype, device) for dtype in (torch.float64, torch.float32)),
        2 * long.nbytes / _fastest(lambda: copy.copy_(long), device),
    )


def whole_image(problem: Problem, batch: int, b: int) -> Cost:
    """Of the compiled whole image: a difference, its square and a weighted sum per dimension."""
    source = problem.source
    per_pair = 5 * math.prod(source.shape) + EXP
    return Cost(len(source) * batch * per_pair, 0, -(-batch // b) * source.images.nbytes)


def squares(problem: Problem, batch: int, b: int) -> Cost:
    """Of compiled squares: δ and two running sums, log-weights, and what spreads them."""
    (queries, responses), source = problem.operators, problem.source
    c, h, w = source.shape
    passes, pairs = _passes(responses), len(source) * batch
    per_pass = (3 * c + 1) * h * w + 5 * queries.k
    spread = 0 if responses.partition else 4 * h * w
    return Cost(
        pairs * passes * per_pass,
        pairs * (passes * EXP * queries.k + spread + 2 * c * h * w),
        -(-batch // b) * passes * source.images.nbytes,
    )


def displacements(problem: Problem, batch: int, b: int) -> Cost:
    """Of compiled sums over displacements: as squares, for every pixel of every overlap."""
    source, p = problem.source, problem.queries.p
    c, *sides = source.shape
    pairs = len(source) * batch
    overlaps = math.prod(side**2 - (p - 1) * p for side in sides)
    squares = math.prod(side + (side - p) * (side - p + 1) for side in sides)
    return Cost(
        pairs * ((3 * c + 3) * overlaps + 3 * squares),
        pairs * (EXP + 2 * c + 1) * squares,
        -(-batch // b) * source.images.nbytes,
    )


def translations(problem: Problem, regions: Iterable[Region], batch: int, b: int) -> Cost:
    """Of matrix products of patches."""
    source = problem.source
    c, per_pair = source.shape[0], 0
    for region in regions:
        d = c * region.rows.side * region.columns.side
        per_pair += region.places**2 * (2 * d + EXP + 2 * c)
    passes = -(-batch // b)
    moved = passes * len(source) * math.prod(source.shape) * 8
    return Cost(len(source) * batch * per_pair, 0, moved)


def orbit(problem: Problem, batch: int, b: int) -> Cost:
    """Of Fourier transforms: of each image, of each pair two, and their products."""
    source = problem.source
    c, h, w = source.shape
    transform = 2.5 * h * w * math.log2(h * w)
    per_pair = 2 * transform + (8 * c + EXP) * h * w
    passes = -(-batch // b)
    operations = len(source) * (batch * per_pair + passes * c * transform)
    return Cost(operations, 0, passes * len(source) * math.prod(source.shape) * 8)


def cuda(problem: Problem, batch: int, b: int, *, kept: bool) -> Cost:
    """Of the CUDA kernels, of dense matrices all, though tiles of zeros are left out."""
    (queries, responses), source = problem.operators, problem.source
    d, passes, pairs = math.prod(source.shape), _passes(responses), len(source) * batch
    applied = 1 if kept and isinstance(queries, Dense) else passes
    operations = applied * (3 * d + _operations(queries, d)) + _operations(responses, d) + 2 * d
    operations *= pairs
    weights = pairs * passes * EXP * queries.k
    return Cost(
        operations if problem.exact else 0,
        weights + (0 if problem.exact else operations),
        -(-batch // b) * passes * source.images.nbytes,
    )


def streaming(problem: Problem, types: Dtypes, batch: int, size: Tile) -> Cost:
    """Of the streaming engine.

    Args:
        problem: What is asked, Q and R as they are multiplied with: on windows, where they are.
        types: The types of log-weights and of weights.
        batch: Number of noisy images.
        size: How much of them, and of the source, at a time.
    """
    (queries, responses), source = problem.operators, problem.source
    d, passes, pairs = math.prod(source.shape), _passes(responses), len(source) * batch
    applied = 1 if size.kept else passes
    differences = 0 if isinstance(queries, Ones) else 3 * d
    first = applied * (differences + _operations(queries, d)) + passes * 2 * queries.k
    second = passes * EXP * queries.k + _operations(responses, d) + 2 * d
    counts = list(zip((first, second), types, strict=True))
    return Cost(
        pairs * sum(n for n, dtype in counts if dtype == torch.float64),
        pairs * sum(n for n, dtype in counts if dtype != torch.float64),
        -(-batch // size.b) * passes * len(source) * 4 * d * types[0].itemsize,
    )


def _passes(responses: Operator) -> int:
    """Passes over the source."""
    return 1 if responses.partition else 2


def _operations(op: Operator, d: int) -> int:
    """What an operator takes for one pair of images of d dimensions."""
    if isinstance(op, Dense):
        return 2 * op.matrix.numel()
    if isinstance(op, Windowed):
        return 2 * op.size
    if isinstance(op, Box):
        return 4 * math.prod(op.shape) * op.p.bit_length()
    return 2 * d if isinstance(op, Ones) else 0


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a matrix product."""
    a = torch.ones(1536, 1536, dtype=dtype, device=device)
    product = torch.empty_like(a)
    return 2 * len(a) ** 3 / _fastest(lambda: torch.mm(a, a, out=product), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, the best of three."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
