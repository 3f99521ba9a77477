"""Arrays in files that stay on disk: whoever reads images of them reads no others."""

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["mapped"]

LOCAL_HEADER = struct.Struct("<26xHH")
"""A ZIP's header before a file: the lengths of the file's name and of what else there is."""


def mapped(path: str | os.PathLike, entry: str | None = None) -> np.ndarray:
    """An array of a ``.npy`` file, or of a ZIP of them such as ``.npz``, mapped to memory.

    Args:
        path: The file.
        entry: The array's name in a ZIP, with or without ``.npy``; may be left out if it is the
            only one.

    Returns:
        A read-only array. Nothing of it is read before somebody asks for it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither, or the ZIP has no such array, or stores it compressed; or if
            it holds objects, or its numbers lie where a processor may not read them.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                _go_to(file, entry)
            else:
                file.seek(0)
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, in_columns, dtype = read(file)
        except (ValueError, AttributeError, OSError, zipfile.BadZipFile, struct.error) as error:
            raise ValueError(f"{path}: {error}, wanted a .npy file or a ZIP of them") from error
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{path}: got an array of objects, wanted one of numbers")
    order = "F" if in_columns else "C"
    try:
        array = np.memmap(path, dtype, "r", start, shape, order)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}, wanted an array of {shape}") from error
    if not array.flags.aligned:
        raise ValueError(
            f"{path}: got {dtype} at byte {start:,} of a ZIP, which cannot be mapped, wanted "
            "uint8 there or a .npy file"
        )
    return array


def _go_to(file: BinaryIO, entry: str | None) -> None:
    """Move to where a ZIP's array begins."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        wanted = names if entry is None else [n for n in names if n in (entry, f"{entry}.npy")]
        if len(wanted) != 1:
            raise ValueError(f"entry: got {entry!r}, wanted one of {', '.join(names) or 'none'}")
        found = archive.getinfo(wanted[0])
    if found.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{found.filename} is compressed, and cannot be mapped")
    file.seek(found.header_offset)
    lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    file.seek(sum(lengths), os.SEEK_CUR)
