"""A grid of heavy runs: what it asks for becomes jobs, and what these leave becomes tables.

A grid is a mapping, as YAML has it:

    name: tiny                          # the folder of its runs, runs/tiny
    results: results/{data}             # the tables that its rows end in
    needs: {partition: "", account: ""} # of all its jobs, where they say nothing else
    jobs:
      - stage: tuning
        axes: {data: [digits], method: [pspc_flex], learn: [q, r], level: [8, 10], seed: [0]}
        sizes: {tune_steps: 120}        # the same for all
        needs: {minutes: 30, memory: 2000, cpus: 1, gpus: 0}

Axes and sizes are options of a job, those of ``python -m fpmc.experiments``. Every combination of
the axes' values is one job, a chapter with parameters. It keeps all it writes in a folder of its
own, and :func:`collect` alone writes to the tables.
"""

import csv
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fpmc.checks import as_whole_number
from fpmc.experiments import augmentation, denoising, recipe, samples, schedules, tuning
from fpmc.experiments.clock import Clock
from fpmc.experiments.command import job_of
from fpmc.experiments.job import Job
from fpmc.experiments.stages import run as run_stage
from fpmc.experiments.tables import Table, arrays
from fpmc.storage import write_rows

__all__ = ["NEEDS", "STAGES", "Run", "collect", "compute", "expand", "keep"]

STAGES = {
    "schedules": schedules,
    "denoising": denoising,
    "samples": samples,
    "tuning": tuning,
    "augmentation": augmentation,
    "recipe": recipe,
}
"""What a grid can ask for: stages whose rows do not depend on each other."""
NEEDS = {"minutes": 60, "memory": 2000, "cpus": 1, "gpus": 0, "partition": "", "account": ""}
"""What a job needs where nothing is said: minutes of one attempt, megabytes, and where it runs."""
ARRAYS = ("each.npz", "samples.npz")
PARTS = {"stage", "axes", "sizes", "needs"}


class Run(NamedTuple):
    """One job of a grid.

    Attributes:
        name: What its files are called, STAGE/VALUE-VALUE-...
        stage: One of :data:`STAGES`.
        options: Options of a job, {name: value}.
        needs: As :data:`NEEDS`.
    """

    name: str
    stage: str
    options: dict[str, Any]
    needs: dict[str, Any]

    @property
    def folder(self) -> str:
        """Of all that it writes until it has ended; its notebook and its rows lie beside."""
        return self.options["shards"]


def expand(grid: Mapping[str, Any]) -> list[Run]:
    """The jobs that a grid stands for, each seen to be one that can be asked for.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a name is none of a grid's, a value lies outside its range, two jobs would
            have one name, or rows by different seeds would end in one table.
    """
    _known(grid, {"name", "results", "needs", "jobs"}, "grid")
    name = grid.get("name")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"name: got {name!r}, wanted the name of a folder")
    if not grid.get("jobs"):
        raise ValueError("jobs: got none, wanted a list of them")
    runs = [run for block in grid["jobs"] for run in _runs(block, grid)]
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"jobs: {twice[0]} stands for two jobs, wanted one axis more")
    seeds: dict[tuple[str, str], object] = {}
    for run in runs:
        seed = run.options.get("seed", 0)
        if seeds.setdefault((run.stage, run.options["out"]), seed) != seed:
            raise ValueError(
                f"results: got {run.options['out']} for more than one seed, wanted {{seed}} in "
                "its name"
            )
    return runs


def _runs(block: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[Run]:
    """The jobs of one entry of a grid."""
    _known(block, PARTS, "jobs")
    stage = block.get("stage")
    if stage not in STAGES:
        raise ValueError(f"stage: got {stage!r}, wanted one of {', '.join(STAGES)}")
    needs = dict(NEEDS)
    for said in (grid.get("needs", {}), block.get("needs", {})):
        _known(said, set(NEEDS), "needs")
        needs |= said
    for name, least in {"minutes": 1, "memory": 1, "cpus": 1, "gpus": 0}.items():
        as_whole_number(needs[name], f"needs: {name}", least)
    axes = {k: v if isinstance(v, list) else [v] for k, v in block.get("axes", {}).items()}
    if empty := [name for name, values in axes.items() if not values]:
        raise ValueError(f"{empty[0]}: got no value, which stands for no job")
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True)) | dict(block.get("sizes", {}))
        told = "-".join(_told(value) for value in values)
        out = grid.get("results", "results/{data}")
        stands = {"seed": 0} | chosen | {"data": Path(str(chosen.get("data", ""))).stem}
        try:
            options = {**chosen, "out": out.format(**stands)}
        except KeyError as error:
            raise ValueError(f"results: got {out!r}, which has no {error} to fill in") from error
        name = f"{stage}/{told or 'all'}"
        folder = f"runs/{grid['name']}/{name}"
        options |= {"shards": folder, "runs": folder}
        job_of(_here(options))
        yield Run(name, stage, options, needs)


def _known(given: Any, names: set[str], what: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what}: got {type(given).__name__}, wanted a mapping")
    if unknown := sorted(set(given) - names):
        raise ValueError(f"{what}: got {unknown[0]!r}, wanted some of {', '.join(sorted(names))}")


def _told(value: Any) -> str:
    """An axis's value in a file's name, which shells take as one word."""
    several = value if isinstance(value, list) else [value]
    told = (Path(str(one)).stem if "/" in str(one) else str(one) for one in several)
    return "+".join(re.sub(r"[^\w.-]", "_", one) for one in told)


def _here(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options on this machine, which may lack the GPU that the job will have."""
    if not str(options.get("device", "cpu")).startswith("cuda") or torch.cuda.is_available():
        return dict(options)
    return {**options, "device": "cpu", "precision": "exact"}


def compute(
    stage: str, options: Mapping[str, Any], minutes: float | None = None
) -> list[dict[str, str]]:
    """Run a job: the part of a stage that its options leave.

    Args:
        stage: One of :data:`STAGES`.
        options: Options of a job.
        minutes: Stop before they are over; None if nothing limits them.

    Returns:
        The rows that are to be merged: of this call, and of earlier ones that it goes on from.

    Raises:
        fpmc.limits.OutOfTimeError: If the minutes are over; the same call goes on.
    """
    job = job_of(options)
    run_stage(stage, job, Clock(math.inf if minutes is None else minutes))
    return _table(stage, job).own()


def keep(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Write a job's rows, the shard that is merged, once all of them are there."""
    write_rows(path, rows)


def collect(runs: Iterable[Run], receipt: Path) -> None:
    """Merge what jobs have left into the tables that they are for; what is there already stays.

    Args:
        runs: Jobs that have ended.
        receipt: Where to write how many rows each has brought, and to which table.

    Raises:
        FileNotFoundError: If a job's rows are not there.
        ValueError: If a row is there by other settings; all others are merged.
    """
    told, tables = [], {}
    for run in runs:
        job = job_of(_here(run.options | {"shards": None}))
        table = tables.setdefault(job.out / run.stage, _table(run.stage, job))
        with Path(f"{run.folder}.csv").open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        for row in found:
            table.take(row)
        for name in ARRAYS:
            if new := arrays(Path(run.folder, name)):
                job.keep(name, new)
        told.append({"run": run.name, "rows": len(found), "table": table.path})
    for table in tables.values():
        table.collect()
    write_rows(receipt, told)


def _table(stage: str, job: Job) -> Table:
    return job.table(stage, STAGES[stage].KEY)
