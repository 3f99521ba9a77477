"""Folders and ZIPs of images in the layout that EDM's dataset tool writes.

``00000/img00000000.png`` and so on, all of one size, with an optional ``dataset.json`` of class
labels. Images are taken in the order of their paths. Folders ``train`` and ``test`` are two parts,
at the top or below the folders that all images share. ZIPs written on Windows may have
back-slashes in their names; they are read as slashes.
"""

import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from fpmc.data.decoding import SUFFIXES, begins_as_image, decode
from fpmc.data.elsewhere import advice
from fpmc.data.labels import from_json, read_json
from fpmc.data.parts import Part

__all__ = ["PARTS", "read_archive", "reading"]

PARTS = ("train", "test")
"""Folders that are parts of a dataset."""

OTHERWISE = re.compile(
    r"(train|test|val|valid|dev|eval)(ing|ation|uation)?([-_ ]?(set|data|images))?[-_ ]?\d*",
    re.IGNORECASE,
)
"""Folders that are called like parts, spelled as these are or otherwise."""

PAIRED = re.compile(
    r"((?<![a-z])(tr(ai)?n|te?st|val|valid|dev|eval)|Tr(ai)?n|Te?st|Val|Valid|Dev|Eval|"
    r"TR(AI)?N|TE?ST|VAL|VALID|DEV|EVAL)(ing|ation|uation)?(?![a-z])"
)
"""The word by which the folders of two parts differ, such as ``x_train`` and ``x_test``."""

IMAGES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}

COMPANIONS = {f".{kind}" for kind in ("json", "txt", "md", "csv", "tsv", "html", "xml", "yaml")} | {
    f".{kind}" for kind in ("yml", "rst", "pdf", "log", "py", "ini", "db")
}
"""What files beside images end in that nobody takes for images."""


@dataclass(frozen=True)
class Archive:
    """A folder or ZIP that is open: the names of its files, with slashes, and what reads one.

    Attributes:
        names: The files' names in order, without what operating systems hide beside them.
        read: From a name and a number of bytes, -1 for all, to the file's first bytes.
    """

    names: list[str]
    read: Callable[[str, int], bytes]


def read_archive(path: Path) -> tuple[Part, ...]:
    """Read every image below a folder or inside a ZIP, with c = 1 if all are grey, else c = 3.

    Warns of files that are left out, but for texts, tables and what operating systems hide.

    Returns:
        The images of the folders ``train`` and ``test``, or one part if there are none.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the file is not a ZIP, it holds no images, one of them cannot be read (see
            :func:`fpmc.data.decoding.decode`), their sizes differ, images lie beside the two
            folders, a folder of one of these names or the like lies elsewhere, or
            ``dataset.json`` has no label for some.
    """
    with reading(path), _opened(path) as archive:
        images, left_out = _sorted_out(archive)
        if not images:
            kinds, others = ", ".join(SUFFIXES), _listed(left_out, "; got ")
            told = f"{path}: got no images, wanted files of {kinds} in it{others}"
            raise ValueError(advice(path, archive.names) or told)
        if left_out:
            warnings.warn(
                f"{path}: read {len(images):,} images and left out "
                f"{len(left_out):,} files of other kinds{_listed(left_out, ': ')}",
                stacklevel=4,
            )
        jsons = [name for name in archive.names if PurePosixPath(name).name == "dataset.json"]
        labels = read_json(path, {name: archive.read(name, -1) for name in jsons})
        if labels and labels.keys().isdisjoint(images):
            from_json(path, labels, images)
        folders = _folders(images)
        if not _are_parts(path, folders):
            return (_part(path, archive, images, folders, labels),)
        return tuple(
            _part(path, archive, *_of_part(part, images, folders), labels) for part in PARTS
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading as errors of this path."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # of a ZIP whose bytes are wrong, many kinds
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    if path.is_dir():
        files = {
            file.relative_to(path).as_posix().replace("\\", "/"): file for file in _below(path)
        }

        def read(name: str, size: int) -> bytes:
            with files[name].open("rb") as file:
                return file.read(size)

        yield Archive(_visible(files), read)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or ZIP")
    elif not zipfile.is_zipfile(path):
        told = f"{path}: got a file that is not a ZIP, wanted a ZIP or a folder of images"
        raise ValueError(advice(path, ()) or told)
    else:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename[-1:] not in "/\\"]
            inside = {entry.filename.replace("\\", "/"): entry for entry in entries}

            def read(name: str, size: int) -> bytes:
                with archive.open(inside[name]) as file:
                    return file.read(size)

            yield Archive(_visible(inside), read)


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder, through links, but for those that lead back to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path, above | {real})
        elif path.is_file() or path.is_symlink():
            yield path


def _visible(names: dict[str, object]) -> list[str]:
    hidden = (".", "__MACOSX")
    return sorted(
        name
        for name in names
        if not any(part.startswith(hidden) for part in PurePosixPath(name).parts)
    )


def _sorted_out(archive: Archive) -> tuple[list[str], list[str]]:
    """The names of the images, and of other files that are no mere companions of images."""
    images, left_out = [], []
    for name in archive.names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGES or (not suffix and begins_as_image(name, archive.read(name, 16))):
            images.append(name)
        elif suffix and suffix not in COMPANIONS:
            left_out.append(name)
    return images, left_out


def _listed(names: list[str], begin: str) -> str:
    """Kinds of files by their suffixes, with how many, and the first one of each."""
    first = {PurePosixPath(name).suffix: name for name in reversed(names)}
    counts = Counter(PurePosixPath(name).suffix for name in names).most_common(5)
    kinds = [f"{n:,} {suffix} (as {first[suffix]})" for suffix, n in counts]
    return begin * bool(kinds) + ", ".join(kinds) + ", ..." * (len(first) > len(kinds))


def _folders(names: list[str]) -> list[tuple[str, ...]]:
    """The folders that each image lies in, without the first ones that all images share."""
    return _without_shared([PurePosixPath(name).parts[:-1] for name in names])


def _without_shared(folders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    levels = zip(*folders, strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return [folder[shared:] for folder in folders]


def _are_parts(path: Path, folders: list[tuple[str, ...]]) -> bool:
    """Whether the images lie in folders ``train`` and ``test``."""
    tops = {folder[0] if folder else "." for folder in folders}
    others = ", ".join(sorted(tops.difference(PARTS)))
    found = tops.issuperset(PARTS)
    if found and others:
        raise ValueError(f"{path}: got images in train, test and {others}, wanted the first two")
    for folder in folders:
        inner = folder[1:] if found else folder
        if any(map(OTHERWISE.fullmatch, inner)):
            raise ValueError(
                f"{path}: got images in {'/'.join(folder)}, wanted folders called train and test, "
                "in small letters, and only as the two parts of all images"
            )
    for names in _siblings([folder[found:] for folder in folders]):
        alike: dict[str, str] = {}
        for name in sorted(names):
            other = alike.setdefault(PAIRED.sub("*", name), name)
            if other != name:
                raise ValueError(
                    f"{path}: got images in {other} and {name}, wanted folders called train and "
                    "test if these are two parts, and other names if they are classes"
                )
    return found


def _siblings(folders: list[tuple[str, ...]]) -> Iterator[set[str]]:
    """The names of folders that lie side by side."""
    within: dict[tuple[str, ...], set[str]] = {}
    for folder in set(folders):
        for level, name in enumerate(folder):
            within.setdefault(folder[:level], set()).add(name)
    yield from within.values()


def _of_part(
    part: str, images: list[str], folders: list[tuple[str, ...]]
) -> tuple[list[str], list[tuple[str, ...]]]:
    chosen = [i for i, folder in enumerate(folders) if folder[0] == part]
    return [images[i] for i in chosen], _without_shared([folders[i][1:] for i in chosen])


def _part(
    path: Path,
    archive: Archive,
    names: list[str],
    folders: list[tuple[str, ...]],
    labels: Mapping[str, Any],
) -> Part:
    progress = tqdm(names, desc=path.name)
    arrays = [decode(archive.read(name, -1), f"{path}: {name}") for name in progress]
    sizes = Counter(array.shape[:2] for array in arrays)
    if len(sizes) > 1:
        pairs = zip(reversed(names), reversed(arrays), strict=True)
        first = {array.shape[:2]: name for name, array in pairs}
        common = [f"{w} × {h} ({n:,}, as {first[h, w]})" for (h, w), n in sizes.most_common(2)]
        raise ValueError(
            f"{path}: got images of {len(sizes):,} sizes, most often {' and '.join(common)}, "
            "wanted one size"
        )
    grey = all(array.ndim == 2 for array in arrays)
    images = np.empty((len(arrays), 1 if grey else 3, *arrays[0].shape[:2]), np.uint8)
    for image, array in zip(images, arrays, strict=True):
        image[:] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    numbers = None if labels.keys().isdisjoint(names) else from_json(path, labels, names)
    return Part(images, numbers, folders)
