"""Files: where data and downloads lie, and writing that never leaves half a file."""

import contextlib
import csv
import io
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

__all__ = [
    "BROKEN",
    "home",
    "missing",
    "named",
    "reason",
    "try_writing",
    "whole",
    "write_array",
    "write_rows",
]

BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError)
"""What reading a file, or a ZIP whose bytes are wrong, raises."""


INSTALLED = Path(__file__).parent / "stored"
"""Where an installed package has the tables of ``results``; in a checkout it is not there."""


def missing(path: str | os.PathLike) -> FileNotFoundError:
    """The error over a file that is not there, and where it is if only a checkout has it."""
    folder, told = Path(path).parent, ""
    if INSTALLED.is_dir() and folder.name == "networks":
        told = (
            "; large files are left out of an installed package: the networks of a run and their "
            f"maps are in its repository, in results/{folder.parent.name}/networks"
        )
    return FileNotFoundError(f"{path}: no such file{told}")


def reason(error: Exception) -> str:
    """The first line of why a file cannot be read, or the error's kind if it says nothing.

    Libraries' advice to run what a file holds is left out.
    """
    said = str(error).strip().splitlines()
    if said and ("allow_pickle" in said[0] or "weights_only" in said[0]):
        return "it is broken, or of another kind"
    return said[0] if said else type(error).__name__


def home(root: str | os.PathLike | None = None) -> Path:
    """The folder for data and downloads: root, or the variable FPMC_DATA, or ``~/.cache/fpmc``.

    Raises:
        ValueError: If it starts with ~ and nobody knows where that is.
    """
    folder = Path(root or os.environ.get("FPMC_DATA") or "~/.cache/fpmc")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"FPMC_DATA: got none, and {str(folder)!r} is nowhere ({error}), wanted a folder for "
            "data and downloads in that variable"
        ) from error


def try_writing(folder: Path, name: str) -> None:
    """See that a folder can be written to, before the work whose outcome it is to hold.

    Args:
        folder: The folder.
        name: The argument that the error names.

    Raises:
        ValueError: If it cannot, or is not there.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{name}: got {str(folder)!r}, wanted a folder that can be written to ({error})"
        ) from error


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside this one to write to; it takes this one's name once the block is through.

    If the block fails, what was there before stays, and what was written goes.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with named(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """Errors of the system in this block name this file, as that of a full disk does not.

    Those of what is written beside it do, too.
    """
    try:
        yield
    except OSError as error:
        beside = str(error.filename or "").startswith(f"{path}.")
        if (error.filename is None or beside) and error.errno is not None:
            error.filename = str(path)
        raise


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    content = io.BytesIO()  # into a file, np.save does not say that its disk is full
    np.save(content, array)
    with whole(path) as beside:
        beside.write_bytes(content.getvalue())


def write_rows(path: str | os.PathLike, rows: Iterable[Mapping], *, missing: str = "") -> None:
    """Write a CSV file, whole or not at all.

    Args:
        path: The file; its folder is made if it is not there.
        rows: A mapping per row; the columns are all names that any of them has, in order.
        missing: What stands where a row lacks a column.
    """
    path, rows = Path(path), list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, list(columns), restval=missing, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
