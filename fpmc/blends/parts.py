"""What a stored blend is made of: each part's recipe, and what makes it of a source.

To fit a mixture takes longer than to use it. So one is fitted when it is first asked, and kept in
the folder for downloads for the next time. It answers as it was kept, the first time, too.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc import finetuning, methods, mixtures, sensitivity
from fpmc.checks import as_whole_number
from fpmc.data.fingerprint import fingerprint
from fpmc.denoiser import DropIn
from fpmc.diffusion import Denoiser
from fpmc.mixtures import Mixture
from fpmc.source import Source
from fpmc.storage import home, try_writing
from fpmc.widths import Wide

__all__ = ["KINDS", "Fitted", "Recipe", "make"]

Recipe = Mapping[str, Any]
"""{"kind": one of :data:`KINDS`, and what that kind needs}."""


class Fitted(DropIn):
    """A mixture that is fitted to a source, with seed and steps, when it is first asked.

    Args:
        source: S.
        p: The side of a patch.
        m: How many components.
        steps: Of the fit, as :func:`fpmc.mixtures.fit` has them.
        seed: Of the fit.
        rank: Directions of each covariance that are kept; all if None.
        cache: The folder of what was fitted; that of downloads, ``~/.cache/fpmc`` or FPMC_DATA, if
            left out.

    Raises:
        TypeError: If p, m, steps or rank is no whole number.
        ValueError: If one is out of range; when it is first asked, before the fit, if the folder
            cannot be made or written to.
    """

    def __init__(
        self,
        source: Source,
        *,
        p: int,
        m: int,
        steps: int,
        seed: int,
        rank: int | None = None,
        cache: str | os.PathLike | None = None,
    ):
        c, h, w = source.shape
        as_whole_number(p, "p", 1, min(h, w))
        if rank is not None:
            as_whole_number(rank, "rank", 1, c * p * p)
        for name, number in (("m", m), ("steps", steps)):
            as_whole_number(number, name, name == "m")
        self._source, self._rank, self._cache = source, rank, cache
        self._how = {"p": p, "m": m, "steps": steps, "seed": seed}

    def __repr__(self) -> str:
        told = ", ".join(f"{name} = {value}" for name, value in self._how.items())
        return f"Fitted({self._source!r}, {told}, rank = {self._rank})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self._source.shape

    @cached_property
    def mixture(self) -> Mixture:
        """The mixture, from its file if it was fitted before; one that is broken is replaced."""
        folder = home(self._cache) / "mixtures"
        path, device = folder / f"{self._name()}.safetensors", self._source.parts[0].device
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            return mixtures.read(path).to(device)
        with suppress(OSError):  # which the next line tells
            folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder, "FPMC_DATA" if self._cache is None else "cache")
        found = mixtures.fit(self._source, **self._how, progress=True)
        mixtures.write(path, found if self._rank is None else found.of_rank(self._rank))
        return mixtures.read(path).to(device)

    def _name(self) -> str:
        """Another one for each source, way to fit and rank."""
        source, total = self._source, hashlib.sha256()
        for part in source.parts:
            total.update(fingerprint(torch.as_tensor(part)).encode())
        if source.log_weights is not None:
            total.update(fingerprint(source.log_weights).encode())
        total.update(json.dumps([self._how, self._rank]).encode())
        return total.hexdigest()[:16]

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        return self.mixture(z, sigma)

    def _move(self, device: torch.device) -> None:
        self._source = self._source.to(device)
        self.__dict__.pop("mixture", None)


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


def _fitted(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    return Fitted(source, **{name: value for name, value in recipe.items() if name != "kind"})


def _mixture(recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    return mixtures.read(folder / recipe["file"])


KINDS: dict[str, Callable[[Recipe, Source, Path, int | None], Denoiser]] = {
    "pspc_flex": _masks,
    "tuned": _tuned,
    "wiener": _wiener,
    "wide": _wide,
    "fitted": _fitted,
    "mixture": _mixture,
}
"""{kind: what makes it}: PSPC-Flex by "maps" and "schedule", a tuned "collection" by its name, the
Wiener filter, points as wide as "shares" of the covariance say, a mixture that is fitted as
:class:`Fitted` takes it, or one by its "file"."""
