"""Augmented sets on disk: made in pieces, and read without being loaded.

A set is a folder: ``images.npy`` (uint8), ``parents.npy`` and ``parameters.npy`` as in
:class:`fpmc.augment.Augmented`, and ``card.json``, which says what was asked for. While it is made
it has another name, that of the set with ``.part``.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import nn

from fpmc.augment.copies import LABELS, Augmented
from fpmc.augment.recipes import DRAWS, Recipe, of_images, of_network
from fpmc.augment.strategies import STRATEGIES
from fpmc.checks import as_whole_number
from fpmc.data.fingerprint import fingerprint
from fpmc.source import as_uint8, mapped
from fpmc.source.pixels import from_numpy
from fpmc.storage import named, whole, write_array

__all__ = ["SYNTHETIC", "read", "write"]

SYNTHETIC = "synthetic"
"""The strategy that takes a network in the place of images."""

IMAGES, PARENTS, PARAMETERS, CARD, LOCK = (
    "images.npy", "parents.npy", "parameters.npy", "card.json", ".lock",
)  # fmt: skip
POLL = 0.2
"""Seconds between two looks at a set that another process is writing."""


def write(
    folder: str | os.PathLike,
    strategy: str,
    subject: Any,
    n: int | None = None,
    seed: int = 0,
    *,
    progress: bool = True,
    wait: bool = False,
    **options: Any,
) -> Augmented:
    """Make an augmented set on disk, of any size, some images at a time.

    What was made stays if the call is ended, at any moment; the same call goes on where it was, to
    the same bytes. The folder has its name once it is complete; if it is, nothing is done.

    Args:
        folder: Where the set shall be.
        strategy: "horizontal flips", "vertical flips", "translations", "fractional translations",
            "rotations", "scalings" or "synthetic".
        subject: The images, uint8, shape (N, c, h, w); for "synthetic" a network.
        n: How many; all if None.
        seed: A seed of all draws; a whole number, by which the same call finds what was made.
        progress: Whether to show a progress bar.
        wait: Whether to wait for another process that is writing the set, and take what it made.
        **options: ``draws`` for an image, and ``budget``, bytes for those made at a time; for
            "synthetic" ``shape``, ``sigmas`` and ``device``, as :func:`fpmc.augment.synthetic`'s.

    Returns:
        The set, mapped to memory.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no such strategy, an argument is out of range, or the folder, or
            what is there of it, is another set or no set; or if another process is writing it and
            is not to be waited for.
        OSError: If a file cannot be written; what was made stays, and the same call goes on.
    """
    folder, seed = Path(folder).expanduser(), as_whole_number(seed, "seed", 0, 2**63 - 1)
    recipe, card = _asked(strategy, subject, n, seed, options)
    unfinished = folder.with_name(f"{folder.name}.part")
    while not folder.exists():
        unfinished.mkdir(parents=True, exist_ok=True)
        lock = _lock(unfinished)
        if lock is not None:
            with lock:
                _finish(unfinished, folder, recipe, card, progress)
        elif wait:
            time.sleep(POLL)
        elif not folder.exists():
            raise ValueError(f"folder: {unfinished} is being written by another process")
    _same(folder, card)
    return read(folder)


def _finish(
    unfinished: Path, folder: Path, recipe: Recipe, card: dict[str, Any], progress: bool
) -> None:
    """Make what is missing of a set whose lock this process has, and give it its name."""
    if folder.exists():  # another process had the lock before
        (unfinished / LOCK).unlink()
        unfinished.rmdir()
        return
    if (unfinished / CARD).exists():
        _same(unfinished, card)
    else:
        for name, values in ((PARENTS, recipe.parents), (PARAMETERS, recipe.parameters)):
            write_array(unfinished / name, values.numpy())
        with whole(unfinished / CARD) as beside:
            beside.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    _write_images(unfinished / IMAGES, recipe, progress)
    unfinished.rename(folder)
    (folder / LOCK).unlink()


def read(folder: str | os.PathLike) -> Augmented:
    """The set that :func:`write` made; its images are mapped to memory.

    Raises:
        ValueError: If there is none, or its files do not belong together.
    """
    folder = Path(folder).expanduser()
    try:
        images = as_uint8(mapped(folder / IMAGES))
        parents, parameters = (from_numpy(np.load(folder / name)) for name in (PARENTS, PARAMETERS))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}, wanted a set that fpmc.augment.write made") from error
    sizes = len(parents), tuple(parameters.shape)
    if sizes != (len(images), (len(images), LABELS)):
        raise ValueError(
            f"{folder}: got {len(images):,} images, {sizes[0]:,} parents and parameters of shape "
            f"{sizes[1]}, wanted as many"
        )
    return Augmented(images, parents, parameters)


def _asked(
    strategy: str, subject: Any, n: int | None, seed: int, options: dict[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and what another set would differ in."""
    if strategy == SYNTHETIC:
        recipe = of_network(subject, n, seed, **options)
        sigmas = options.get("sigmas")
        about = {
            "network": _digest(subject),
            "sigmas": None if sigmas is None else [float(sigma) for sigma in sigmas],
        }
    elif strategy in STRATEGIES:
        recipe = of_images(strategy, subject, n, seed, **options)
        about = {
            "images": fingerprint(as_uint8(subject)),
            "draws": int(options.get("draws", DRAWS)),
        }
    else:
        names = ", ".join([*STRATEGIES, SYNTHETIC])
        raise ValueError(f"strategy: got {strategy!r}, wanted one of {names}")
    size = [len(recipe.parents), *recipe.shape]
    return recipe, {"strategy": strategy, "seed": seed, "size": size, **about}


def _digest(network: Any) -> str | None:
    """A text of a network's parameters; None for what is no module."""
    if not isinstance(network, nn.Module):
        return None
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {fingerprint(value.detach().float().reshape(-1))}".encode())
    return total.hexdigest()[:16]


def _same(folder: Path, card: dict[str, Any]) -> None:
    """See that a folder is, or is going to be, what is asked for."""
    try:
        held = json.loads((folder / CARD).read_text(encoding="utf-8"))
        differ = [key for key in card if held.get(key) != card[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"folder: {folder} is no set of augmented images ({error}), wanted another name"
        ) from error
    if differ:
        raise ValueError(
            f"folder: {folder} is a set that differs in {', '.join(differ)}, wanted another name"
        )


def _lock(folder: Path) -> FileLock | None:
    """The lock of a set that is being made; None if another process has it, or has just ended."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):
        return None
    return lock


def _write_images(path: Path, recipe: Recipe, progress: bool) -> None:
    """Append what is missing of the images, whole pieces of the recipe."""
    shape = (len(recipe.parents), *recipe.shape)
    path.open("ab").close()
    with named(path), path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        head, image = file.tell(), int(np.prod(recipe.shape))
        there = (path.stat().st_size - head) // image
        start = shape[0] if there == shape[0] else max(0, there) // recipe.piece * recipe.piece
        file.truncate(head + start * image)
        file.seek(0, os.SEEK_END)
        for images in recipe.pieces(start, progress=progress):
            file.write(images.cpu().contiguous().numpy())
        file.flush()
        os.fsync(file.fileno())
