r"""A maze with two ways from left to right, and what a path in it is worth.

A path is 64 places (x, y) of a point robot, equally spaced in time: an image of 2 channels, one row
and 64 columns. Pixel values from -1 to 1 stand for -4 to 4 cells. Corridors are one cell wide and
surround a block; a path starts in the left one and ends in the right one. With :math:`\theta_i` the
angle of its i-th place around the block's centre, it goes above the block if

.. math:: \sum_i \angle(\theta_i \to \theta_{i+1}) < 0, \qquad \angle \in (-\pi, \pi] ,

clockwise, and below otherwise. The map is one for PointMaze of gymnasium-robotics.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpmc.checks import as_images

__all__ = ["EXTENT", "LONGEST", "MAP", "STEPS", "above", "cells", "different", "succeeds", "walls"]

MAP = (
    (1, 1, 1, 1, 1, 1, 1, 1, 1),
    (1, 0, 0, 0, 0, 0, 0, 0, 1),
    (1, 0, 1, 1, 1, 1, 1, 0, 1),
    (1, 0, 1, 1, 1, 1, 1, 0, 1),
    (1, 0, 1, 1, 1, 1, 1, 0, 1),
    (1, 0, 0, 0, 0, 0, 0, 0, 1),
    (1, 1, 1, 1, 1, 1, 1, 1, 1),
)
"""1 is a wall. The top row has the largest y; the origin is the centre."""
EXTENT = 4.0
"""Cells from the origin to a pixel value of 1."""
STEPS = 64
"""Places of a path."""
LONGEST = 0.5
"""In cells, the longest step of a path that is in one piece, half the width of a corridor."""


def cells(images: Float[Tensor, "b 2 1 t"]) -> Float[Tensor, "b t 2"]:
    """The places of paths, x and y in cells.

    Args:
        images: Paths in [-1, 1], shape (b, 2, 1, t), t of at least two.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If they have another shape, or NaN.
    """
    images = as_images(images, "images", empty=True)
    if images.shape[1:3] != (2, 1) or images.shape[3] < 2:
        raise ValueError(f"images: got shape {tuple(images.shape)}, wanted (b, 2, 1, t), t ≥ 2")
    return EXTENT * images[:, :, 0].mT


def walls() -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """The walls' cells, each by its lower left and its upper right corner, in cells."""
    height, width = len(MAP), len(MAP[0])
    lower = torch.tensor(
        [
            (column - width / 2, height / 2 - row - 1)
            for row in range(height)
            for column in range(width)
            if MAP[row][column]
        ]
    )
    return lower, lower + 1


def succeeds(images: Float[Tensor, "b 2 1 t"]) -> Bool[Tensor, " b"]:
    """Whether a robot could follow a path to its end: it is in one piece, and off the walls.

    No step is longer than :data:`LONGEST`; no step's straight line, ends included, has a place
    inside of a wall or beyond the outer ones. The robot counts as a point: its own radius, 0.1, is
    left for the rounding of pixels.

    Arguments and errors as for :func:`cells`.
    """
    places = cells(images)
    start, step = places[:, :-1], places.diff(dim=1)  # (b, t - 1, 2)
    whole = step.norm(dim=-1).le(LONGEST).all(1)
    edge = torch.tensor([len(MAP[0]) / 2, len(MAP) / 2]).to(places)
    inside = places.abs().lt(edge).all(2).all(1)
    return whole & inside & ~_meets(start, step).flatten(1).any(1)


def _meets(start: Float[Tensor, "b s 2"], step: Float[Tensor, "b s 2"]) -> Bool[Tensor, "b s n"]:
    """Whether a line from start to start + step has a place inside of a wall.

    Along each axis it is between the wall's sides for an interval of its parameter; the line meets
    the wall if the two intervals and [0, 1] have a place in common.
    """
    lower, upper = (corner.to(start) for corner in walls())
    nearly = torch.where(step.abs() < 1e-9, 1e-9, step)[:, :, None]
    ends = torch.stack([(c - start[:, :, None]) / nearly for c in (lower, upper)])
    first = ends.amin(0).amax(-1).clamp(min=0)
    last = ends.amax(0).amin(-1).clamp(max=1)
    at_rest = ((start[:, :, None] > lower) & (start[:, :, None] < upper)).all(-1)
    return (first < last) | at_rest


def above(images: Float[Tensor, "b 2 1 t"]) -> Bool[Tensor, " b"]:
    """Whether a path goes above the block, by the sign of the angle that it turns.

    Arguments and errors as for :func:`cells`.
    """
    x, y = cells(images).unbind(-1)
    turned = torch.atan2(y, x).diff(dim=1)
    turned = turned - 2 * math.pi * torch.ceil((turned - math.pi) / (2 * math.pi))
    return turned.sum(1) < 0


def different(works: Bool[Tensor, "m b"], high: Bool[Tensor, "m b"]) -> Float[Tensor, " b"]:
    """The share of pairs of draws of which both succeed, one above the block and one below.

    Without bias it is the probability of such a pair: one half where all draws succeed and the ways
    are equally likely.

    Args:
        works: Whether a draw succeeds, m ≥ 2 draws for each start and goal.
        high: Whether it goes above.

    Raises:
        ValueError: If the shapes differ, or there is one draw.
    """
    if works.shape != high.shape or works.ndim != 2 or len(works) < 2:
        raise ValueError(
            f"works, high: got shapes {tuple(works.shape)} and {tuple(high.shape)}, wanted (m, b) "
            "for both, m ≥ 2"
        )
    up, down = (works & high).sum(0), (works & ~high).sum(0)
    return up * down / math.comb(len(works), 2)
