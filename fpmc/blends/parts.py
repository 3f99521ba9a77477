"""What a stored blend is made of: each part's recipe, and what makes it of a source."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fpmc import finetuning, methods, mixtures, sensitivity
from fpmc.diffusion import Denoiser
from fpmc.source import Source
from fpmc.widths import Wide

__all__ = ["KINDS", "Recipe", "make"]

Recipe = Mapping[str, Any]
"""{"kind": one of :data:`KINDS`, and what that kind needs}."""


def make(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    """The denoiser that a recipe stands for.

    Args:
        recipe: What :func:`fpmc.blends.save` kept.
        source: S.
        folder: Where the blend's files lie.
        budget: Bytes of working memory of a collection, see :class:`fpmc.FPMC`.

    Raises:
        KeyError: If there is no such kind, or it lacks something.
        ValueError: If a file cannot be read, or is of images of another shape.
    """
    return KINDS[recipe["kind"]](recipe, source, folder, budget)


def _masks(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    maps = sensitivity.load(recipe["maps"])
    return methods.pspc_flex(source, maps, recipe["schedule"], budget=budget)


def _tuned(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    return finetuning.load(recipe["collection"], source, budget=budget)


def _wiener(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    return methods.wiener(source, budget=budget)


def _wide(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    shares = {float(sigma): share for sigma, share in recipe["shares"].items()}
    return Wide(source, shares, budget=budget)


def _mixture(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    return mixtures.read(folder / recipe["file"])


KINDS: dict[str, Callable[[Recipe, Source, Path, int | None], Denoiser]] = {
    "pspc_flex": _masks,
    "tuned": _tuned,
    "wiener": _wiener,
    "wide": _wide,
    "mixture": _mixture,
}
"""{kind: what makes it}: PSPC-Flex by "maps" and "schedule", a tuned "collection" by its name, the
Wiener filter, points as wide as "shares" of the covariance say, a mixture by its "file"."""
