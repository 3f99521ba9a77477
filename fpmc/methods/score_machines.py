"""Score machines: the ideal denoisers of networks that are local, equivariant, or both."""

from collections.abc import Mapping

from fpmc.collection import FPMC
from fpmc.equivariant import Equivariant
from fpmc.methods.schedules import ScheduledBox, own, patch_schedule
from fpmc.operators import Identity
from fpmc.source import Source, as_source

__all__ = ["els", "es", "ls"]


def ls(
    source: Source,
    patch_sizes: int | Mapping[float, int] | str | None = None,
    *,
    budget: int | None = None,
) -> FPMC:
    """LS, the local score machine: each pixel's posterior sees the square of side p around it.

    q_k is the square of side p(σ) centred at pixel k, clipped at the border; r_k is one-hot at k.

    Args:
        source: S.
        patch_sizes: p(σ), as for :func:`fpmc.methods.pspc_square`.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, or a patch size not a whole number.
        ValueError: If a patch size lies outside its range, no schedule has that name, or it is left
            out and the source's dataset has none.

    Source: Kamb and Ganguli (2025); Niedoba et al. (2026), equations (43) to (59).
    """
    shape = as_source(source).shape[1:]
    patch_sizes = own(patch_sizes, source, "ls", "patch_sizes")
    p = patch_schedule(patch_sizes, "ls", min(shape))
    return FPMC(ScheduledBox(shape, p, "clip"), Identity(shape), source, budget=budget)


def els(
    source: Source,
    patch_sizes: int | Mapping[float, int] | str | None = None,
    *,
    budget: int | None = None,
) -> Equivariant:
    """ELS, the equivariant local score machine, with the symmetry that zero padding breaks.

    LS, with the source patches of all places of a pixel's boundary class: a pixel whose square fits
    sees the squares at every place where they fit, one at a vertical border those of its column,
    one at a horizontal border those of its row, and one in a corner those of its own place.

    For a noisy image and a source image it takes (m² + p − 1)(m'² + p − 1) exponentials, where
    m = h − p + 1 and m' = w − p + 1, and for float32 on a CPU c squared differences for each pixel
    in which the two overlap, at each of (2m − 1)(2m' − 1) displacements; elsewhere, products of all
    squares that fit with all that fit, (m m')² c p² multiplications, and those at the borders, most
    of all where squares cover most of the image. Those are counts, not times.

    Args:
        source: S.
        patch_sizes: As for :func:`ls`; of the published schedules, "cifar10" alone has it.
        budget: Bytes of working memory, see :class:`fpmc.equivariant.Equivariant`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, or a patch size not a whole number.
        ValueError: If a patch size lies outside its range, no schedule has that name, or it is left
            out and the source's dataset has none.

    Source: Kamb and Ganguli (2025); Niedoba et al. (2026), equations (60) to (68).
    """
    patch_sizes = own(patch_sizes, as_source(source), "els", "patch_sizes")
    p = patch_schedule(patch_sizes, "els", min(source.shape[1:]))
    return Equivariant(p, source, budget=budget)


def es(source: Source, *, budget: int | None = None) -> Equivariant:
    """ES, the equivariant score machine: the optimal denoiser over all cyclic translations of S.

    All translations of an image together take a few Fourier transforms of it.

    Args:
        source: S.
        budget: Bytes of working memory, see :class:`fpmc.equivariant.Equivariant`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`.

    Source: Kamb and Ganguli (2025).
    """
    return Equivariant(None, source, budget=budget)
