"""The engine's own benchmarks on this device: the scripts of ``benchmarks/``."""

import os
import shlex
import subprocess
import sys

from fpmc.storage import whole
from stages.clock import Clock
from stages.job import ROOT, Job

__all__ = ["DEFAULT", "run"]

FOLDER = ROOT / "benchmarks"
DEFAULT = {
    "cpu": ["paths.py --data {data} --label {label}"],
    "cuda": [
        "fused.py --data {data} --label {label} --b 8 64 --budget 8589934592",
        "paths.py --data {data} --label {label} --device {device} --n {n} --dense-n {n} "
        "--sigma 1 --repeats 2 --budget 8589934592",
    ],
}
"""What runs where nothing else is asked for: scripts of the folder, and their arguments."""


def run(job: Job, clock: Clock, benchmarks: list[str]) -> None:
    """Run each script that has no table yet, with ``--out`` for its table, kept if it ends well.

    Args:
        job: Where to, and on which device.
        clock: The time there is.
        benchmarks: Scripts with their arguments, as on a command line, in which {data}, {label},
            {device} and {n} are the dataset, what tables call it, the device and the number of
            source images; datasets lie where the job's do.

    Raises:
        FileNotFoundError: If there is no such script.
        ValueError: If a script fails.
    """
    environment = os.environ | ({"FPMC_DATA": str(job.root)} if job.root else {})
    for words in benchmarks:
        values = {name: getattr(job, name) for name in ("data", "label", "device")}
        values["n"] = len(job.source)
        script, *arguments = (word.format(**values) for word in shlex.split(words))
        path = FOLDER / script
        out = job.out / "engine" / f"{path.stem}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such benchmark")
        if out.exists():
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        with clock.unit("engine"), whole(out) as beside:
            command = [sys.executable, str(path), *arguments, "--out", str(beside)]
            code = subprocess.run(command, env=environment).returncode
            if code:
                raise ValueError(f"{shlex.join(command)}: ended with status {code}")
