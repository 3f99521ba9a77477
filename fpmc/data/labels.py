"""Classes of images, from an archive's ``dataset.json`` or the folders that images lie in."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fpmc.data.parts import Part

__all__ = ["from_folders", "from_json", "read_json"]

CHUNK = re.compile(r"\d{5,}")
"""Folders that number images, as EDM's dataset tool makes them, rather than name classes."""


def read_json(path: Path, contents: Mapping[str, bytes]) -> dict[str, Any]:
    """The labels that ``dataset.json`` files give, by the images' names in the archive.

    Args:
        path: The archive, for errors.
        contents: {name of the file in the archive: its bytes}. As EDM's dataset tool writes it,
            ``{"labels": [["00000/img00000000.png", 6], ...]}`` with names from its own folder on,
            or ``{"labels": null}``.

    Raises:
        ValueError: If one is not such a file.
    """
    found = {}
    for name, content in contents.items():
        try:
            given = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {name}: cannot be read as JSON ({error})") from error
        given = given.get("labels") if isinstance(given, dict) else None
        if given is None:
            continue
        pairs = list(given.items()) if isinstance(given, dict) else given
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise ValueError(f'{path}: {name}: wanted "labels" to be pairs [image, class], or null')
        folder = PurePosixPath(name).parent
        found |= {str(folder / image.replace("\\", "/")): label for image, label in pairs}
    return found


def from_json(path: Path, labels: Mapping[str, Any], names: Sequence[str]) -> np.ndarray | None:
    """Labels of images in their order, int64, shape (n,).

    Args:
        path: The archive, for errors.
        labels: What :func:`read_json` gives.
        names: The images' names.

    Returns:
        None, with a warning, if labels are vectors, which number no classes.

    Raises:
        ValueError: If an image has no label, or one is no whole number from 0 on.
    """
    lacking = [name for name in names if name not in labels]
    if lacking:
        raise ValueError(
            f"{path}: dataset.json has no label for {len(lacking):,} of {len(names):,} images, "
            f"for instance {lacking[0]}"
        )
    values = [labels[name] for name in names]
    if values and all(isinstance(value, list) for value in values):
        warnings.warn(
            f"{path}: the labels of dataset.json are vectors, which number no classes: left out",
            stacklevel=2,
        )
        return None
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Real) or isinstance(value, bool) or not _is_class(value):
            raise ValueError(
                f"{path}: dataset.json: got the label {str(value)[:40]} for {name}, wanted a whole "
                "number from 0 on"
            )
    return np.array(values, np.int64)


def from_folders(path: Path, parts: Sequence[Part]) -> list[np.ndarray | None]:
    """Labels by the folders that images lie in, numbered in the order of the folders' names.

    The folders of the first part are classes if all of its images lie in at least two of them,
    but for folders whose names are numbers of five digits or more, as EDM's dataset tool makes.
    Other parts are numbered alike; one that has an image in none of these folders has no labels.
    Where a few images lie elsewhere than the others, a warning says that there are no labels.
    """
    first = parts[0].folders or []
    tops = Counter(folder[0] if folder else "" for folder in first)
    beside = tops.pop("", 0)
    if len(tops) < 2 or all(map(CHUNK.fullmatch, tops)):
        return [None] * len(parts)
    if beside:
        warnings.warn(
            f"{path}: {beside:,} of {len(first):,} images lie beside the folders of the others, so "
            "that folders are no classes, and there are no labels",
            stacklevel=2,
        )
        return [None] * len(parts)
    numbers = {name: number for number, name in enumerate(sorted(tops))}
    labels = [_numbered(part.folders or (), numbers) for part in parts]
    for part, found in zip(parts[1:], labels[1:], strict=True):
        if found is None and part.folders:
            strange = sum(numbers.keys().isdisjoint(folder) for folder in part.folders)
            warnings.warn(
                f"{path}: {strange:,} of {len(part.folders):,} test images lie in no folder of the "
                "training images, so that test images have no labels",
                stacklevel=2,
            )
    return labels


def _numbered(folders: Iterable[tuple[str, ...]], numbers: Mapping[str, int]) -> np.ndarray | None:
    found = [next((numbers[name] for name in names if name in numbers), None) for names in folders]
    return np.array(found, np.int64) if found and None not in found else None


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _is_class(value: Real) -> bool:
    return 0 <= value < 2**63 and value == int(value)
