"""Augmented sources: images made of training images, and by networks.

Each function makes one strategy's set, 20 draws an image unless it is told otherwise, in an order
whose every beginning is balanced. :func:`write` makes one on disk, of any size, and
:func:`read` maps it to memory.
"""

from collections.abc import Sequence
from typing import Any

import torch

from fpmc.augment.copies import Augmented
from fpmc.augment.files import read, write
from fpmc.augment.recipes import DRAWS, of_images, of_network
from fpmc.diffusion import Denoiser

__all__ = [
    "Augmented",
    "horizontal_flips",
    "read",
    "rotations",
    "scalings",
    "synthetic",
    "translations",
    "vertical_flips",
    "write",
]


def horizontal_flips(
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Augmented:
    """Images with left and right exchanged, one of each, exactly.

    Args:
        images: Pixel values, uint8, shape (N, c, h, w).
        n: How many, of different images in a random order; N if None.
        seed: A seed, 0 if left out, or a generator, of the order.
        generator: A generator, in the seed's place.

    Raises:
        TypeError: If the images are no uint8, or n is not a whole number.
        ValueError: If their shape is wrong, n larger than N, or seed and generator both given.
    """
    return of_images("horizontal flips", images, n, seed, generator=generator).made()


def vertical_flips(
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Augmented:
    """Images with up and down exchanged. Arguments and errors as in :func:`horizontal_flips`."""
    return of_images("vertical flips", images, n, seed, generator=generator).made()


def translations(
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
    fractional: bool = False,
    draws: int = DRAWS,
    progress: bool = False,
) -> Augmented:
    r"""Images moved by whole pixels, exactly; or by fractions of a pixel, through a filter.

    Whole: :math:`t = \operatorname{round}(u\, \text{side} / 8)` per axis, u ~ U(−1, 1).
    Fractional: :math:`t = w\, \text{side} / 8`, w ~ N(0, 1). What comes in at the border is the
    image, reflected without a repeat of its edge. Of the draws for an image those are left out that
    are exactly the same as one before. A shift by (0, 0) is a draw as any other.

    Args:
        images: Pixel values, uint8, shape (N, c, h, w).
        n: How many: of each image as many as of any other, or one more; all if None.
        seed: A seed, 0 if left out, or a generator, of all draws.
        generator: A generator, in the seed's place.
        fractional: Whether by fractions.
        draws: Draws for an image.
        progress: Whether to show a progress bar.

    Returns:
        The same for the same arguments, whatever the device that the images lie on.

    Raises:
        TypeError: If the images are no uint8, or a number is not whole.
        ValueError: If their shape is wrong, there are fewer than n that differ, or for moves that
            are no whole pixels, a side has less than 7, or seed and generator are both given.

    Source: Karras et al. (2022), appendix F.2; Niedoba et al. (2026), appendix B.
    """
    name = "fractional " * bool(fractional) + "translations"
    return of_images(name, images, n, seed, generator=generator, draws=draws).made(
        progress=progress
    )


def rotations(
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
    draws: int = DRAWS,
    progress: bool = False,
) -> Augmented:
    """Images turned about their centre by φ ~ U(−π, π).

    Arguments and errors as in :func:`translations`.
    """
    return of_images("rotations", images, n, seed, generator=generator, draws=draws).made(
        progress=progress
    )


def scalings(
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
    draws: int = DRAWS,
    progress: bool = False,
) -> Augmented:
    """Images made larger about their centre by 2^(0.2 w), w ~ N(0, 1): smaller for w < 0.

    Arguments and errors as in :func:`translations`.
    """
    return of_images("scalings", images, n, seed, generator=generator, draws=draws).made(
        progress=progress
    )


def synthetic(
    network: Denoiser,
    n: int,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] | None = None,
    sigmas: Sequence[float] | torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Augmented:
    """A network's samples, from noise that no evaluation starts from.

    The i-th image of a seed starts from the seed 2³¹ + 2²⁰ seed + i; seeds of evaluations lie
    below. A larger n begins with the same images, up to the network's rounding.

    Args:
        network: A denoiser, called with z on the device and one noise level.
        n: How many, up to 2²⁰.
        seed: Which of 2,048 sets, 0 to 2,047.
        shape: The images' (c, h, w); the network's own ``shape`` if None.
        sigmas: Falling noise levels; EDM's 18 if None.
        device: Where.
        progress: Whether to show a progress bar.

    Returns:
        Images without parents, and labels of zeros.

    Raises:
        TypeError: If n or the seed is not a whole number.
        ValueError: If n or the seed is out of range, or the shape is not known.

    Source: Niedoba et al. (2026), section 4.3.
    """
    options = {"shape": shape, "sigmas": sigmas, "device": device}
    return of_network(network, n, seed, **options).made(progress=progress)
