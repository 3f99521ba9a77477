"""Files of arrays: ``.npy`` of uint8 images, which stays on disk, and ``.npz`` with labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fpmc.data.archive import reading
from fpmc.data.parts import Part

__all__ = ["SUFFIXES", "read_arrays"]

SUFFIXES = (".npy", ".npz")
"""What files of arrays end in that are read."""

ENTRIES = (
    (("arr_0", "arr_1"),),
    (("images", "labels"),),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
)
"""The names of images and their labels in a .npz: as ADM's samples, MedMNIST and Keras's MNIST."""


def read_arrays(path: Path) -> tuple[Part, ...]:
    """Read a file of uint8 images (n, h, w), (n, c, h, w) or (n, h, w, c), with c = 1 or 3.

    A ``.npy`` file is mapped to memory: nothing of it is read before somebody asks for it. A
    ``.npz`` holds images in ``arr_0`` and, if they have any, labels in ``arr_1``, as ADM writes
    samples; or ``images`` and ``labels``; or these of ``train_`` and ``test_``; or ``x_train``,
    ``y_train``, ``x_test``, ``y_test``; or one array of another name.

    Raises:
        ValueError: If it cannot be read, holds no such images, or labels that are no whole
            numbers from 0 on, one for each.
    """
    with reading(path):
        with path.open("rb") as file:
            head = file.read(6)
        if not head.startswith((b"\x93NUMPY", b"PK")):  # NumPy takes it for a pickle, and says so
            raise ValueError("it begins as neither a .npy nor a .npz file")
        if head == b"\x93NUMPY":
            return (Part(_images(path, "", np.load(path, mmap_mode="r")), mapped=True),)
        with np.load(path) as file:
            for pairs in ENTRIES:
                if all(images in file for images, _ in pairs):
                    return tuple(_entries(path, file, *pair) for pair in pairs)
            if len(file.files) == 1:
                return (_entries(path, file, file.files[0], ""),)
            names = ", ".join(file.files) or "nothing"
    raise ValueError(f"{path}: got {names}, wanted images in arr_0 and labels, if any, in arr_1")


def _entries(path: Path, file: Mapping[str, np.ndarray], name: str, labels: str) -> Part:
    images = _images(path, f"{name}: ", file[name])
    if labels not in file:
        return Part(images)
    given, n = file[labels], len(images)
    if given.shape not in ((n,), (n, 1)) or given.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {labels}: got {given.dtype} of shape {given.shape}, wanted a class's whole "
            f"number for each of {n:,} images in {name}"
        )
    if given.size and given.min() < 0:
        raise ValueError(f"{path}: {labels}: got {given.min()}, wanted classes from 0 on")
    return Part(images, given.reshape(n).astype(np.int64))


def _images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The same memory as (n, c, h, w)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(
            f"{path}: {name}got {kind}, wanted uint8 pixel values; fpmc.Source(array) takes "
            "floats in [-1, 1]"
        )
    shape = array.shape
    wanted = "wanted (n, h, w), (n, c, h, w) or (n, h, w, c) with c = 1 or 3"
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{path}: {name}got shape {shape}, {wanted}")
    if len(shape) == 3:
        return array[:, None]
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        which = "which may be either of the last two" * first
        raise ValueError(
            f"{path}: {name}got shape {shape}, {which or 'with other channels'}, {wanted}"
        )
    return array if first else np.moveaxis(array, -1, 1)
