"""Where the matrices of Q and R vanish: windows for a CPU, lists of tiles for a GPU.

Both are read off the same map, of which blocks of a matrix hold an entry that is not zero.
"""

import math
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from fpmc.operators import Dense, Operator

__all__ = ["Window", "Windowed", "occupied", "ready", "tile_lists"]

GROUP = 64
"""Neighbouring estimators that share a window: as many as a matrix product needs to run fast."""

MOST_IN_WINDOWS = 0.8
"""Part of a matrix up to which products on windows take less time than one of all of it."""

MOST_TILES = 0.85
"""Part of a matrix's tiles above which all are read: little is left to save."""


def occupied(
    matrix: Float[Tensor, "k p"], rows: int, columns: int
) -> Bool[Tensor, "row_blocks column_blocks"]:
    """Which blocks of a matrix, of so many rows and columns, hold an entry that is not zero."""
    entries = pad(matrix != 0, (0, -matrix.shape[1] % columns, 0, -len(matrix) % rows))
    return entries.unflatten(1, (-1, columns)).any(2).unflatten(0, (-1, rows)).any(1)


class Window(NamedTuple):
    """Neighbouring estimators, and the pixels from the first to the last that any of them sees."""

    rows: slice
    columns: slice

    @property
    def size(self) -> int:
        """Entries of the matrix inside."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


class Windowed(Operator):
    """A matrix that vanishes outside windows: what :func:`ready` makes of one, to multiply with.

    Args:
        shape: (h, w) or (c, h, w).
        matrix: Row k is the k-th q or r vector, shape (k, p), p the product of the shape.
        windows: Where it does not vanish; they do not overlap.
    """

    def __init__(
        self, shape: tuple[int, ...], matrix: Float[Tensor, "k p"], windows: Sequence[Window]
    ):
        self.shape, self.k = tuple(shape), len(matrix)
        self.blocks = [(window, matrix[window].contiguous()) for window in windows]

    @property
    def size(self) -> int:
        """Entries inside the windows."""
        return sum(window.size for window, _ in self.blocks)

    def to(self, like: Tensor) -> "Windowed":
        ready = copy(self)
        ready.blocks = [(window, block.to(like)) for window, block in self.blocks]
        return ready

    def _apply(self, a: Tensor) -> Tensor:
        flat = a.reshape(math.prod(self.shape), -1)
        result = flat.new_zeros(self.k, flat.shape[1])
        for (rows, columns), block in self.blocks:
            result[rows].addmm_(block.to(flat), flat[columns])
        return result.view(self.k, *a.shape[len(self.shape) :])

    def _transpose(self, b: Tensor) -> Tensor:
        flat = b.reshape(self.k, -1)
        result = flat.new_zeros(math.prod(self.shape), flat.shape[1])
        for (rows, columns), block in self.blocks:
            result[columns].addmm_(block.T.to(flat), flat[rows])
        return result.view(*self.shape, *b.shape[1:])


def ready(op: Operator, like: Tensor) -> Operator:
    """The operator, ready to act on arrays of this type, on this device; a matrix on windows.

    Args:
        op: Q or R.
        like: A tensor of the type and on the device.
    """
    if not isinstance(op, Dense):
        return op.to(like)
    matrix = op.matrix.detach().reshape(op.k, -1)
    windows = _windows(matrix, math.prod(op.shape[-2:]))
    if sum(window.size for window in windows) < MOST_IN_WINDOWS * matrix.numel():
        return Windowed(op.shape, matrix.to(like), windows)
    return op.to(like)


def tile_lists(
    matrix: Float[Tensor, "columns inner"], columns: int, inner: int
) -> tuple[Int[Tensor, "blocks tiles"] | None, Int[Tensor, " blocks"] | None]:
    """Where the tiles of a product's matrix that are not zero begin, and how many they are.

    Args:
        matrix: Its rows are columns of the product; what is summed over comes second.
        columns: Columns of a tile.
        inner: What a tile sums over.

    Returns:
        For each block of columns the index of every tile's first entry along what is summed over,
        those of tiles that are not zero first and rising, shape (blocks, tiles), int32; and how
        many are not zero, shape (blocks,), int32. (None, None) if too few are zero.
    """
    some = occupied(matrix, columns, inner)
    if some.double().mean() > MOST_TILES:
        return None, None
    starts = some.byte().argsort(dim=1, descending=True, stable=True) * inner
    return starts.int(), some.sum(1).int()


def _windows(matrix: Float[Tensor, "k p"], pixels: int) -> list[Window]:
    """The windows of groups of neighbouring rows, one for each channel in which they see pixels."""
    seen = occupied(matrix, GROUP, 1).cpu().unflatten(1, (-1, pixels))
    first = seen.byte().argmax(-1)
    last = pixels - seen.flip(-1).byte().argmax(-1)
    windows = []
    for group, channel in seen.any(-1).nonzero().tolist():
        start = channel * pixels
        columns = slice(start + int(first[group, channel]), start + int(last[group, channel]))
        windows.append(Window(slice(group * GROUP, min(len(matrix), (group + 1) * GROUP)), columns))
    return windows
