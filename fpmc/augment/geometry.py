r"""Images moved by affine maps through a wavelet's filter, and exact moves of whole pixels.

With U the matrix that continues an axis by reflection and samples it twice as finely, S bilinear
sampling and D the way back to the pixels of an image,

.. math:: \tilde x = D\, S_G\big(U x U^\top\big)\, D^\top .

The filter is that of the sym6 wavelet, whose shifts by two are orthonormal: without a move, D takes
back what U did. It is nearly symmetric only: where an axis is turned round on the way, the image
moves by 0.1 pixels along it. Sources: Karras et al. (2020), "Training Generative Adversarial
Networks with Limited Data", appendix B; Daubechies (1992), "Ten Lectures on Wavelets".
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = [
    "REACH",
    "TAPS",
    "bytes_per_image",
    "rotation",
    "scaling",
    "shift",
    "translation",
    "warp",
]

TAPS = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""The low-pass filter of the sym6 wavelet: ``dec_lo`` of PyWavelets 1.8. Their squares sum to 1."""

REACH = len(TAPS) // 2
"""Pixels that the two filters see beyond an image's border, together."""


class _Axis(NamedTuple):
    """U and D along an axis of so many pixels.

    Attributes:
        up: U, shape (2 (3 side − 2), side).
        down: D, shape (side, 2 (side + 6)).
    """

    up: Float[Tensor, "fine side"]
    down: Float[Tensor, "side sampled"]


def warp(
    images: Float[Tensor, "n c h w"], maps: Float[Tensor, "n 2 3"]
) -> Float[Tensor, "n c h w"]:
    """Images, each moved by an affine map; what lies outside is the image, reflected.

    The reflection does not repeat the edge, and ends side − 1 pixels away: farther out all is 0,
    the grey in the middle of [-1, 1]. (EDM's code pads as far as the farthest-moving image of a
    batch needs, which is the same to 1e-6 and may depend on the batch.)

    Args:
        images: Images in [-1, 1], shape (n, c, h, w), float64.
        maps: From a place of the moved image to that of the image it shows, as (x, y, 1) ↦ (x, y)
            in pixels from the centre, x to the right and y downwards: shape (n, 2, 3).

    Returns:
        The moved images, shape (n, c, h, w); the filter may leave [-1, 1] by a little.

    Raises:
        ValueError: If a side has less than 7 pixels, beyond whose reflection the filter would see.
    """
    h, w = images.shape[2:]
    if min(h, w) <= REACH:
        least = REACH + 1
        raise ValueError(f"images: got {h} × {w} pixels, wanted at least {least} × {least}")
    rows, columns = (_axis(side, images) for side in (h, w))
    fine = rows.up @ images @ columns.up.T
    y, x = (
        (torch.arange(len(axis.down.T), dtype=images.dtype, device=images.device) - side - 5) / 2
        for axis, side in ((rows, h), (columns, w))
    )
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (rows, columns, xy)
    seen = places @ maps[:, None, :, :2].mT + maps[:, None, None, :, 2]
    size = seen.new_tensor(fine.shape[:-3:-1])  # (width, height)
    grid = (4 * seen - 1) / size
    return rows.down @ grid_sample(fine, grid, align_corners=False) @ columns.down.T


def bytes_per_image(shape: tuple[int, int, int]) -> int:
    """Working memory of :func:`warp` for one image (c, h, w)."""
    c, h, w = shape
    fine, sampled = 4 * (3 * h - 2) * (3 * w - 2), 4 * (h + REACH) * (w + REACH)
    return 8 * (c * (2 * fine + 2 * sampled + 4 * h * w) + 8 * sampled)


def rotation(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 2 3"]:
    """Maps of a turn by these angles, in radians: (x, y) shows (x cos − y sin, x sin + y cos)."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _maps((cos, -sin, zero), (sin, cos, zero))


def scaling(factor: Float[Tensor, " n"]) -> Float[Tensor, "n 2 3"]:
    """Maps that make images larger by these factors, about the centre."""
    zero = torch.zeros_like(factor)
    return _maps((1 / factor, zero, zero), (zero, 1 / factor, zero))


def translation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, "n 2 3"]:
    """Maps that move images by so many pixels to the right and down."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return _maps((one, zero, -x), (zero, one, -y))


def shift(
    images: UInt8[Tensor, "n c h w"], x: Int[Tensor, " n"], y: Int[Tensor, " n"]
) -> UInt8[Tensor, "n c h w"]:
    """Images moved by whole pixels, x to the right and y **up**; exact copies of their pixels.

    What comes in is the image, reflected without a repeat of its edge, on and on.
    """
    h, w = images.shape[2:]
    rows = _reflected(torch.arange(h, device=images.device) + y[:, None], h)
    columns = _reflected(torch.arange(w, device=images.device) - x[:, None], w)
    first = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[first, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _maps(*rows: tuple[Tensor, ...]) -> Float[Tensor, "n 2 3"]:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _reflected(index: Int[Tensor, "..."], side: int) -> Int[Tensor, "..."]:
    """Positions on an axis that goes on by reflection without a repeat of its ends."""
    last = side - 1
    return last - (last - index % max(1, 2 * last)).abs()


def _axis(side: int, like: Tensor) -> _Axis:
    padding = torch.arange(1 - side, 2 * side - 1)
    up = _upsampler(len(padding)) @ torch.eye(side, dtype=torch.float64)[_reflected(padding, side)]
    cut = REACH // 2
    down = _upsampler(side + REACH).T[cut : cut + side]
    return _Axis(up.to(like), down.to(like))


def _upsampler(side: int) -> Float[Tensor, "fine side"]:
    """Zeros between the pixels, and the filter over them: shape (2 side, side)."""
    tap = torch.arange(2 * side)[:, None] - 2 * torch.arange(side) + REACH - 1
    inside = (tap >= 0) & (tap < len(TAPS))
    taps = torch.tensor(TAPS, dtype=torch.float64)
    return torch.where(inside, taps[tap.clamp(0, len(TAPS) - 1)], 0.0)
