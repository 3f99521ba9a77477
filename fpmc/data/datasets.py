"""The datasets by name."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.data import arrays, demonstrations, downloads, fashion
from fpmc.data.archive import read_archive
from fpmc.data.labels import from_folders
from fpmc.data.parts import Part
from fpmc.data.photos import crops
from fpmc.source import Source
from fpmc.storage import home

__all__ = ["EMBEDDED", "NAMES", "Dataset", "load"]

NAMES = ("digits", "photos", "photos32", "fashion", "cifar10", "ffhq64", "afhqv2-64", "maze")
"""The datasets that :func:`load` knows by name."""
EMBEDDED = ("digits", "photos", "photos32", "fashion")
"""Those that come with the package, smaller than the data of the papers."""

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
        train_labels: The classes of the training images, numbered from 0; None if nothing says.
        test_labels: Those of the test images.
    """

    name: str
    train: UInt8[Tensor, "n c h w"]
    test: UInt8[Tensor, "m c h w"]
    train_labels: Int64[Tensor, " n"] | None = None
    test_labels: Int64[Tensor, " m"] | None = None

    def source(self) -> Source:
        """The training images as a source, with their labels and the dataset's name."""
        return Source(self.train, labels=self.train_labels, dataset=self.name)

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
    at_most: bool = False,
) -> Dataset:
    """Load a dataset.

    - ``digits``: 8 × 8 grey handwritten digits (scikit-learn), 1,500 train and 297 test.
    - ``photos``, ``photos32``: 16 × 16 and 32 × 32 colour crops of eight photographs
      (scikit-learn, scikit-image), at three scales, from disjoint regions; fresh draws, 10,000
      train and 1,000 test unless told otherwise.
    - ``fashion``: 28 × 28 grey pictures of clothes (Fashion-MNIST). 10,000 train and 2,000 test
      come with the package, the first of each class. Asked for more, up to 60,000 and 10,000, it
      reads the four original files below root, in its folders ``fashion-mnist`` or
      ``FashionMNIST/raw``, or in ``/usr/share/datasets/fashion-mnist``; otherwise torchvision
      downloads them.
    - ``cifar10``: from ``cifar10-train.zip`` and ``cifar10-test.zip`` below root if they are
      there, otherwise through torchvision, which downloads it (170 MB) and checks its hash.
    - ``ffhq64``, ``afhqv2-64``: from ``ffhq-64x64.zip`` and ``afhqv2-64x64.zip`` below root, made
      with EDM's dataset tool.
    - ``maze``: 2,000 paths of a robot, 2 × 1 × 64, and 400 held out, labelled by their way, from
      ``maze.npz`` below root, which :mod:`fpmc.data.demonstrations` makes.
    - a path to a folder or ZIP in the layout of EDM's dataset tool (PNG, JPEG, WebP, BMP, TIFF,
      GIF, PGM, PPM, AVIF, ...; a warning says which files are left out), or to a ``.npy`` or
      ``.npz`` of uint8 images (:func:`fpmc.data.arrays.read_arrays`). If its name ends in
      ``-train`` and its twin ending in ``-test`` lies beside it, that is the test set; if its
      images lie in folders ``train`` and ``test``, the second is, also below a folder that holds
      both; other folders of these names and the like (``Train``, ``testing``, ``val``) are an
      error. A folder that is called like one of the above is ``"./photos"``, or a
      :class:`pathlib.Path`.

    Labels are those of digits, Fashion-MNIST and CIFAR-10, of ``dataset.json``, of folders that
    stand for classes (:func:`fpmc.data.labels.from_folders`), or of a ``.npz``.

    A dataset without a test set of its own holds out a tenth of its images, at least one and at
    most 1,000 (digits 297). Which ones does not depend on the seed, so that what a network was
    trained on is never among them; a larger ``n_test`` holds out images on which networks were
    trained, ``n_test=0`` none. Of a ``.npy`` file, which stays on disk, the last images are held
    out: what is left is one piece of the file.

    Args:
        name: A name, or a path.
        root: Where archives lie and downloads go; the environment variable FPMC_DATA if left out,
            and ``~/.cache/fpmc`` without that.
        n_train: How many training images, chosen (for photos: drawn) by the seed; all if left out.
        n_test: How many test images, likewise; where they are held out, how many are.
        seed: Seed of these choices. A whole number, no generator: the same call gives the same
            images, whatever was drawn before, and tables name them by it.
        at_most: Whether n_train and n_test are the most, and all are taken where there are fewer.

    Raises:
        FileNotFoundError: If an archive is missing; says how to make it.
        ImportError: If torchvision is needed and does not work; says what to install.
        OSError: If a download fails.
        ValueError: If there is no such dataset, it holds fewer images than asked for, or an
            archive or download cannot be read.
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

    train, test = _read(name, root, n_train or 0, n_test or 0)
    if at_most and n_test is not None:
        n_test = min(n_test, len(train.images) - 1 if test is None else len(test.images))
    if train.images.shape[1:] != SHAPES.get(name, train.images.shape[1:]):
        raise ValueError(f"{name}: got images {train.images.shape[1:]}, wanted {SHAPES[name]}")
    if test is None:
        train, test = _hold_out(train, n_test, name)
    if at_most and n_train is not None:
        n_train = min(n_train, len(train.images))
    train = _subset(train, n_train, [seed, 2], "n_train", name)
    test = _subset(test, n_test, [seed, 3], "n_test", name)
    return Dataset(
        name,
        *(_tensor(part.images) for part in (train, test)),
        *(None if part.labels is None else torch.from_numpy(part.labels) for part in (train, test)),
    )


def _read(name: str, root: Path, n_train: int, n_test: int) -> tuple[Part, Part | None]:
    """All training images, and the test images if the dataset has them apart."""
    if name == "digits":
        from sklearn.datasets import load_digits  # which takes longer than all the rest

        digits = load_digits()
        images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)
        return Part(images, digits.target.astype(np.int64)), None
    if name == "fashion":
        train, test = fashion.shipped()
        more = (n_train > len(train.images), n_test > len(test.images))
        whole = fashion.originals(root) if any(more) else ()
        return whole[0] if more[0] else train, whole[1] if more[1] else test
    if name == "cifar10":
        archives = [root / f"cifar10-{part}.zip" for part in ("train", "test")]
        found = [archive.exists() for archive in archives]
        if any(found) and not all(found):
            raise FileNotFoundError(f"cifar10: no {archives[found.index(False)]}")
        return _read_pair(archives[0]) if all(found) else downloads.cifar10(root)
    if name in ARCHIVES:
        archive = root / ARCHIVES[name]
        if not archive.exists():
            raise FileNotFoundError(
                f"{name}: no {archive}. Make it with EDM's dataset tool, "
                f"python dataset_tool.py --source=IMAGES --dest={archive.name} "
                "--resolution=64x64, and put it there, or name its folder as root (or FPMC_DATA)"
            )
        return _read_pair(archive)
    if name == "maze":
        return demonstrations.read(root)
    path = Path(name).expanduser()
    if not name or not path.exists():
        raise ValueError(
            f"name: got {name!r}, wanted one of {', '.join(NAMES)}, or a path to a folder, ZIP, "
            "'.npy' or '.npz'"
        )
    return _read_pair(path)


def _read_pair(path: Path) -> tuple[Part, Part | None]:
    """The parts of a file or folder, or it and its twin, with the labels that its folders give."""
    parts, twin = _read_path(path), _twin(path)
    if len(parts) == 1 and twin is not None:
        second = _read_path(twin)
        if len(second) > 1:
            raise ValueError(f"{twin}: got two parts, train and test, wanted the test images alone")
        parts += second
    if len(parts) > 1 and parts[1].images.shape[1:] != parts[0].images.shape[1:]:
        train, test = (part.images.shape[1:] for part in parts)
        one, other = (path, twin) if twin else (f"{path}, train", f"{path}, test")
        raise ValueError(f"{other}: got images {test}, wanted {train} as in {one}")
    if all(part.labels is None for part in parts):
        numbered = zip(parts, from_folders(path, parts), strict=True)
        parts = tuple(part._replace(labels=labels) for part, labels in numbered)
    return parts if len(parts) > 1 else (parts[0], None)


def _read_path(path: Path) -> tuple[Part, ...]:
    suffix = "" if path.is_dir() else path.suffix.lower()
    return (arrays.read_arrays if suffix in arrays.SUFFIXES else read_archive)(path)


def _twin(path: Path) -> Path | None:
    """The test set beside a training set: NAME-test beside NAME-train, a folder or a ZIP."""
    suffix = "" if path.is_dir() else path.suffix
    name = path.name.removesuffix(suffix)
    if not name.endswith("-train"):
        return None
    twin = path.with_name(name.removesuffix("-train") + "-test" + suffix)
    return twin if twin.exists() else None


def _hold_out(part: Part, n_test: int | None, name: str) -> tuple[Part, Part]:
    """The images to train on and those held out, in their order."""
    n = len(part.images)
    held_out = min(1_000, max(1, n // 10)) if n_test is None else n_test
    if name == "digits" and n_test is None:
        held_out = HELD_OUT_DIGITS
    if n == 1 and n_test is None:
        raise ValueError(
            f"{name}: got one image, wanted two, as one is held out; n_test=0 holds out none"
        )
    if held_out >= n:
        raise ValueError(f"n_test: got {held_out}, but {name} holds {n:,} images")
    if part.mapped:
        return _at(part, slice(n - held_out)), _at(part, slice(n - held_out, None))
    shuffled = np.random.default_rng(SPLIT).permutation(n)
    return _at(part, np.sort(shuffled[held_out:])), _at(part, np.sort(shuffled[:held_out]))


def _subset(part: Part, n: int | None, seed: list[int], argument: str, name: str) -> Part:
    most = len(part.images)
    if n is None or n == most:
        return part
    if n > most:
        raise ValueError(f"{argument}: got {n:,}, but {name} holds {most:,} such images")
    return _at(part, np.sort(np.random.default_rng(seed).permutation(most)[:n]))


def _at(part: Part, index: np.ndarray | slice) -> Part:
    labels = None if part.labels is None else part.labels[index]
    return Part(part.images[index], labels)


def _tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; torch warns of maps that are read-only, to which none writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
