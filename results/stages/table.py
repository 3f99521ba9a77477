"""CSV files that grow row by row."""

import csv
from pathlib import Path

from fpmc.metrics import Estimate
from fpmc.storage import whole

__all__ = ["Table", "numbers"]


class Table:
    """A CSV file that grows row by row and is whole at every moment.

    Args:
        path: The file; made with the first row.
        key: The columns that tell rows apart.
    """

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = {self._key(row): row for row in csv.DictReader(file)}

    def _key(self, row: dict) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def __contains__(self, row: dict) -> bool:
        return self._key(row) in self.rows

    def __getitem__(self, row: dict) -> dict[str, str]:
        """The row with the same key."""
        return self.rows[self._key(row)]

    def add(self, row: dict) -> None:
        """Take a row in. A column that earlier rows lack is empty in them."""
        self.rows[self._key(row)] = {name: str(value) for name, value in row.items()}
        names = list(dict.fromkeys(name for kept in self.rows.values() for name in kept))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())


def numbers(estimate: Estimate, name: str = "mse") -> dict[str, object]:
    """An estimate's columns in a row of a table."""
    return {
        name: f"{float(estimate):.6g}",
        f"{name}_error": f"{estimate.standard_error:.3g}",
        "n": estimate.n,
    }
