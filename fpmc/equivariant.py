r"""Collections whose estimators also see the source's images translated.

In the general form, every estimator has a source of its own,
:math:`S_k = \{T x : x \in S, T \in \mathcal{T}_k\}`, the images translated by the set that the
symmetry of a convolution allows it.

Source: Kamb and Ganguli (2025); Niedoba et al. (2026), appendix A.2.2.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc import engine
from fpmc.checks import as_whole_number
from fpmc.denoiser import DropIn
from fpmc.engine.memory import resolve
from fpmc.engine.streaming.translations import Region, Span, denoise_cyclic, denoise_region
from fpmc.modes import not_differentiable, without_autograd
from fpmc.operators import Box, Identity
from fpmc.source import Source, as_source

__all__ = ["Equivariant", "boundary_classes"]


class Equivariant(DropIn):
    """A collection over the translations of its source, called as ``denoiser(z, sigma)``.

    Answers lie in [-1, 1] but for rounding. They are not differentiable: a call for a gradient is
    an error.

    The translated images are never made: see
    :mod:`fpmc.engine.streaming.translations`.

    Args:
        patch_sizes: A function from sigma to the side p of the squares that the estimators see,
            clipped at the border, with a one-hot response each: a square that fits is compared with
            the source's squares at every place where it fits, one that a border cuts with those
            that this border cuts alike. None for whole images that are translated cyclically.
        source: S.
        budget: Bytes of working memory that a call may take (inputs and result not counted); 1 GiB
            if left out.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the budget is not positive; on a call, if it is too small.

    Source: Niedoba et al. (2026), equations (60) to (68).
    """

    def __init__(
        self,
        patch_sizes: Callable[[float], int] | None,
        source: Source,
        *,
        budget: int | None = None,
    ):
        self.source = as_source(source)
        self.budget = resolve(budget)
        if patch_sizes is not None and not callable(patch_sizes):
            raise TypeError(
                f"patch_sizes: got {patch_sizes!r}, wanted a function of sigma, or None"
            )
        self._patch_sizes = patch_sizes

    def __repr__(self) -> str:
        return f"Equivariant({self.source!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self.source.shape

    def _move(self, device: torch.device) -> None:
        self.source = self.source.to(device)

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        if self._patch_sizes is None:
            x_hat = denoise_cyclic(z, sigma, self.source, self.budget)
        else:
            p = as_whole_number(self._patch_sizes(sigma), "patch_sizes", 1, min(z.shape[2:]))
            x_hat = _denoise_patches(z, sigma, p, self.source, self.budget)
        return not_differentiable(x_hat, "a collection over translations", z)


@without_autograd
def _denoise_patches(
    z: Float[Tensor, "b c h w"], sigma: float, p: int, source: Source, budget: int
) -> Float[Tensor, "b c h w"]:
    """Each pixel's posterior mean over all source patches of its boundary class.

    A pixel in a corner shares its source patches with no other: LS, of squares of side p clipped at
    the border, answers it.
    """
    h, w = z.shape[2:]
    answer = engine.denoise(z, sigma, Box((h, w), p, "clip"), Identity((h, w)), source, budget)
    for region in boundary_classes(h, w, p):
        answer[(..., *region.centres)] = denoise_region(z, sigma, region, source, budget)
    return answer


def boundary_classes(h: int, w: int, p: int) -> Iterator[Region]:
    """The classes of pixels that share their source patches, those of one pixel left out.

    A pixel whose square of side p fits may move to every other such pixel: the middle. One whose
    square crosses a vertical border, and is clipped there, may move within its column; one at a
    horizontal border within its row; one in a corner not at all.

    Args:
        h: The images' height.
        w: Their width.
        p: The side of the square, 1 ≤ p ≤ min(h, w), centred as in :class:`fpmc.operators.Box`.

    Source: Kamb and Ganguli (2025); Niedoba et al. (2026), equations (62) to (68).
    """
    (rows, *border_rows), (columns, *border_columns) = _spans(h, p), _spans(w, p)
    if rows.count * columns.count > 1:
        yield Region(rows, columns)
    if rows.count > 1:
        yield from (Region(rows, column) for column in border_columns)
    if columns.count > 1:
        yield from (Region(row, columns) for row in border_rows)


def _spans(side: int, p: int) -> list[Span]:
    """Along an axis: the middle, where the square fits, then each pixel at a border."""
    before, after = p // 2, (p + 1) // 2
    spans = [Span(slice(0, side), p, slice(before, side - after + 1))]
    for centre in (*range(before), *range(side - after + 1, side)):
        start, stop = max(0, centre - before), min(side, centre + after)
        spans.append(Span(slice(start, stop), stop - start, slice(centre, centre + 1)))
    return spans
