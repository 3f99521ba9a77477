"""Folders and ZIPs of images in the layout that EDM's dataset tool writes.

``00000/img00000000.png`` and so on, all of one size, with an optional ``dataset.json`` (class
labels, which nothing here needs). Images are taken in the order of their paths. Folders ``train``
and ``test`` are two parts, at the top or below the folders that all images share.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from fpmc.storage import BROKEN

__all__ = ["PARTS", "parts", "read_archive"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
PARTS = ("train", "test")
"""Folders that are parts of a dataset."""
ARRAYS = {
    ".npy": "np.load(path)",
    ".npz": "np.load(path)[name]",
    ".pt": "torch.load(path)",
    ".pth": "torch.load(path)",
}
"""Files of arrays, and what reads them."""


def parts(path: Path) -> bool:
    """Whether the images of a folder or ZIP lie in folders ``train`` and ``test``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the file is not a ZIP, images lie beside the two folders, or a folder of one
            of these names, in whatever case, lies elsewhere.
    """
    with _reading(path), _files(path) as (names, _):
        folders = _folders(names)
    tops = {folder[0] if folder else "." for folder in folders}
    others = ", ".join(sorted(tops.difference(PARTS)))
    found = tops.issuperset(PARTS)
    if found and others:
        raise ValueError(f"{path}: got images in train, test and {others}, wanted the first two")
    for folder in folders:
        inner = folder[1:] if found else folder
        if any(name.lower() in PARTS for name in inner):
            raise ValueError(
                f"{path}: got images in {'/'.join(folder)}, wanted folders called train and test "
                "only as the two parts of all images"
            )
    return found


def read_archive(path: Path, part: str | None = None) -> np.ndarray:
    """Read every image below a folder or inside a ZIP.

    Args:
        path: The folder or ZIP.
        part: One of :data:`PARTS` to read that folder alone, where :func:`parts` finds it.

    Returns:
        uint8, shape (n, c, h, w), with c = 1 if all are grey and c = 3 otherwise.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the file is not a ZIP, it holds no images, one of them cannot be read, has
            an alpha channel or palette or several pages, or their sizes differ.
    """
    with _reading(path), _files(path) as (names, read):
        pairs = zip(names, _folders(names), strict=True)
        chosen = [name for name, folder in pairs if part is None or folder[0] == part]
        images = [_decode(read(name), f"{path}: {name}") for name in tqdm(chosen, desc=path.name)]
    if not images:
        kinds = ", ".join(sorted(suffix[1:].upper() for suffix in SUFFIXES))
        raise ValueError(f"{path}: got no images, wanted files of {kinds} in it")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"{path}: got images of sizes {sorted(sizes)}, wanted one size")
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = np.stack([np.asarray(image.convert(mode)) for image in images])
    channels_last = arrays[..., None] if mode == "L" else arrays
    return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading as errors of this path."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (*BROKEN, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


@contextmanager
def _files(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The image files' names in order, and a function that reads one."""
    if path.is_dir():
        names = (str(file.relative_to(path)) for file in _below(path))
        yield _images(names), lambda name: (path / name).read_bytes()
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or ZIP")
    elif path.suffix.lower() in ARRAYS:
        raise ValueError(
            f"{path}: got a file of arrays, wanted a ZIP or a folder of images; for an array, "
            f"fpmc.Source({ARRAYS[path.suffix.lower()]})"
        )
    elif not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: got a file that is not a ZIP, wanted a ZIP or a folder")
    else:
        with zipfile.ZipFile(path) as archive:
            yield _images(archive.namelist()), archive.read


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder, through links, but for those that lead back to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path, above | {real})
        elif path.is_file():
            yield path


def _folders(names: list[str]) -> list[tuple[str, ...]]:
    """The folders that each image lies in, without the first ones that all images share."""
    folders = [Path(name).parts[:-1] for name in names]
    levels = zip(*folders, strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return [folder[shared:] for folder in folders]


def _images(names: Iterable[str]) -> list[str]:
    """Images in the order of their paths, without what operating systems hide beside them."""
    hidden = (".", "__MACOSX")
    return sorted(
        name
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
        and not any(part.startswith(hidden) for part in Path(name).parts)
    )


def _decode(content: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        pages = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's readers of broken files raise many kinds
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is an object's address
        reason = "it begins as none that Pillow knows" if unknown else error
        raise ValueError(f"{where}: cannot be read as an image ({reason})") from error
    if image.mode not in ("L", "RGB"):
        flat = image.mode in ("P", "PA", "LA", "RGBA")
        raise ValueError(
            f"{where}: got an image of mode {image.mode}, wanted grey (L) or RGB"
            + ', as image.convert("RGB") gives' * flat
        )
    if pages > 1:
        raise ValueError(f"{where}: got {pages} pages, wanted one image per file")
    return image
