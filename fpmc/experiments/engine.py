"""The engine's own benchmarks on this device: the scripts of ``benchmarks/``."""

import csv
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from fpmc.engine.memory import resolve
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.experiments.provenance import ROOT
from fpmc.storage import whole, write_rows

__all__ = ["DEFAULT", "run"]

FOLDER = ROOT / "benchmarks"
DEFAULT = {
    "cpu": ["paths.py"],
    "cuda": [
        "kernels.py --data {data} --label {label} --budget {budget}",
        "paths.py --data {data} --label {label} --device {device} --n {n} --dense-n {n} "
        "--sigma 1 --repeats 2 --budget {budget}",
    ],
}
"""What runs where nothing else is asked for: scripts of the folder, and their arguments."""


def run(job: Job, clock: Clock) -> None:
    """Run each script that has no table yet, with ``--out`` for its table, kept if it ends well.

    Its arguments and a hash of the images stand in the table's rows, and decide whether it is there
    as in any other table.

    Args:
        job: Where to, and on which device.
        clock: The time there is.

    Raises:
        FileNotFoundError: If there is no such script.
        ValueError: If a script fails or writes no rows, its arguments name something else, or its
            table is there by others.
    """
    values = {name: getattr(job, name) for name in ("data", "label", "device")}
    values |= {"n": len(job.source), "budget": resolve(job.bytes)}
    root = ["--root", job.root] if job.root else []
    benchmarks = job.benchmark or DEFAULT[torch.device(job.device).type]
    for words in benchmarks:
        try:
            script, *arguments = _filled(words, values)
            told = shlex.join(_filled(words, values | {"data": job.label}))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"benchmark: got {words!r}, which cannot be filled in") from error
        path = FOLDER / script
        out = job.out / "engine" / f"{path.stem}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such benchmark")
        settings = {"arguments": told, "data_hash": job.data_hash}
        if job.table(f"engine/{path.stem}", ()).has({}, settings):
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        with clock.unit("engine"), whole(out) as beside:
            command = [sys.executable, str(path), *arguments, *root, "--out", str(beside)]
            code = subprocess.run(command).returncode
            if code:
                raise ValueError(f"{shlex.join(command)}: ended with status {code}")
            _add(beside, settings)


def _filled(words: str, values: Mapping[str, object]) -> list[str]:
    return [word.format(**values) for word in shlex.split(words)]


def _add(path: Path, settings: Mapping[str, str]) -> None:
    """Put settings beside what a script measured, in every row."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row | settings for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{path}: a benchmark's table without rows")
    write_rows(path, rows)
