"""Tables that several processes may fill at once, a row per unit of work.

A row that is computed becomes a shard, a file of its own. :meth:`Table.collect` merges the shards
into the CSV file, under a lock, and removes them. So two processes never write one file, a process
may be killed at any moment, and every row is there once.

What tells rows apart is their key. What decides their numbers beside that are the settings (points,
seed, precision, hashes of the network and of the images): a row that is there by other settings is
an error that names the difference, not an answer.
"""

import contextlib
import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock

from fpmc.metrics import Estimate
from fpmc.storage import BROKEN, whole, write_rows

__all__ = ["SETTINGS", "Table", "arrays", "keep_arrays", "numbers"]

SETTINGS = ("n", "seed", "precision", "network_hash", "data_hash")
"""The columns that hold settings. Rows of tables that are older than a column have none to compare
with, and count as they are."""

ATTEMPTS = 10


class Table:
    """A CSV file, and the shards that have not been merged into it yet.

    Args:
        path: The file.
        key: The columns that tell rows apart.
        shards: The folder of the shards; "PATH.shards" if left out.
    """

    def __init__(self, path: Path, key: tuple[str, ...], shards: Path | None = None):
        self.path, self.key = path, key
        self.shards = shards or path.with_name(f"{path.stem}.shards")
        self.rows = self._read()
        self.rows |= {self._key(row): row for row in self._sharded().values()}

    def _key(self, row: Mapping) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def has(self, head: Mapping, settings: Mapping) -> bool:
        """Whether the row of this key is there.

        Raises:
            ValueError: If it is, but by other settings.
        """
        row = self.rows.get(self._key(head))
        if row is None:
            return False
        for name in SETTINGS:
            held, wanted = row.get(name, ""), str(settings.get(name, ""))
            if held and wanted and held != wanted:
                raise ValueError(
                    f"{self.path}: has a row of {', '.join(self._key(head))} with {name} = {held}, "
                    f"wanted {wanted}: name another folder as --out, or ask for the same"
                )
        return True

    def __getitem__(self, head: Mapping) -> dict[str, str]:
        """The row with the same key."""
        return self.rows[self._key(head)]

    def add(self, row: Mapping) -> None:
        """Keep a row, as a shard."""
        told = {name: str(value) for name, value in row.items()}
        self.rows[self._key(told)] = told
        digest = hashlib.sha256("\0".join(self._key(told)).encode()).hexdigest()[:16]
        name = f"{len(self.rows):06d}-{digest}"  # which keeps the order of one process's rows
        for _ in range(ATTEMPTS):  # another process may remove the folder once it is empty
            self.shards.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), whole(self.shards / name) as beside:
                beside.write_text(json.dumps(told))
                return
        raise FileNotFoundError(f"{self.shards}: a folder that does not last")

    def collect(self) -> None:
        """Merge all shards into the file. A column that a row lacks is empty in it."""
        if not self.shards.is_dir():
            return
        with _lock(self.shards):
            found = self._sharded()
            self.rows = self._read() | {self._key(row): row for row in found.values()}
            if found:
                write_rows(self.path, self.rows.values())
            for path in found:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.shards.rmdir()

    @contextlib.contextmanager
    def collected(self) -> Iterator["Table"]:
        """The table, merged at the end of the block, however it ends."""
        try:
            yield self
        finally:
            self.collect()

    def _read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The file's rows; one that is cut off is said, and left out."""
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        torn = [row for row in rows if None in row or None in row.values()]
        if not text.endswith("\n") and rows and rows[-1] not in torn:
            torn.append(rows[-1])
        for row in torn:
            told = ", ".join(str(row.get(name)) for name in self.key)
            print(
                f"{self.path}: the row of {told} is cut off; it is computed again", file=sys.stderr
            )
        return {self._key(row): row for row in rows if row not in torn}

    def _sharded(self) -> dict[Path, dict[str, str]]:
        """The shards' rows; one that another process has merged meanwhile is in the file."""
        found = {}
        for path in sorted(self.shards.glob("[0-9]*-*")):
            with contextlib.suppress(FileNotFoundError):
                found[path] = json.loads(path.read_text())
        return found


def numbers(estimate: Estimate, name: str = "mse") -> dict[str, object]:
    """An estimate's columns in a row of a table."""
    return {
        name: f"{float(estimate):.6g}",
        f"{name}_error": f"{estimate.standard_error:.3g}",
        "n": estimate.n,
    }


def arrays(path: Path) -> dict[str, np.ndarray]:
    """What an ``.npz`` file holds; nothing if it is cut off, which is said."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (*BROKEN, ValueError, KeyError) as error:
        print(f"{path}: cannot be read ({error}); it is computed again", file=sys.stderr)
        return {}


def keep_arrays(path: Path, new: Mapping[str, np.ndarray]) -> None:
    """Put arrays beside those that a file holds, whole or not at all, one process at a time.

    Of an array of numbers that is there already, what is NaN in the new one stays.
    """
    with _lock(path):
        held = arrays(path)
        for name, value in new.items():
            old = held.get(name)
            same = old is not None and value.dtype.kind == "f" and old.shape == value.shape
            held[name] = np.where(np.isnan(value), old, value) if same else value
        with whole(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **held)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time in a folder. The lock's file stays: others may be waiting for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".lock")):
        yield
