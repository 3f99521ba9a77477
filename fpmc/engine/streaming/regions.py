"""The places in an image whose estimators share their source patches, as boundaries allow it."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["Region", "Span", "boundary_classes", "region_at"]


class Span(NamedTuple):
    """The places along one axis that share their source patches.

    Attributes:
        seen: The pixels their patches cover.
        side: The side of a patch.
        centres: The pixels they answer, as many as there are patches of that side.
    """

    seen: slice
    side: int
    centres: slice

    @property
    def count(self) -> int:
        """The number of places."""
        return self.centres.stop - self.centres.start


class Region(NamedTuple):
    """Places in an image whose estimators share the source patches of all of them."""

    rows: Span
    columns: Span

    @property
    def places(self) -> int:
        """The number of places."""
        return self.rows.count * self.columns.count

    @property
    def centres(self) -> tuple[slice, slice]:
        """The pixels they answer."""
        return self.rows.centres, self.columns.centres

    @property
    def seen(self) -> tuple[slice, slice]:
        """The pixels they see."""
        return self.rows.seen, self.columns.seen

    def patches(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "m d"]:
        """Every patch of the region, flattened, image by image and row by row."""
        windows = x[(..., *self.seen)]
        windows = windows.unfold(2, self.rows.side, 1).unfold(3, self.columns.side, 1)
        return windows.movedim(1, 3).flatten(0, 2).flatten(1)

    def add_patches(self, patches: Float[Tensor, "m d"], x: Float[Tensor, "n c h w"]) -> None:
        """The transpose of :meth:`patches`: every patch is added to x where it lies."""
        sides = self.rows.side, self.columns.side
        columns = patches.view(len(x), self.places, -1).mT
        part = x[(..., *self.seen)]
        part += functional.fold(columns, part.shape[2:], sides)

    def pixels(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c"]:
        """The pixels at the region's places, image by image and row by row."""
        return x[(..., *self.centres)].movedim(1, -1).flatten(0, 2)


def boundary_classes(h: int, w: int, p: int) -> Iterator[Region]:
    """The classes of pixels that share their source patches, those of one pixel left out.

    A pixel whose square of side p fits may move to every other such pixel: the middle. One whose
    square crosses a vertical border, and is clipped there, may move within its column; one at a
    horizontal border within its row; one in a corner not at all.

    Args:
        h: The images' height.
        w: Their width.
        p: The side of the square, 1 ≤ p ≤ min(h, w), centred as in :class:`fpmc.operators.Box`.

    Source: Niedoba et al. (2026), equations (62) to (68).
    """
    (rows, *border_rows), (columns, *border_columns) = _spans(h, p), _spans(w, p)
    if rows.count * columns.count > 1:
        yield Region(rows, columns)
    if rows.count > 1:
        yield from (Region(rows, column) for column in border_columns)
    if columns.count > 1:
        yield from (Region(row, columns) for row in border_rows)


def region_at(h: int, w: int, p: int, pixel: tuple[int, int]) -> Region:
    """The boundary class of a pixel, given by its row and column; other arguments as above."""
    return Region(
        *(
            next(s for s in _spans(side, p) if s.centres.start <= at < s.centres.stop)
            for side, at in zip((h, w), pixel, strict=True)
        )
    )


def _spans(side: int, p: int) -> list[Span]:
    """Along an axis: the middle, where the square fits, then each pixel at a border."""
    before, after = p // 2, (p + 1) // 2
    spans = [Span(slice(0, side), p, slice(before, side - after + 1))]
    for centre in (*range(before), *range(side - after + 1, side)):
        start, stop = max(0, centre - before), min(side, centre + after)
        spans.append(Span(slice(start, stop), stop - start, slice(centre, centre + 1)))
    return spans
