"""Fashion-MNIST: 12,000 images that ship with the package, and all 70,000 in the original files.

Source: Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
"""

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np

from fpmc.data.downloads import download
from fpmc.data.parts import Part
from fpmc.storage import BROKEN

__all__ = ["originals", "shipped"]

CLASSES = 10
SIDE = 28
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The original files, and the SHA-256 hash of what is in each once it is unpacked."""

FOLDERS = (".", "fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist")
"""Where the original files are looked for: below root, as torchvision lays them, as Debian does."""


def shipped() -> tuple[Part, Part]:
    """The 10,000 training and 2,000 test images inside the package, with their labels.

    They are the first 1,000 and the first 200 images of each class, in the order of the original
    files; the classes take turns, so that image i shows class i mod 10.
    """
    with (
        resources.as_file(resources.files("fpmc.data") / "shipped" / "fashion.npz") as path,
        np.load(path) as file,
    ):
        images = [file[part][:, None] for part in ("train", "test")]
    return tuple(Part(part, np.arange(len(part)) % CLASSES) for part in images)


def originals(root: Path) -> tuple[Part, Part]:
    """All 60,000 and 10,000 images in the original files' order, with their labels.

    Args:
        root: Where the files lie, packed or not, or torchvision puts them. They are looked for
            in it, in its folders ``fashion-mnist`` and ``FashionMNIST/raw``, and where Debian's
            package dataset-fashion-mnist lays them.

    Raises:
        ImportError: If they lie nowhere and torchvision, which downloads them, does not work.
        ValueError: If one of the files is not the original one.
    """
    folder = _folder(root)
    if folder is None:
        otherwise = f"put the four original files of Fashion-MNIST into {root}"
        download("FashionMNIST", "fashion", root, otherwise)
        folder = root / "FashionMNIST" / "raw"
    return tuple(
        Part(
            _content(folder, f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, SIDE, SIDE),
            _content(folder, f"{part}-labels-idx1-ubyte", 8).astype(np.int64),
        )
        for part in ("train", "t10k")
    )


def _folder(root: Path) -> Path | None:
    for folder in (root / name for name in FOLDERS):
        if all((folder / f"{name}.gz").exists() or (folder / name).exists() for name in FILES):
            return folder
    return None


def _content(folder: Path, name: str, header: int) -> np.ndarray:
    packed, plain = folder / f"{name}.gz", folder / name
    path = packed if packed.exists() else plain
    try:
        content = gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()
    except BROKEN as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != FILES[name]:
        raise ValueError(f"{path}: got other bytes than Fashion-MNIST's, wanted the original file")
    return np.frombuffer(content, np.uint8, offset=header)
