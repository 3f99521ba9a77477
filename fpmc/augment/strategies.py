r"""What is done to training images, one operation at a time, with EDM's distributions.

====================  ============================================  ================================
strategy              drawn                                         done
====================  ============================================  ================================
flips                 nothing                                       exact copies, mirrored
translations          t = round(side u / 8), u ~ U(−1, 1), per      exact copies, moved by t; the
                      axis                                          image goes on by reflection
translations,         t = side w / 8, w ~ N(0, 1), per axis         a map, by the filter of
fractional                                                          :mod:`fpmc.augment.geometry`
rotations             φ ~ U(−π, π)                                  the same
scalings              2^(0.2 w), w ~ N(0, 1)                        the same
====================  ============================================  ================================

Source: Karras et al. (2022), appendix F.2, and the pipeline published with it (NVlabs/edm 008a4e5);
Niedoba et al. (2026), section 4.3 and appendix B.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fpmc.augment import geometry
from fpmc.augment.copies import LABELS
from fpmc.source import to_float, to_uint8

__all__ = ["STRATEGIES", "Strategy"]

SHARE = 0.125
"""Of the side: the most that a translation by whole pixels is, the deviation of another."""

SCALE = 0.2
"""The standard deviation of the binary logarithm of a scaling."""

XFLIP, YFLIP, ZOOM, COSINE, SINE, RIGHT, DOWN = 0, 1, 2, 3, 4, 7, 8
"""Where a label has what."""

Size = tuple[int, int]
"""Height and width."""


class Strategy(NamedTuple):
    """An operation, and how its parameters are drawn.

    Attributes:
        draw: Parameters for so many draws of n images of a size, shape (draws, n, k).
        label: Their labels, shape (m, 9), from shape (m, k).
        move: The images, each by its parameters, uint8.
    """

    draw: Callable[[int, int, Size, torch.Generator], Float[Tensor, "draws n k"]]
    label: Callable[[Float[Tensor, "m k"], Size], Float[Tensor, "m 9"]]
    move: Callable[[UInt8[Tensor, "m c h w"], Float[Tensor, "m k"]], UInt8[Tensor, "m c h w"]]


def _nothing(draws, n, size, generator):
    return torch.zeros(draws, n, 0, dtype=torch.float64)


def _shifts(draws, n, size, generator):
    uniform = torch.rand(draws, n, 2, generator=generator, dtype=torch.float64) * 2 - 1
    return (uniform * SHARE * _sides(size)).round() + 0.0  # no negative zero


def _moves(draws, n, size, generator):
    normal = torch.randn(draws, n, 2, generator=generator, dtype=torch.float64)
    return normal * SHARE * _sides(size)


def _angles(draws, n, size, generator):
    uniform = torch.rand(draws, n, 1, generator=generator, dtype=torch.float64)
    return math.pi * (2 * uniform - 1)


def _zooms(draws, n, size, generator):
    return torch.randn(draws, n, 1, generator=generator, dtype=torch.float64)


def _sides(size: Size) -> Float[Tensor, " 2"]:
    """Width and height."""
    return torch.tensor(size[::-1], dtype=torch.float64)


def _label(parameters: Tensor, size: Size, columns: tuple[int, ...], what: Callable) -> Tensor:
    label = parameters.new_zeros(len(parameters), LABELS)
    label[:, columns] = what(parameters, size)
    return label


def _flip_label(column: int) -> Callable:
    return partial(_label, columns=(column,), what=lambda p, size: p.new_ones(len(p), 1))


def _warped(images: Tensor, maps: Float[Tensor, "m 2 3"]) -> UInt8[Tensor, "m c h w"]:
    return to_uint8(geometry.warp(to_float(images, torch.float64), maps))


def _shifted(images, parameters):
    x, y = parameters.long().T
    return geometry.shift(images, x, y)


_translated = partial(
    _label, columns=(RIGHT, DOWN), what=lambda p, size: p / (SHARE * _sides(size).to(p))
)

STRATEGIES = {
    "horizontal flips": Strategy(_nothing, _flip_label(XFLIP), lambda images, p: images.flip(3)),
    "vertical flips": Strategy(_nothing, _flip_label(YFLIP), lambda images, p: images.flip(2)),
    "translations": Strategy(_shifts, _translated, _shifted),
    "fractional translations": Strategy(
        _moves,
        _translated,
        lambda images, p: _warped(images, geometry.translation(*p.T)),
    ),
    "rotations": Strategy(
        _angles,
        partial(
            _label,
            columns=(COSINE, SINE),
            what=lambda p, size: torch.cat([p.cos() - 1, p.sin()], 1),
        ),
        lambda images, p: _warped(images, geometry.rotation(p[:, 0])),
    ),
    "scalings": Strategy(
        _zooms,
        partial(_label, columns=(ZOOM,), what=lambda p, size: p),
        lambda images, p: _warped(images, geometry.scaling((SCALE * p[:, 0]).exp2())),
    ),
}
"""By name, those that need no network."""
