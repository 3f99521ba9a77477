"""How much the kernels hold at a time, so that their working memory stays under the budget."""

import math
from dataclasses import dataclass

import torch

from fpmc.engine.cuda.inputs import SAMPLE
from fpmc.engine.cuda.precisions import NOISY, Precision
from fpmc.engine.memory import FLOAT64
from fpmc.engine.problem import Problem
from fpmc.operators import Box, Dense, Identity, Operator

__all__ = [
    "MOST_AT_ONCE",
    "PROGRAMS",
    "ROWS",
    "Need",
    "Sizes",
    "choose",
    "need",
    "processors",
    "span",
]

ROWS = 32
"""Rows of an image whose sums a program for squares holds."""

PROGRAMS = 16
"""Programs for each of the GPU's processors: the last round wastes a sixteenth of them at most."""

MOST_AT_ONCE = 2**15
"""Noisy images that a grid of programs may have, and splits."""

FEWEST_IMAGES = 256
"""Source images whose weights are held at a time, if not those of all: enough tiles to share."""


@dataclass(frozen=True)
class Sizes:
    """What a call holds at a time.

    Attributes:
        b: Noisy images.
        n: Source images whose log-weights are kept, for each noisy image; 0 if none are.
        splits: Parts of the source that are summed side by side, at most.
        memory: Bytes of working memory, at most.
    """

    b: int
    n: int
    splits: int
    memory: int


@dataclass(frozen=True)
class Need:
    """Bytes of working memory.

    Attributes:
        once: Whatever is at a time.
        z: For each noisy image.
        z_split: For each noisy image and split of the source.
        z_image: For each noisy image and source image whose log-weights are kept.
    """

    once: int
    z: int
    z_split: int
    z_image: int

    @property
    def least(self) -> int:
        """For one noisy image, a source image at a time."""
        return self.once + self.z + self.z_split + self.z_image


def need(problem: Problem, precision: Precision) -> Need:
    """The working memory of the kernels and of what prepares their inputs.

    Sums of a split are a maximum and a mass for each estimator, and the mean's values if they are
    made in the same pass; a second pass makes the latter in the place of the former. The sums of
    one part of a source wait for those of the next.
    """
    (queries, responses), source = problem.operators, problem.source
    d, k, size = math.prod(source.shape), queries.k, precision.dtype.itemsize
    log_weights = 0 if source.log_weights is None else 2 * len(source) * FLOAT64
    sample = 6 * min(SAMPLE, len(source)) * d * FLOAT64 if precision.reduced else 0
    matrices = sum(op.matrix.numel() for op in (queries, responses) if isinstance(op, Dense))
    sums = 2 * k + d if isinstance(responses, Identity) else max(2 * k, d)
    merged = sums * size if len(source.parts) > 1 else 0
    return Need(
        once=log_weights + sample + 2 * matrices * FLOAT64,
        z=(8 * d + 4 * k) * FLOAT64 + merged,
        z_split=sums * size,
        z_image=k * size if isinstance(responses, Dense) else 0,
    )


def choose(
    problem: Problem, batch: int, device: torch.device, precision: Precision
) -> Sizes | None:
    """As many noisy images as fit, with all log-weights kept if that fits for one; None if none do.

    Up to a quarter of the room is for splits of the source, so that there are programs enough.
    """
    wants, size = need(problem, precision), len(problem.source)
    queries, limit = problem.queries, problem.budget
    if limit < wants.least:
        return None
    room, per_z = limit - wants.once, wants.z + wants.z_split
    side_by_side = 1 if isinstance(queries, Box) else NOISY
    programs = -(-PROGRAMS * processors(device) // _blocks(queries, precision))
    for_splits = min(
        room // 4, limit - wants.least, programs * min(batch, side_by_side) * wants.z_split
    )
    room -= for_splits
    n = size if wants.z_image and per_z + size * wants.z_image <= room else 0
    if wants.z_image and not n:
        n = max(1, min(FEWEST_IMAGES, (room - per_z) // wants.z_image))
    b = min(batch, MOST_AT_ONCE, room // (per_z + n * wants.z_image))
    if b < batch:
        b = _filling(b, side_by_side)
    if n and n < size:
        n = min(size, (room - b * per_z) // (b * wants.z_image))
    splits = min(-(-programs // -(-b // side_by_side)), 1 + for_splits // (b * wants.z_split))
    splits = max(1, min(splits, size, MOST_AT_ONCE))
    per_z = wants.z + splits * wants.z_split + n * wants.z_image
    return Sizes(b, n, splits, wants.once + b * per_z)


def span(size: int, splits: int, tile: int) -> int:
    """Source images of a split, whole tiles of them; fewer splits may then do."""
    return -(-size // (splits * tile)) * tile


def _blocks(queries: Operator, precision: Precision) -> int:
    """Programs for a few noisy images and one split."""
    if isinstance(queries, Box):
        return -(-queries.grid[0] // ROWS)
    return -(-queries.k // precision.tiles.columns)


def processors(device: torch.device) -> int:
    """A GPU's processors; 1 elsewhere."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _filling(b: int, side_by_side: int) -> int:
    """The largest number up to b that fills the tiles: a multiple of theirs, or a power of two."""
    return b // side_by_side * side_by_side if b >= side_by_side else 2 ** (b.bit_length() - 1)
