"""Patch set posterior composites: denoise every patch on its own, average where they overlap."""

from collections.abc import Mapping

from fpmc.collection import FPMC
from fpmc.methods.schedules import patch_schedule
from fpmc.operators import Box
from fpmc.source import Source

__all__ = ["pspc_square"]


def pspc_square(
    source: Source,
    patch_sizes: int | Mapping[float, int] | str = "cifar10",
    *,
    budget: int | None = None,
) -> FPMC:
    r"""PSPC-Square: q_k is the square of side p(σ) centred at k, where that fits, and r_k = q_k.

    Each p × p patch of z is replaced by its posterior mean over the training patches at the same
    place, and overlapping patches are averaged. With p the side of the image it is the optimal
    denoiser.

    Args:
        source: S.
        patch_sizes: p, from 1 to the image's shorter side: a number, a {sigma: p} mapping (the
            nearest sigma on a logarithmic scale wins), or a published schedule's name, "cifar10",
            "ffhq64" or "afhqv2-64", which scales with the side of the image as
            :func:`fpmc.methods.schedules.patch_schedule` says.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, or a patch size not a whole number.
        ValueError: If a patch size lies outside its range, or no schedule has that name.

    Source: Niedoba et al. (2025); Niedoba et al. (2026), equations (35) to (38).
    """
    if not isinstance(source, Source):
        raise TypeError(f"source: got {type(source).__name__}, wanted an fpmc.Source")
    p = patch_schedule(patch_sizes, "pspc_square", min(source.shape[1:]))

    def squares(sigma: float) -> Box:
        return Box(source.shape[1:], p(sigma))

    return FPMC(squares, squares, source, budget=budget)
