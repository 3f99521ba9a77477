"""Runs that are killed, doubled or out of disk: what is left, and whether the end is the same.

python tests/faults.py --out results/faults

Outside the tests, which try single faults. Each kind of run is killed (SIGKILL) at random moments
and started again by the same command until it ends; what it leaves is compared with what an
undisturbed run left. Then two processes share a folder, and a disk fills up. Anything that is lost,
doubled or different ends in status 1. A full disk needs the right to mount one (root, on Linux).
"""

import argparse
import contextlib
import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from tqdm import tqdm

import fpmc
from fpmc.storage import write_rows

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = {"date", "seconds", "minutes", "device", "version", "torch", "code"}
"""Columns that differ between two runs of one command."""
EXPERIMENT = (
    "-m fpmc.experiments --data digits --points 64 --batch 64 --out {}/tables --runs {}/runs"
)


class Kind(NamedTuple):
    """A run, what of it is compared, and how often it saves (None: after each row)."""

    command: str
    kept: tuple[str, ...]
    save_seconds: float | None = None


KINDS = {
    "training": Kind(
        "-m fpmc.networks.train --data digits --arch ddpmpp --images 4000 --batch 64 "
        "--precision float32 --save-minutes 0.02 --out {}",
        ("network.safetensors", "loss.csv"),
        1.2,
    ),
    "fine-tuning": Kind(
        "-m fpmc.finetuning --data digits --method pspc_flex --level 10 --learn qr --steps 40 "
        "--batch 64 --save-minutes 0.02 --out {}",
        ("sigma-1.08817.safetensors", "sigma-1.08817.csv"),
        1.2,
    ),
    "augmentation": Kind(
        f"{EXPERIMENT} --stage augmentation --method pspc_flex --strategy rotations --level 8 "
        "--level 12 --size 0.5 --size 1 --size 2",
        ("tables/augmentation.csv",),
    ),
    "sampling": Kind(
        f"{EXPERIMENT} --stage samples --samples 24 --part 4 --method optimal --method wiener",
        ("tables/samples.csv", "tables/each.npz", "tables/samples.npz"),
    ),
}

FAULTS = ("killed", "together", "full")
"""What is done to each."""


def start(kind: Kind, folder: Path, log: Path) -> subprocess.Popen:
    words = [sys.executable, *kind.command.replace("{}", str(folder)).split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as told:
        return subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=told, env=environment)


def told(log: Path) -> str:
    """The last lines that a run printed, without its progress."""
    lines = re.split(r"[\r\n]", log.read_text())
    return " | ".join([line for line in lines if line.strip() and "it/s" not in line][-5:])


def content(path: Path) -> object:
    """What two runs of one command have in common; an error if the file cannot be read."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError(f"{path}: a row with too few or too many fields")
        return [{k: v for k, v in row.items() if k not in VARIABLE} for row in rows]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (a.shape, a.tobytes()) for name in arrays.files for a in [arrays[name]]}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as tensors:
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: (t.shape, t.numpy().tobytes()) for name, t in found.items()}
    return torch.load(path, weights_only=True) and None


def alike(kind: Kind, folder: Path, undisturbed: Path, said: str) -> None:
    """See that a run left what an undisturbed one left; rows of a table may stand in any order.

    Raises:
        RuntimeError: If a file differs.
    """
    for file in kind.kept:
        found, wanted = (content(place / file) for place in (folder, undisturbed))
        if isinstance(found, list):
            found, wanted = (sorted(map(repr, rows)) for rows in (found, wanted))
        if found != wanted:
            raise RuntimeError(f"{said}: {file} differs from an undisturbed run's")


def readable(folder: Path) -> None:
    """See that every file of a folder is whole, however the run ended that wrote them."""
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".npz", ".safetensors", ".pt"):
            content(path)


def names(folder: Path) -> set[str]:
    """The files of a folder, but for those that runs keep their progress in."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def finished(kind: Kind, folder: Path, log: Path) -> float:
    """Run to the end; the seconds it took.

    Raises:
        RuntimeError: If the run fails.
    """
    began = time.monotonic()
    status = start(kind, folder, log).wait()
    if status:
        raise RuntimeError(f"{kind.command}: status {status}; {told(log)}")
    return time.monotonic() - began


@cache
def alone(name: str, work: Path) -> tuple[Path, float]:
    """An undisturbed run of a kind: its folder, and the seconds it took."""
    folder = work / f"{name}-undisturbed"
    return folder, finished(KINDS[name], folder, work / f"{name}-undisturbed.log")


def killed(name: str, kills: int, dice: random.Random, work: Path) -> dict[str, object]:
    """Kill runs of a kind until there were so many kills, and finish each that was begun."""
    kind, log = KINDS[name], work / f"{name}.log"
    undisturbed, seconds = alone(name, work)
    done, runs, unsaved, bar = 0, 0, [], tqdm(total=kills, desc=name)
    while done < kills:
        folder, ended = work / f"{name}-{runs}", False
        while not ended and done < kills:
            process, began = start(kind, folder, log), time.time()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = process.wait(timeout=dice.uniform(0.3, 1.0) * seconds) == 0
                if not ended:
                    raise RuntimeError(f"{name}: {told(log)}")
            if not ended:
                process.kill()
                process.wait()
                done += 1
                bar.update()
                saves = [p.stat().st_mtime for p in folder.rglob("*") if p.is_file()]
                unsaved.append(time.time() - max([began, *saves]))
                readable(folder)
        finished(kind, folder, log)
        alike(kind, folder, undisturbed, name)
        if extra := names(folder) ^ names(undisturbed):
            raise RuntimeError(f"{name}: {sorted(extra)}")
        runs += 1
    return {
        "kind": name,
        "fault": "SIGKILL",
        "times": done,
        "runs": runs,
        "outcome": "the same bits",
        "seconds_undisturbed": f"{seconds:.1f}",
        "save_seconds": kind.save_seconds or "",
        "longest_unsaved": f"{max(unsaved):.1f}",
    }


def together(name: str, times: int, work: Path) -> dict[str, object]:
    """Two processes on one folder: every row once, and the values of one alone."""
    kind, log = KINDS[name], work / f"{name}-together.log"
    undisturbed, _ = alone(name, work)
    for i in range(times):
        folder = work / f"{name}-together-{i}"
        for process in [start(kind, folder, log) for _ in "ab"]:
            if process.wait():
                raise RuntimeError(f"{name}, two processes: {told(log)}")
        alike(kind, folder, undisturbed, f"{name}, two processes")
    return {
        "kind": name,
        "fault": "two processes on one folder",
        "times": times,
        "runs": times,
        "outcome": "every row once" if kind.save_seconds is None else "the same bits",
    }


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A disk that holds so much.

    Raises:
        PermissionError: If it cannot be mounted.
    """
    folder.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    command = ("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder))
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError(f"no small disk can be mounted: {error}") from error
    try:
        yield folder
    finally:
        subprocess.run(("umount", str(folder)), check=True)


def full(name: str, dice: random.Random, times: int, work: Path) -> dict[str, object]:
    """A disk that fills up: the run says which file, what was saved stays, more room mends it."""
    kind, log = KINDS[name], work / f"{name}-full.log"
    undisturbed, _ = alone(name, work)
    size = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()) / 2**20
    failed = 0
    for i in range(times):
        share = 0.1 + 1.2 * (i + dice.random()) / times
        with small_disk(work / f"{name}-full-{i}", share * size) as disk:
            log.unlink(missing_ok=True)
            folder = disk / "run"
            if start(kind, folder, log).wait():
                failed += 1
                says = log.read_text().rstrip().splitlines()[-1]
                if not re.search(r"No space left on device.*" + re.escape(str(disk)), says):
                    raise RuntimeError(f"{name}, full disk: it says {says!r}")
                readable(folder)
            rest = work / f"{name}-rest-{i}"
            if folder.exists():
                shutil.copytree(folder, rest)
        finished(kind, rest, log)
        alike(kind, rest, undisturbed, f"{name}, full disk")
    return {
        "kind": name,
        "fault": "full disk",
        "times": failed,
        "runs": times,
        "outcome": "the file is named, the same bits once there is room",
    }


def attempts(given: argparse.Namespace, work: Path) -> Iterator[Callable[[], dict[str, object]]]:
    for name in given.kind or KINDS:
        dice = random.Random(f"{given.seed}/{name}")
        tried = {
            "killed": partial(killed, name, given.kills, dice, work),
            "together": partial(together, name, given.others, work),
            "full": partial(full, name, dice, given.others, work),
        }
        yield from (tried[fault] for fault in given.fault or tried)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--others", type=int, default=4, help="trials of other faults (default: 4)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="this one alone")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the folder of the table, faults.csv")
    given = parser.parse_args()
    code = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True)
    told = {
        "seed": given.seed,
        "version": fpmc.__version__,
        "torch": torch.__version__,
        "code": code.stdout.strip(),
    }
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for attempt in attempts(given, Path(folder)):
            try:
                rows.append({**attempt(), **told})
                tqdm.write(", ".join(map(str, list(rows[-1].values())[:5])))
            except PermissionError as error:
                tqdm.write(f"not tried: {error}")
            except RuntimeError as error:
                wrong += 1
                tqdm.write(f"WRONG: {error}")
    if given.out and rows and not wrong:
        write_rows(given.out / "faults.csv", rows)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
