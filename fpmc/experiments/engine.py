"""The engine's own benchmarks on this device: the scripts of ``benchmarks/``."""

import shlex
import subprocess
import sys

import torch

from fpmc.engine.memory import resolve
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.experiments.provenance import ROOT
from fpmc.storage import whole

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

    Args:
        job: Where to, and on which device.
        clock: The time there is.

    Raises:
        FileNotFoundError: If there is no such script.
        ValueError: If a script fails, or its arguments name something else.
    """
    values = {name: getattr(job, name) for name in ("data", "label", "device")}
    values |= {"n": len(job.source), "budget": resolve(job.bytes)}
    root = ["--root", job.root] if job.root else []
    benchmarks = job.benchmark or DEFAULT[torch.device(job.device).type]
    for words in benchmarks:
        try:
            script, *arguments = (word.format(**values) for word in shlex.split(words))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"benchmark: got {words!r}, which cannot be filled in") from error
        path = FOLDER / script
        out = job.out / "engine" / f"{path.stem}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such benchmark")
        if out.exists():
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        with clock.unit("engine"), whole(out) as beside:
            command = [sys.executable, str(path), *arguments, *root, "--out", str(beside)]
            code = subprocess.run(command).returncode
            if code:
                raise ValueError(f"{shlex.join(command)}: ended with status {code}")
