"""Which places of which images an output pixel is made of, where the source is translated."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.engine.problem import Problem
from fpmc.engine.streaming.orbit import Orbit
from fpmc.engine.streaming.posterior import largest
from fpmc.engine.streaming.regions import Region, region_at
from fpmc.engine.streaming.translations import sizes, tiles
from fpmc.modes import without_autograd
from fpmc.operators import Ones

__all__ = ["Places", "heaviest", "per_image"]


class Places(NamedTuple):
    """The n source pixels with the largest weights, in order, for each of b noisy images.

    Attributes:
        weights: Their weights, float64; those of all source pixels of the class sum to 1.
        images: The images' positions in the source.
        rows: The pixels' rows in them.
        columns: Their columns.
    """

    weights: Float[Tensor, "b n"]
    images: Int[Tensor, "b n"]
    rows: Int[Tensor, "b n"]
    columns: Int[Tensor, "b n"]


def per_image(problem: Problem, pixel: tuple[int, int]) -> int:
    """How many places of a source image a pixel's posterior runs over."""
    h, w = problem.source.shape[1:]
    if isinstance(problem.queries, Ones):
        return h * w
    return region_at(h, w, problem.queries.p, pixel).places


@without_autograd
def heaviest(
    z: Float[Tensor, "b c h w"], problem: Problem, pixel: tuple[int, int], n: int
) -> Places:
    """The source pixels that an output pixel is made of, those with the largest weights.

    Args:
        z: Noisy images, shape (b, c, h, w).
        problem: What is asked, translated.
        pixel: The output pixel's row and column.
        n: How many, at most as many as there are.

    Raises:
        ValueError: If the budget is too small.
    """
    cyclic = isinstance(problem.queries, Ones)
    region = None if cyclic else region_at(*z.shape[2:], problem.queries.p, pixel)
    found = []
    for one in z.split(1):
        parts = _of_orbit(one, problem) if cyclic else _of_region(one, problem, region, pixel)
        found.append(largest((ell[None] for ell in parts), n))
    weights, at = (torch.cat(each) for each in zip(*found, strict=True))
    h, w = z.shape[2:]
    if cyclic:
        images, moves = at // (h * w), at % (h * w)
        down, right = (pixel[0] - moves // w) % h, (pixel[1] - moves % w) % w
        return Places(weights, images, down, right)
    images, places = at // region.places, at % region.places
    rows = places // region.columns.count + region.rows.centres.start
    columns = places % region.columns.count + region.columns.centres.start
    return Places(weights, images, rows, columns)


def _of_orbit(z: Tensor, problem: Problem) -> Iterator[Tensor]:
    """Log-weights of a noisy image, by image and translation."""
    path = Orbit(problem)
    _, n = path.size(1, z.device, back=False)
    for _, ell in path.tiles(z, n):
        yield ell.flatten()


def _of_region(z: Tensor, problem: Problem, region: Region, pixel) -> Iterator[Tensor]:
    """Log-weights of a noisy image's patch, by image and place."""
    size = sizes(problem, 1, region, z.device, back=False)
    window = [slice(None), slice(None)]
    for span, at in zip(region, pixel, strict=True):
        first = span.seen.start + at - span.centres.start
        window.append(slice(first, first + span.side))
    patch = z[tuple(window)].double().flatten()
    for _, patches, bias in tiles(problem, region, size.n, z.device):
        yield torch.addmv(bias, patches, patch, alpha=problem.sigma**-2)
