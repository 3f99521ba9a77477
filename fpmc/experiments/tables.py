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
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock

from fpmc.metrics import Estimate
from fpmc.storage import BROKEN, whole, write_rows

__all__ = ["SETTINGS", "Table", "arrays", "keep_arrays", "numbers"]

HASHES = ("network_hash", "data_hash")
"""Settings without which nobody can tell by which network and on which images a row was made."""
SETTINGS = ("n", "n_source", "steps", "seed", "precision", *HASHES, "schedule_hash", "maps_hash")
SETTINGS += ("arguments", "tuning", "validation_n", "reference_n")
"""The columns that hold settings. A row that is older than a column has nothing to compare there,
and counts as it is; without one of :data:`HASHES` only in a table that is trusted."""

ATTEMPTS = 10


class Table:
    """A CSV file, and the shards that have not been merged into it yet.

    Args:
        path: The file.
        key: The columns that tell rows apart; none if one row stands for all, as in a table that
            was made at once.
        trusted: Whether rows without :data:`HASHES` can only be of the networks and images that
            are asked about.
        shards: The folder of new rows' shards, if they are to stay there until another process
            merges them; beside the file if left out.

    Raises:
        ValueError: If the file is no table with these columns.
    """

    def __init__(
        self,
        path: Path,
        key: tuple[str, ...],
        *,
        trusted: bool = False,
        shards: Path | None = None,
    ):
        self.path, self.key, self.trusted = path, key, trusted
        self.shards, self.apart = (shards or path.parent) / f"{path.stem}.shards", bool(shards)
        self.rows = {self._key(row): row for row in self._sharded().values()} | self._read()

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
        differs = self._difference(row, settings)
        if differs:
            told = f"a row of {', '.join(self._key(head))}" if self.key else "rows"
            raise ValueError(
                f"{self.path}: has {told} {differs}: name another folder as --out, or ask for the "
                "same"
            )
        return True

    def _difference(self, row: Mapping, settings: Mapping) -> str:
        """What a row's settings have other than these, in words; "" if nothing."""
        for name in SETTINGS:
            held, wanted = row.get(name) or "", str(settings.get(name, ""))
            if wanted and held and held != wanted:
                return f"with {name} = {held}, wanted {wanted}"
            if wanted and not held and name in HASHES and not self.trusted:
                return f"without {name}, wanted {wanted}"
        return ""

    def __getitem__(self, head: Mapping) -> dict[str, str]:
        """The row with the same key."""
        return self.rows[self._key(head)]

    def add(self, row: Mapping) -> None:
        """Keep a row, as a shard."""
        told = {name: str(value) for name, value in row.items()}
        self.rows[self._key(told)] = told
        decided = (*self._key(told), *(told.get(name, "") for name in SETTINGS))
        digest = hashlib.sha256("\0".join(decided).encode()).hexdigest()[:16]
        name = f"{len(self.rows):06d}-{digest}"  # which keeps the order of one process's rows
        for _ in range(ATTEMPTS):  # another process may remove the folder once it is empty
            self.shards.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), whole(self.shards / name) as beside:
                beside.write_text(json.dumps(told), encoding="utf-8")
                return
        raise FileNotFoundError(f"{self.shards}: a folder that does not last")

    def take(self, row: Mapping) -> None:
        """Keep a row that another process made, unless it is there by the same settings."""
        held = self.rows.get(self._key(row))
        if held is None or self._difference(held, row):
            self.add(row)

    def collect(self, *, replace: bool = False) -> None:
        """Merge all shards into the file. A column that a row lacks is empty in it.

        Args:
            replace: Whether rows take the place of those that are there by other settings.

        Raises:
            ValueError: If a shard has a row that is there by other settings, as two processes with
                different settings make them; the one that came first stays, all others are merged.
        """
        if not self.shards.is_dir():
            return
        differs = ""
        with _lock(self.shards):
            found = self._sharded()
            self.rows = self._read()
            for row in found.values():
                key = self._key(row)
                told = "" if replace else self._difference(self.rows.get(key, row), row)
                if told:
                    differs = differs or f"a row of {', '.join(key)} {told}"
                else:
                    self.rows[key] = row
            if found:
                write_rows(self.path, self.rows.values())
            for path in found:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.shards.rmdir()
        if differs:
            raise ValueError(
                f"{self.path}: has {differs}, by another process: name another folder as --out"
            )

    @contextlib.contextmanager
    def collected(self) -> Iterator["Table"]:
        """The table, merged at the end of the block, however it ends.

        One whose shards stay in a folder of their own is left to the process that merges them.
        """
        try:
            yield self
        finally:
            if not self.apart:
                self.collect()

    def own(self) -> list[dict[str, str]]:
        """The rows that are shards: no one has merged them yet."""
        return list(self._sharded().values())

    def _read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The file's rows; one that is cut off is said, and left out."""
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows, whole_head = list(reader), set(self.key) <= set(reader.fieldnames or self.key)
        if not whole_head and text.endswith("\n"):
            raise ValueError(f"{self.path}: not a table with the columns {', '.join(self.key)}")
        if not whole_head:
            print(f"{self.path}: is cut off; it is computed again", file=sys.stderr)
            return {}
        torn = [row for row in rows if None in row or None in row.values()]
        if not text.endswith("\n") and rows and rows[-1] not in torn:
            torn.append(rows[-1])
        for row in torn:
            told = ", ".join(str(row.get(name)) for name in self.key)
            print(
                f"{self.path}: the row of {told} is cut off; it is computed again where asked for",
                file=sys.stderr,
            )
        return {self._key(row): row for row in rows if row not in torn}

    def _sharded(self) -> dict[Path, dict[str, str]]:
        """The shards' rows; one that another process has merged meanwhile is in the file."""
        found = {}
        for path in sorted(self.shards.glob("[0-9]*-*")):
            with contextlib.suppress(FileNotFoundError):
                try:
                    found[path] = json.loads(path.read_text(encoding="utf-8"))
                except ValueError:
                    print(f"{path}: is cut off; its row is computed again", file=sys.stderr)
                    path.unlink(missing_ok=True)
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
