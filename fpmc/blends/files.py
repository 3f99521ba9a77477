"""Blends in files: a folder with the weights, the recipes of the parts, their mixtures, a card."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from importlib import resources
from itertools import chain, count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from fpmc import mixtures
from fpmc.blends.blend import Blend
from fpmc.blends.parts import KINDS, Recipe, make
from fpmc.checks import kind
from fpmc.diffusion import Denoiser
from fpmc.source import Source, as_source
from fpmc.storage import whole

__all__ = ["SHIPPED", "card", "digest", "folder_of", "load", "save"]

FORMAT = "fpmc blend 1"
FILE = "blend.safetensors"

FOLDER = Path(str(resources.files("fpmc.blends"))) / "shipped"

SHIPPED = tuple(sorted({p.parent.relative_to(FOLDER).as_posix() for p in FOLDER.rglob(FILE)}))
"""The blends that come with the package: dataset/network."""


def load(
    blend: str | os.PathLike,
    source: Source,
    *,
    denoisers: Mapping[str, Denoiser] | None = None,
    budget: int | None = None,
) -> Blend:
    """A stored blend over all its noise levels; the nearest on a logarithmic scale answers.

    Its parts are made of the source. Mixtures are fitted to it when they are first asked, which may
    take minutes, and kept in ``~/.cache/fpmc`` (or ``FPMC_DATA``) for the next time. One that was
    saved in a file is as it was fitted, whatever the source.

    Args:
        blend: A folder that :func:`save` wrote, or a name in :data:`SHIPPED`.
        source: S: the one that it was fitted with, or another of images of the same shape.
        denoisers: {name: denoiser}, those that a folder does not hold; or to take one's place.
        budget: Bytes of working memory of each collection, see :class:`fpmc.FPMC`.

    Raises:
        FileNotFoundError: If there is no such folder, or no blend in it.
        TypeError: If the source is none, or the blend neither a name nor a path.
        ValueError: If a file cannot be read, is for images of another shape, or has a recipe that
            lacks something; if a denoiser is missing, or one is given that has no part in it.
    """
    source, folder, given = as_source(source), folder_of(blend), dict(denoisers or {})
    shape, recipes, weights = _read(folder)
    if shape != source.shape:
        raise ValueError(
            f"source: got images of shape {source.shape}, wanted {shape}, as the blend in {folder}"
        )
    if unknown := [name for name in given if name not in recipes]:
        raise ValueError(f"denoisers: got {unknown[0]!r}, wanted some of {', '.join(recipes)}")
    for name, recipe in recipes.items():
        if name not in given and recipe["kind"] not in KINDS:
            raise ValueError(
                f"denoisers: got none for {name!r}, wanted it, as the blend in {folder} does not "
                "hold it"
            )
    made = {
        name: given[name] if name in given else _made(name, recipe, source, folder, budget)
        for name, recipe in recipes.items()
    }
    return Blend(made, weights)


def _made(name: str, recipe: Recipe, source: Source, folder: Path, budget: int | None) -> Denoiser:
    try:
        return make(recipe, source, folder, budget)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / FILE}: its recipe for {name!r} lacks something or has too much ({error})"
        ) from error


def save(
    blend: Blend,
    folder: str | os.PathLike,
    recipes: Mapping[str, Recipe] | None = None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Keep a blend: its weights, how its parts are made again, its mixtures, a card.

    A denoiser without a weight anywhere is left out.

    Args:
        blend: The blend.
        folder: Where to; made if it is not there, and files of the same names are replaced.
        recipes: {name: recipe} of parts that are made of a source, see
            :data:`fpmc.blends.parts.KINDS`. A mixture without one is kept itself, in a file. Any
            other part without one is to be given to :func:`load`.
        card: What else is to be known of it, as JSON has it.

    Raises:
        OSError: If it cannot be written.
        TypeError: If it is no blend, or JSON cannot hold the card or a recipe.
        ValueError: If there is a recipe of a part that is none, or of an unknown kind.
    """
    if not isinstance(blend, Blend):
        raise TypeError(f"blend: got {kind(blend)}, wanted a Blend")
    folder, recipes = Path(folder).expanduser(), dict(recipes or {})
    for name, recipe in recipes.items():
        if (
            name not in blend.denoisers
            or not isinstance(recipe, Mapping)
            or recipe.get("kind") not in KINDS
        ):
            raise ValueError(
                f"recipes: got {recipe!r} for {name!r}, wanted one of a part, with a kind of "
                f"{', '.join(KINDS)}"
            )
    used = [name for name in blend.denoisers if any(name in at for at in blend.weights.values())]
    told, held = {}, {}
    for name in used:
        one = blend.denoisers[name]
        if name not in recipes and isinstance(one, mixtures.Mixture):
            file = _file(name, {FILE, *held})
            told[name], held[file] = {"kind": "mixture", "file": file}, one
        else:
            told[name] = dict(recipes.get(name, {"kind": "given"}))
    levels = sorted(blend.weights)
    rows = [[blend.weights[sigma].get(name, 0.0) for name in used] for sigma in levels]
    tensors = {name: torch.tensor(a, dtype=torch.float64) for name, a in
               (("sigmas", levels), ("weights", rows))}  # fmt: skip
    about = {"format": FORMAT, "shape": json.dumps(blend.shape), "parts": json.dumps(told)}
    text = json.dumps(card or {}, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for file, mixture in held.items():
        mixtures.write(folder / file, mixture)
    with whole(folder / "card.json") as beside:
        beside.write_text(text, encoding="utf-8")
    with whole(folder / FILE) as beside:
        beside.write_bytes(safetensors.torch.save(tensors, about))


def _file(name: str, taken: Collection[str]) -> str:
    """A name for a part's file, another one than these even where case does not tell them apart."""
    stem, taken = re.sub(r"[^A-Za-z0-9]+", "-", name), {file.lower() for file in taken}
    ends = chain([""], (f"-{i}" for i in count(2)))
    numbered = (f"{stem}{end}.safetensors" for end in ends)
    return next(file for file in numbered if file.lower() not in taken)


def card(blend: str | os.PathLike) -> dict[str, Any]:
    """What is told of a stored blend. Arguments and errors as in :func:`load`."""
    path = folder_of(blend) / "card.json"
    if not path.is_file():
        raise _missing(path.parent)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a card ({error})") from error


def digest(blend: str | os.PathLike) -> str:
    """Of a blend's weights, recipes and mixtures, the first 8 digits. Arguments as in :func:`load`.

    Raises:
        FileNotFoundError: If there is no such folder, or no blend in it.
    """
    folder, total = folder_of(blend), hashlib.sha256()
    if not (folder / FILE).is_file():
        raise _missing(folder)
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()[:8]


def folder_of(blend: str | os.PathLike) -> Path:
    """Where a blend lies: the folder itself, or that of a name in :data:`SHIPPED`.

    Raises:
        TypeError: If it is neither a name nor a path.
    """
    if not isinstance(blend, str | os.PathLike):
        raise TypeError(f"blend: got {kind(blend)}, wanted a name or a path")
    return FOLDER / blend if blend in SHIPPED else Path(blend).expanduser()


def _missing(folder: Path) -> FileNotFoundError:
    known = f", or one of {', '.join(SHIPPED)}" if SHIPPED else ""
    return FileNotFoundError(f"{folder}: no blend there, wanted a folder{known}")


def _read(
    folder: Path,
) -> tuple[tuple[int, int, int], dict[str, Recipe], dict[float, dict[str, float]]]:
    """The images' shape, the parts' recipes and the weights by level."""
    path = folder / FILE
    if not path.is_file():
        raise _missing(folder)
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"got format {about.get('format')!r}, wanted {FORMAT!r}")
            sigmas, weights = file.get_tensor("sigmas").tolist(), file.get_tensor("weights")
        recipes = json.loads(about["parts"])
        rows = (dict(zip(recipes, row, strict=True)) for row in weights.tolist())
        return tuple(json.loads(about["shape"])), recipes, dict(zip(sigmas, rows, strict=True))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no blend can be read from it ({error})") from error
