"""How much of the batch and of the source to hold at once, so that a sum stays under its budget."""

import math
from dataclasses import dataclass

import torch

from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, resolve, too_small
from fpmc.operators import Dense, Ones, Operator

__all__ = ["Tile", "tile"]

FEWEST_IMAGES = 8
"""Source images at a time below which products run too slowly."""

MOST_KEPT = 0.5
"""The part of the budget that kept log-weights may take."""

FEWEST_PAIRS = 128
"""Pairs of images at a time below which products run too slowly for keeping to pay."""


@dataclass(frozen=True)
class Tile:
    """b noisy images against n source images at a time.

    Attributes:
        b: Noisy images.
        n: Source images.
        kept: Whether what is found of b noisy images and the whole source is kept until the second
            pass over it.
    """

    b: int
    n: int
    kept: bool = False


def tile(
    batch: int,
    source_size: int,
    shape: tuple[int, int, int],
    operators: tuple[Operator, ...],
    budget: int | None = None,
    device: torch.device | None = None,
    *,
    whole_images: bool = False,
    rows: int = 0,
    held: int = 0,
    keep: int = 0,
) -> Tile:
    """Choose how many noisy images and source images a sum takes at a time.

    Counts what the streaming engine allocates in float64: per noisy image (accumulators), per
    source image (a converted copy), per pair of the two (differences, log-weights, window sums)
    and once (the operators' own matrices and their gradients). On a CPU the pairs are kept within
    64 MiB, so that their arrays stay in cache: the answer does not depend on it, only the time.

    Args:
        batch: Number of noisy images.
        source_size: Number of source images N.
        shape: (c, h, w).
        operators: Q, and R if the sum answers in pixels.
        budget: Bytes of working memory; 1 GiB if left out.
        device: Where the sum runs.
        whole_images: Whether the sum makes one image per estimator.
        rows: Further numbers per estimator and noisy image, such as draws.
        held: Bytes of the budget that the caller's own arrays take.
        keep: Bytes per estimator and pair of images that would save a product with a dense Q if
            they were kept; 0 if nothing would.

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If one noisy image against one source image does not fit.
    """
    budget = resolve(budget)
    dimensions, k = math.prod(shape), operators[0].k
    matrices = [op.matrix.numel() for op in operators if isinstance(op, Dense)]
    once = held + 2 * sum(matrices) * FLOAT64
    per_z = (6 * dimensions + (6 + rows) * k + whole_images * 3 * k * dimensions) * FLOAT64
    per_x = 5 * dimensions * FLOAT64
    per_pair = 4 * k * FLOAT64 + sum(_pair_bytes(op) for op in operators)

    room = budget - once
    least = per_z + per_x + per_pair
    if room < least:
        raise too_small(budget, once + least, f"images of shape {shape} and {k} estimators")
    all_kept = (keep + FLOAT64 // FEWEST_IMAGES) * k * source_size  # and each tile's peak
    kept = keep > 0 and all_kept <= MOST_KEPT * room and all_kept + least <= room
    if kept:
        batch = min(batch, int(MOST_KEPT * room) // all_kept)
        batch = min(batch, (room - per_x - per_pair) // (per_z + all_kept))
        per_z += all_kept
    fewest = min(FEWEST_IMAGES, source_size, (room - per_z) // (per_x + per_pair))
    b = min(batch, (room - fewest * per_x) // (per_z + fewest * per_pair))
    room -= b * per_z
    if device is None or device.type == "cpu":
        room = min(room, 2 * CACHE_FRIENDLY)  # few steps reach the peak that is counted
        b = max(1, min(b, room // (fewest * per_pair)))
    n = max(1, min(source_size, room // (per_x + b * per_pair)))
    too_few = b * n < min(FEWEST_PAIRS, batch * source_size)
    if kept and (too_few or n < min(FEWEST_IMAGES, source_size)):
        return tile(batch, source_size, shape, operators, budget, device, held=held)
    return Tile(b, n, kept)


def _pair_bytes(op: Operator) -> int:
    """Bytes for one noisy and one source image: what differencing, Q and R hold at their peak."""
    return 0 if isinstance(op, Ones) else 6 * math.prod(op.shape) * FLOAT64
