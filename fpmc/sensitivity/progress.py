"""Maps while they are computed: the rows done so far, in a bar and in a file."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc.forecast import Forecast
from fpmc.limits import TERMINATED, termination
from fpmc.storage import BROKEN, whole

__all__ = ["Begun", "Progress"]

SAVE_SECONDS = 60.0
"""How often a level that is begun is saved."""


class Progress:
    """A bar over the Jacobians' rows at all noise levels, and how long they will take.

    Args:
        rows: How many rows there are in all.
        levels: How many noise levels.
        shown: Whether anything is shown.
    """

    def __init__(self, rows: int, levels: int, shown: bool) -> None:
        self.bar = tqdm(total=rows, desc="maps", unit="row", disable=not shown)
        self.forecast = Forecast(f"maps at {levels} noise level{'s' * (levels > 1)}", "row")
        self.done, self.left, self.started = 0, rows, time.monotonic()

    def at(self, sigma: float) -> None:
        """A level begins."""
        self.bar.set_description(f"maps at σ = {sigma:.3g}")

    def skip(self, rows: int) -> None:
        """Rows that were there already, of which nothing follows for the others."""
        self.left -= rows
        self.bar.total = self.bar.total and self.done + self.left
        self.bar.refresh()

    def add(self, rows: int) -> None:
        """Rows that were computed."""
        self.done += rows
        self.left -= rows
        self.bar.update(rows)
        said = self.forecast(self.done, time.monotonic() - self.started, self.left)
        if said and not self.bar.disable:
            self.bar.write(said, file=sys.stderr)


class Begun:
    """The sums of a level that is begun, in a file from which the same call goes on.

    In its block SIGTERM ends nothing by itself: the sums are saved, and then the program ends.

    Args:
        path: The file, or None if nothing is kept.
        parts: How the rows are taken in turn: rows in a pass, images in a pass.
    """

    def __init__(self, path: Path | None, parts: tuple[int, int]) -> None:
        self.path, self.parts = path, parts
        self.passes, self.saved = 0, time.monotonic()
        self.ending = nullcontext(lambda: False) if path is None else termination()

    def __enter__(self) -> "Begun":
        self.told = self.ending.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.ending.__exit__(*error)

    def read(self, total: Float[Tensor, "k h w"]) -> int:
        """Fill in the sums that are kept, if there are any; how many passes they are of."""
        if self.path is None or not self.path.is_file():
            return 0
        try:
            with np.load(self.path) as file:
                parts, passes, sums = file["parts"], int(file["passes"]), file["sums"]
        except (*BROKEN, KeyError, ValueError):
            return 0
        if tuple(parts) != self.parts or sums.shape != total.shape:
            return 0
        total.copy_(torch.from_numpy(sums))
        self.passes = passes
        return passes

    def added(self, total: Float[Tensor, "k h w"]) -> None:
        """A pass is in the sums: save them if it is time to.

        Raises:
            SystemExit: With :data:`fpmc.limits.TERMINATED`, after a SIGTERM, all saved.
        """
        self.passes += 1
        if self.path is None:
            return
        told = self.told()
        if not told and time.monotonic() - self.saved < SAVE_SECONDS:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.path) as beside, beside.open("wb") as file:
            np.savez(file, parts=self.parts, passes=self.passes, sums=total.cpu().numpy())
        self.saved = time.monotonic()
        if told:
            sys.exit(TERMINATED)
