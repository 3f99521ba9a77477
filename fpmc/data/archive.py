"""Folders and ZIPs of images in the layout that EDM's dataset tool writes.

``00000/img00000000.png`` and so on, all of one size, with an optional ``dataset.json`` (class
labels, which nothing here needs). Images are taken in the order of their paths. Folders ``train``
and ``test`` at the top are two parts.
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fpmc.storage import BROKEN

__all__ = ["PARTS", "parts", "read_archive"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
PARTS = ("train", "test")
"""Folders that are parts of a dataset."""


def parts(path: Path) -> bool:
    """Whether the images of a folder or ZIP lie in folders ``train`` and ``test``.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the file is not a ZIP, or images lie beside the two folders.
    """
    with _reading(path), _files(path) as (names, _):
        tops = {Path(name).parts[0] if len(Path(name).parts) > 1 else "." for name in names}
    if not tops.issuperset(PARTS):
        return False
    if tops != set(PARTS):
        others = ", ".join(sorted(tops.difference(PARTS)))
        raise ValueError(f"{path}: got images in train, test and {others}, wanted the first two")
    return True


def read_archive(path: Path, part: str | None = None) -> np.ndarray:
    """Read every image below a folder or inside a ZIP.

    Args:
        path: The folder or ZIP.
        part: One of :data:`PARTS` to read that folder in it alone.

    Returns:
        uint8, shape (n, c, h, w), with c = 1 if all are grey and c = 3 otherwise.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the file is not a ZIP, it holds no images, one of them cannot be read, has
            an alpha channel or palette or several pages, or their sizes differ.
    """
    with _reading(path), _files(path) as (names, read):
        chosen = [name for name in names if part is None or Path(name).parts[0] == part]
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
        names = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        yield _images(names), lambda name: (path / name).read_bytes()
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or ZIP")
    elif not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: got a file that is not a ZIP, wanted a ZIP or a folder")
    else:
        with zipfile.ZipFile(path) as archive:
            yield _images(archive.namelist()), archive.read


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
        raise ValueError(f"{where}: cannot be read as an image ({error})") from error
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"{where}: got an image of mode {image.mode}, wanted grey (L) or RGB")
    if pages > 1:
        raise ValueError(f"{where}: got {pages} pages, wanted one image per file")
    return image
