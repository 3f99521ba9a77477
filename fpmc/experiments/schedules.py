"""Every searched method's error to the network over its knob and σ, forward z."""

import contextlib
import csv
import shutil
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from fpmc import diffusion, methods, metrics
from fpmc.experiments import contest
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import Table, numbers
from fpmc.methods.schedules import FOUND, patch_schedule, published_for
from fpmc.methods.search import errors_around
from fpmc.storage import whole, write_rows

__all__ = ["found", "run", "store"]

SEARCHED = (0.02, 20.0)
"""Noise levels of the search; outside, the nearest level's value is taken."""
KEY = ("data", "network", "method", "sigma", "value", "n_source")


def run(job: Job, clock: Clock) -> None:
    """Search, and keep the schedules in the form of the published tables."""
    with job.table("schedules", KEY).collected() as table:
        _fill(job, clock, table)
    _keep(job)


def _settings(job: Job, name: str) -> dict[str, object]:
    points = min(job.search_points or job.points, len(job.dataset.test))
    return job.settings(name, points, job.reference_file, steps=len(job.levels))


def _fill(job: Job, clock: Clock, table: Table) -> None:
    x = job.test(job.search_points or job.points)

    @lru_cache(maxsize=1)
    def question(i: int):
        z = diffusion.add_noise(x, job.levels[i], job.seed * 1000 + i)
        return z, in_batches(job.reference, job.batch)(z, job.levels[i])

    def error(name: str, i: int, value: float) -> float:
        head = _head(job, name, i) | {"value": value}
        settings = _settings(job, name)
        if not table.has(head, settings):
            with clock.unit(name):
                z, target = question(i)
                start = time.perf_counter()
                estimate = metrics.mse(job.make(name, value)(z, job.levels[i]), target)
                told = job.provenance(name, time.perf_counter() - start)
                table.add({**head, **settings, **numbers(estimate), **told})
        return float(table[head]["mse"])

    _search(job, contest.wanted(job, contest.searched(job)), error, "schedules")


def found(job: Job, names: list[str]) -> dict[str, dict[float, float]]:
    """The schedule of each of these methods: at every σ the value with the lowest error.

    Raises:
        ValueError: If the search has not come to its end.
    """
    table = job.table("schedules", KEY)

    def error(name: str, i: int, value: float) -> float:
        head = _head(job, name, i) | {"value": value}
        if not table.has(head, _settings(job, name)):
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
            p = patch_schedule(published_for(job.data), name, job.side)(job.levels[i])
            errors = errors_around(tried, p, measure)
        else:
            errors = {value: measure(value) for value in tried}
        best[name][float(f"{job.levels[i]:.6g}")] = min(sorted(errors), key=errors.get)
    return best


def _keep(job: Job) -> None:
    """A table like the published ones beside the others, of the methods whose search is over."""
    columns, rows = {}, []
    for name in contest.searched(job):
        with contextlib.suppress(ValueError):
            columns |= found(job, [name])
    if not columns:
        return
    for step, level in enumerate(job.levels):
        sigma = float(f"{level:.6g}")
        if all(sigma in column for column in columns.values()):
            kept = {name: f"{column[sigma]:g}" for name, column in columns.items()}
            rows.append({"step": step, "sigma": sigma, **kept})
    write_rows(job.out / "schedule.csv", rows)


def store(job: Job) -> Path:
    """Take the schedules that a run found into the package: a step of its own, never a side effect.

    Returns:
        The file in the package.

    Raises:
        ValueError: If the data's schedules are not the package's, or the search is not complete:
            for no method, or not for one that the package has a schedule for.
    """
    if job.data not in FOUND:
        raise ValueError(f"data: got {job.data!r}, wanted one of {', '.join(FOUND)}")
    path = job.out / "schedule.csv"
    if not path.exists():
        raise ValueError(f"{path}: no such file; run the stage schedules to its end")
    inside = Path(methods.__file__).parent / "tables" / f"{job.data}.csv"
    if inside.exists() and (lost := set(_columns(inside)) - set(_columns(path))):
        raise ValueError(f"{path}: lacks {', '.join(sorted(lost))}, which {inside} has")
    with whole(inside) as beside:
        shutil.copyfile(path, beside)
    return inside


def _columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
