"""Every searched method's error to the network over its knob and σ, forward z."""

import csv
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from fpmc import diffusion, methods, metrics
from fpmc.methods.schedules import FOUND, patch_schedule
from fpmc.storage import whole
from stages import contest
from stages.clock import Clock
from stages.job import ROOT, Job, in_batches
from stages.table import Table, numbers

__all__ = ["found", "run"]

SEARCHED = (0.02, 20.0)
"""Noise levels of the search; outside, the nearest level's value is taken."""
KEY = ("data", "network", "method", "sigma", "value", "n_source")


def run(job: Job, clock: Clock) -> None:
    """Search, and keep the schedules in the form of the published tables."""
    table = Table(job.out / "schedules.csv", KEY)
    x = job.test(job.searched or job.points)

    @lru_cache(maxsize=1)
    def question(i: int):
        z = diffusion.add_noise(x, job.levels[i], job.seed * 1000 + i)
        return z, in_batches(job.reference, job.batch)(z, job.levels[i])

    def error(name: str, i: int, value: float) -> float:
        head = _head(job, name, i) | {"value": value}
        if head not in table:
            with clock.unit(name):
                z, target = question(i)
                start = time.perf_counter()
                estimate = metrics.mse(job.method(name, value)(z, job.levels[i]), target)
                seconds = time.perf_counter() - start
                table.add({**head, **numbers(estimate), **job.provenance(name, seconds)})
        return float(table[head]["mse"])

    _search(job, contest.wanted(job, contest.searched(job)), error, "schedules")
    _store(job)


def found(job: Job, names: list[str]) -> dict[str, dict[float, float]]:
    """The schedule of each of these methods: at every σ the value with the lowest error.

    Raises:
        ValueError: If the search has not come to its end.
    """
    table = Table(job.out / "schedules.csv", KEY)

    def error(name: str, i: int, value: float) -> float:
        head = _head(job, name, i) | {"value": value}
        if head not in table:
            raise ValueError(f"{table.path}: not complete; run the stage schedules to its end")
        return float(table[head]["mse"])

    return _search(job, names, error)


def _head(job: Job, name: str, i: int) -> dict[str, str]:
    network, sigma = job.called(job.reference_file), f"{job.levels[i]:.6g}"
    seen = {"n_source": str(len(job.seen_by(name)))}
    return {"data": job.label, "network": network, "method": name, "sigma": sigma, **seen}


def _search(
    job: Job,
    names: list[str],
    error: Callable[[str, int, float], float],
    progress: str | None = None,
) -> dict[str, dict[float, float]]:
    """Walk through methods, levels and values; {method: {sigma: best}}, with σ as in tables."""
    low, high = SEARCHED
    levels = [i for i, sigma in enumerate(job.levels) if low <= sigma <= high]
    best = {name: {} for name in names}
    work = [(name, i) for name in best for i in levels]
    for name, i in tqdm(work, desc=progress, disable=progress is None):
        tried, measure = contest.values(job, name), partial(error, name, i)
        if job.papers:
            p = patch_schedule(contest.published(job), name, job.side)(job.levels[i])
            errors = _around(tried, p, measure)
        else:
            errors = {value: measure(value) for value in tried}
        best[name][float(f"{job.levels[i]:.6g}")] = min(sorted(errors), key=errors.get)
    return best


def _around(
    values: list[float], middle: float, measure: Callable[[float], float]
) -> dict[float, float]:
    """{value: error} around the middle, on until the lowest error has both its neighbours."""
    start = min(range(len(values)), key=lambda place: abs(values[place] - middle))
    low, high = max(start - 1, 0), min(start + 1, len(values) - 1)
    errors = {value: measure(value) for value in values[low : high + 1]}
    while True:
        best = min(sorted(errors), key=errors.get)
        if best == values[low] and low > 0:
            low -= 1
            errors[values[low]] = measure(values[low])
        elif best == values[high] and high < len(values) - 1:
            high += 1
            errors[values[high]] = measure(values[high])
        else:
            return errors


def _store(job: Job) -> None:
    """A table like the published ones, in the package if it is one of its; once all are found."""
    try:
        columns = found(job, contest.searched(job))
    except ValueError:
        return
    tables = Path(methods.__file__).parent / "tables"
    inside = job.data in FOUND and job.out == ROOT / "results" / job.data
    path = tables / f"{job.data}.csv" if inside else job.out / "schedule.csv"
    with whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "sigma", *columns])
        for step, level in enumerate(job.levels):
            sigma = float(f"{level:.6g}")
            if all(sigma in column for column in columns.values()):
                kept = (f"{column[sigma]:g}" for column in columns.values())
                writer.writerow([step, sigma, *kept])
