"""The datasets by name."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from sklearn.datasets import load_digits
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.data.archive import PARTS, parts, read_archive
from fpmc.data.photos import crops
from fpmc.storage import home

__all__ = ["NAMES", "Dataset", "load"]

NAMES = ("digits", "photos", "photos32", "cifar10", "ffhq64", "afhqv2-64")
"""The datasets that :func:`load` knows by name."""

ARCHIVES = {"ffhq64": "ffhq-64x64.zip", "afhqv2-64": "afhqv2-64x64.zip"}
SHAPES = {"cifar10": (3, 32, 32), "ffhq64": (3, 64, 64), "afhqv2-64": (3, 64, 64)}
PHOTOS_SIDE = {"photos": 16, "photos32": 32}
HELD_OUT_DIGITS = 297
SPLIT = 0
"""Seed of what is held out."""


@dataclass(frozen=True)
class Dataset:
    """Images in two disjoint parts.

    Attributes:
        name: The dataset's name, or its path.
        train: uint8, shape (n, c, h, w): what networks are trained on, and the source of an FPMC.
        test: uint8, shape (m, c, h, w): held out.
    """

    name: str
    train: UInt8[Tensor, "n c h w"]
    test: UInt8[Tensor, "m c h w"]

    def __repr__(self) -> str:
        c, h, w = self.train.shape[1:]
        return (
            f"Dataset({self.name!r}: {len(self.train):,} train, {len(self.test):,} test, "
            f"{c} × {h} × {w})"
        )


def load(
    name: str | os.PathLike,
    root: str | os.PathLike | None = None,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a dataset.

    - ``digits``: 8 × 8 grey handwritten digits (scikit-learn), 1,500 train and 297 test.
    - ``photos``, ``photos32``: 16 × 16 and 32 × 32 colour crops of eight photographs
      (scikit-learn, scikit-image), at three scales, from disjoint regions; fresh draws, 10,000
      train and 1,000 test unless told otherwise.
    - ``cifar10``: from ``cifar10-train.zip`` and ``cifar10-test.zip`` below root if they are
      there, otherwise through torchvision, which downloads it (170 MB) and checks its hash.
    - ``ffhq64``, ``afhqv2-64``: from ``ffhq-64x64.zip`` and ``afhqv2-64x64.zip`` below root, made
      with EDM's dataset tool.
    - a path to a folder or ZIP in the layout of EDM's dataset tool (PNG, JPEG, WebP, BMP or TIFF).
      If its name ends in ``-train`` and its twin ending in ``-test`` lies beside it, that is the
      test set; if its images lie in folders ``train`` and ``test``, the second is, also below a
      folder that holds both; other folders of these names are an error. A folder that is called
      like one of the above is ``"./photos"``, or a :class:`pathlib.Path`.

    A dataset without a test set of its own holds out a tenth of its images, at least one and at
    most 1,000 (digits 297). Which ones does not depend on the seed, so that what a network was
    trained on is never among them; a larger ``n_test`` holds out images on which networks were
    trained, ``n_test=0`` none.

    Args:
        name: A name, or a path.
        root: Where archives lie and downloads go; the environment variable FPMC_DATA if left out,
            and ``~/.cache/fpmc`` without that.
        n_train: How many training images, chosen (for photos: drawn) by the seed; all if left out.
        n_test: How many test images, likewise; where they are held out, how many are.
        seed: Seed of these choices.

    Raises:
        FileNotFoundError: If an archive is missing; says how to make it.
        ImportError: If torchvision is needed and does not work; says what to install.
        ValueError: If there is no such dataset, it holds fewer images than asked for, or an
            archive cannot be read.
    """
    seed = as_whole_number(seed, "seed", 0, 2**63 - 1)
    n_train = None if n_train is None else as_whole_number(n_train, "n_train", 1)
    n_test = None if n_test is None else as_whole_number(n_test, "n_test", 0)
    for argument, value in (("name", name), ("root", root or "")):
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{argument}: got {type(value).__name__}, wanted a name or a path")
    root = home(root)
    is_path, name = not isinstance(name, str), os.fspath(name)
    if is_path and name in NAMES:
        name = os.path.join(os.curdir, name)

    if name in PHOTOS_SIDE:
        side = PHOTOS_SIDE[name]
        train = crops(side, "train", 10_000 if n_train is None else n_train, seed)
        test = crops(side, "test", 1_000 if n_test is None else n_test, seed)
        return Dataset(name, torch.from_numpy(train), torch.from_numpy(test))

    train, test = _read(name, root)
    if train.shape[1:] != SHAPES.get(name, train.shape[1:]):
        raise ValueError(f"{name}: got images {train.shape[1:]}, wanted {SHAPES[name]}")
    if test is None:
        shuffled = np.random.default_rng(SPLIT).permutation(len(train))
        held_out = min(1_000, max(1, len(train) // 10)) if n_test is None else n_test
        if name == "digits" and n_test is None:
            held_out = HELD_OUT_DIGITS
        if held_out >= len(train):
            raise ValueError(f"n_test: got {held_out}, but {name} holds {len(train):,} images")
        test, train = (
            train[np.sort(shuffled[:held_out])],
            train[np.sort(shuffled[held_out:])],
        )
    train = _subset(train, n_train, [seed, 2], "n_train", name)
    test = _subset(test, n_test, [seed, 3], "n_test", name)
    return Dataset(name, torch.from_numpy(train), torch.from_numpy(test))


def _read(name: str, root: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """All training images, and the test images if the dataset has them apart."""
    if name == "digits":
        return np.round(load_digits().images[:, None] * (255 / 16)).astype(np.uint8), None
    if name == "cifar10":
        archives = [root / f"cifar10-{part}.zip" for part in ("train", "test")]
        found = [archive.exists() for archive in archives]
        if any(found) and not all(found):
            raise FileNotFoundError(f"cifar10: no {archives[found.index(False)]}")
        return _read_pair(archives[0]) if all(found) else _download_cifar10(root)
    if name in ARCHIVES:
        archive = root / ARCHIVES[name]
        if not archive.exists():
            raise FileNotFoundError(
                f"{name}: no {archive}. Make it with EDM's dataset tool, "
                f"python dataset_tool.py --source=IMAGES --dest={archive.name} "
                "--resolution=64x64, and put it there, or name its folder as root (or FPMC_DATA)"
            )
        return read_archive(archive), None
    path = Path(name).expanduser()
    if not name or not path.exists():
        raise ValueError(
            f"name: got {name!r}, wanted one of {', '.join(NAMES)}, or a path to a folder or ZIP"
        )
    return _read_pair(path)


def _read_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    if parts(path):
        twin, (train, test) = path, (read_archive(path, part) for part in PARTS)
    else:
        twin, train = _twin(path), read_archive(path)
        if twin is None:
            return train, None
        test = read_archive(twin)
    if test.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"{twin}: got images {test.shape[1:]}, wanted {train.shape[1:]} as in {path}"
        )
    return train, test


def _twin(path: Path) -> Path | None:
    """The test set beside a training set: NAME-test beside NAME-train, a folder or a ZIP."""
    suffix = "" if path.is_dir() else path.suffix
    name = path.name.removesuffix(suffix)
    if not name.endswith("-train"):
        return None
    twin = path.with_name(name.removesuffix("-train") + "-test" + suffix)
    return twin if twin.exists() else None


def _download_cifar10(root: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"cifar10 is read through torchvision, which does not work here ({error}). Install the "
            "build of torchvision that matches your torch from the same index, for instance "
            "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu, "
            f"or put cifar10-train.zip and cifar10-test.zip into {root}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    splits = (CIFAR10(root, train=train, download=True).data for train in (True, False))
    return tuple(np.ascontiguousarray(data.transpose(0, 3, 1, 2)) for data in splits)


def _subset(images: np.ndarray, n: int | None, seed: list[int], argument: str, name: str):
    if n is None or n == len(images):
        return images
    if n > len(images):
        raise ValueError(f"{argument}: got {n:,}, but {name} holds {len(images):,} such images")
    return images[np.sort(np.random.default_rng(seed).permutation(len(images))[:n])]
