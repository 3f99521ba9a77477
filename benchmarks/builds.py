"""Two builds of fpmc in turn, each in a process of its own: their times, and whether bits agree.

Machines slow down and recover, so times of two runs say little about two builds. Here both
processes stay, only one of them works at a time, and they take turns: A B A B … What is compared
are medians over the turns.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common import fastest, show
from torch import Tensor

import fpmc

__all__ = ["compare", "serve"]

ROOT = Path(__file__).parents[1]
TURN = 0.1
"""Seconds that a turn takes at least: shorter work is repeated."""
SLOWER = 1.1
"""The ratio above which a build counts as slower."""


class Build:
    """A process that runs a script with the fpmc of a checkout, and works when it is asked to.

    Args:
        checkout: The folder in which ``fpmc`` lies.
        command: The script and its arguments; it is to call :func:`serve`.

    Raises:
        ValueError: If there is no fpmc in that folder, or another one is imported.
    """

    def __init__(self, checkout: Path, command: list[str]):
        self.checkout = checkout.resolve()
        if not (self.checkout / "fpmc" / "__init__.py").is_file():
            raise ValueError(f"--against: got {checkout}, wanted a folder in which fpmc lies")
        threads = str(torch.get_num_threads())
        variables = {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": threads}
        self.process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | variables,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Build":
        imported = Path(self._read())
        if imported != self.checkout:
            raise ValueError(f"--against: got {self.checkout}, but fpmc came from {imported}")
        return self

    def __exit__(self, *error) -> None:
        self.process.__exit__(*error)  # the end of its input is the end of it

    def turn(self, case: dict) -> dict[str, tuple[float, str]]:
        """Seconds of each work of a case, and a digest of the bits that came out."""
        print(json.dumps(case), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"--against: the process with {self.checkout} ended, see above")
        return json.loads(line)


def serve(prepare: Callable[..., dict[str, Callable[[], Tensor]]]) -> None:
    """What the processes run: a turn for each line of the input, until it ends.

    Args:
        prepare: Makes of a case the works to be timed, by name, each of which returns a tensor.
    """
    print(json.dumps(str(Path(fpmc.__file__).resolve().parents[1])), flush=True)
    last = works = bits = calls = None
    for line in sys.stdin:
        if line != last:
            last, works = line, prepare(**json.loads(line))
            bits = {name: _digest(work()) for name, work in works.items()}  # compiles, too
            once = {name: fastest(work, 1, warm=False) for name, work in works.items()}
            calls = {name: 1 + int(TURN / max(s, 1e-6)) for name, s in once.items()}
        seconds = {name: _mean(work, calls[name]) for name, work in works.items()}
        print(json.dumps({name: (seconds[name], bits[name]) for name in works}), flush=True)


def compare(
    other: Path, command: list[str], cases: list[dict], turns: int
) -> list[dict[str, object]]:
    """Run every case with this checkout and with the other in turn; print and return the rows.

    Args:
        other: The folder of the other checkout.
        command: The script that calls :func:`serve`, and its arguments.
        cases: What its ``prepare`` is called with.
        turns: Turns of each build, after one that is not counted.
    """
    rows = []
    with Build(other, command) as there, Build(ROOT, command) as here:
        for case in cases:
            for build in (here, there):
                build.turn(case)
            taken = [(here.turn(case), there.turn(case)) for _ in range(turns)]
            row = dict(case)
            for work, (_, bits) in taken[0][0].items():
                ours, theirs = (median(pair[i][work][0] for pair in taken) for i in (0, 1))
                row |= {work: ours, f"{work}, other": theirs, f"{work}: ratio": ours / theirs}
                row[f"{work}: bits"] = "same" if bits == taken[0][1][work][1] else "differ"
            rows.append(row)
            show([row])
    worse = [
        f"{', '.join(map(str, case.values()))}, {name} {value:.2f}"
        for case, row in zip(cases, rows, strict=True)
        for name, value in row.items()
        if name.endswith("ratio") and value > SLOWER
    ]
    print("slower than the other by more than a tenth:", "; ".join(worse) or "none")
    return rows


def _mean(work: Callable[[], Tensor], calls: int) -> float:
    """Seconds of one of several calls."""

    def several():
        for _ in range(calls):
            work()

    return fastest(several, 1, warm=False) / calls


def _digest(answer: Tensor) -> str:
    return hashlib.sha256(answer.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
