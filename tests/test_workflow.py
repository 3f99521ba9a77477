"""Snakemake runs a grid: every row once, whatever ends a job, and what fails says where."""

import csv
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
import yaml

from tests import slurm

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[1]
TINY = yaml.safe_load((ROOT / "workflow" / "grids" / "tiny.yaml").read_text())
ROWS = {"denoising": 4, "tuning": 4, "samples": 2}
"""What the grid "tiny" computes."""


def environment(folder):
    """Where the repository's package is found, also from the folder that a test runs in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": str(folder)}


@pytest.fixture
def checkout(tmp_path):
    """A folder with what Snakemake reads, in which it may leave what it likes."""
    for name in ("workflow", "book"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def grid_of(checkout, **changes):
    """A grid's file: the tiny one, or another."""
    path = checkout / "grid.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def command(checkout, profile, *more):
    words = ["-m", "snakemake", "--workflow-profile", f"workflow/profiles/{profile}"]
    words += ["--configfile", "grid.yaml", "--latency-wait", "5", *more]
    return [sys.executable, *words]


def snakemake(checkout, profile, *more, env=None):
    """Snakemake's exit status, and all that it said."""
    done = subprocess.run(
        command(checkout, profile, *more),
        cwd=checkout,
        env=env or environment(checkout),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def begun(checkout):
    """Whether some job is in the middle of its chapter."""
    logs = (path.read_text() for path in checkout.glob("runs/tiny/*/*/job.log"))
    return any("Executing" in log and "executed notebook" not in log for log in logs)


def complete(checkout):
    """See that the tables have every row of the tiny grid once, and that each notebook ran."""
    for stage, n in ROWS.items():
        found = rows(checkout / f"runs/tiny/results/digits/{stage}.csv")
        keys = {
            tuple(row[k] for k in ("method", "learn", "z", "sigma") if k in row) for row in found
        }
        assert len(found) == len(keys) == n, stage
    notebooks = sorted((checkout / "runs/tiny").glob("*/*.ipynb"))
    assert len(notebooks) == 5
    for path in notebooks:
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert cells[-1].outputs
        assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    assert sum(int(row["rows"]) for row in rows(checkout / "runs/tiny/collected.csv")) == 10


@pytest.mark.slow
def test_the_tiny_grid_runs_here_and_is_then_done(checkout):
    grid_of(checkout)
    status, told = snakemake(checkout, "local")
    assert status == 0, told
    complete(checkout)
    status, told = snakemake(checkout, "local")
    assert status == 0
    assert "Nothing to be done" in told


def test_a_wrong_parameter_is_named_before_anything_runs(checkout):
    block = {"stage": "denoising", "axes": {"data": ["digits"], "method": ["magic"]}}
    grid_of(checkout, jobs=[block])
    status, told = snakemake(checkout, "local")
    assert status != 0
    assert "grid: method: got 'magic', wanted one of optimal" in told
    assert not (checkout / "runs").exists()


@pytest.mark.slow
def test_a_cell_that_fails_says_where_and_is_not_tried_again(checkout):
    block = {"stage": "denoising", "axes": {"data": ["digits"], "level": [99]}}
    grid_of(checkout, jobs=[block | {"sizes": {"points": 4, "method": "optimal"}}])
    status, told = snakemake(checkout, "local")
    assert status != 0
    log = "runs/tiny/denoising/digits-99/job.log"
    assert "ValueError: --level: got 99" in (checkout / log).read_text()
    assert "--level: got 99" in told
    assert log in told
    notebook = checkout / "runs/tiny/denoising/digits-99/job.ipynb"
    assert str(notebook.relative_to(checkout)) in (checkout / log).read_text()
    assert nbformat.read(notebook, 4)
    assert len(list(checkout.glob("runs/tiny/*/*.ipynb"))) == 0


@pytest.mark.slow
def test_minutes_that_are_over_and_a_dead_kernel_are_taken_up_again(checkout):
    """The job's chapter is one that ends as such jobs do, each time another way."""
    (checkout / "book").unlink()
    (checkout / "book").mkdir()
    chapter = (ROOT / "book" / "job.md").read_text()
    line = "rows = grid.compute(stage, options, minutes)\n"
    assert line in chapter
    ends = """\
        import os, signal
        past = Path(options["shards"], "past")
        ran = past.read_text() if past.exists() else ""
        past.parent.mkdir(parents=True, exist_ok=True)
        past.write_text(ran + "x")
        if ran == "":
            rows = grid.compute(stage, options, 1e-9)  # one unit, then 75
        if ran == "x":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    (checkout / "book" / "job.md").write_text(chapter.replace(line, textwrap.dedent(ends) + line))
    axes = {"data": ["digits"], "level": [10]}
    block = {"stage": "denoising", "axes": axes, "sizes": {"points": 4, "method": "optimal"}}
    grid_of(checkout, jobs=[block])
    status, told = snakemake(checkout, "local")
    assert status == 0, told
    assert "its minutes are over" in told
    assert "the kernel died in cell" in told
    assert len(rows(checkout / "runs/tiny/results/digits/denoising.csv")) == 2
    assert (checkout / "runs/tiny/denoising/digits-10/past").read_text() == "xxx"


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM here: {', '.join(slurm.missing())}")
def test_slurm_runs_the_tiny_grid_whatever_ends_in_the_middle(checkout):
    grid_of(checkout)
    with slurm.cluster(checkout / "cluster") as running:
        env = environment(checkout) | running.environment | {"OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = environment(checkout)["PYTHONPATH"]
        words = command(checkout, "slurm", "--slurm-init-seconds-before-status-checks", "2")
        with (checkout / "said").open("w") as said:
            process = subprocess.Popen(words, cwd=checkout, env=env, stdout=said, stderr=said)
        slurm.until(lambda: begun(checkout) and running.jobs(), 600)
        running.ask("scancel", running.jobs()[0])
        slurm.until(lambda: "Trying to restart" in (checkout / "said").read_text(), 300)
        slurm.until(lambda: begun(checkout) and running.jobs(), 600)
        running.kill("slurmd")
        running.kill("slurmctld")
        running.start("slurmctld")
        running.start("slurmd")
        slurm.until(running.up, 120)
        process.wait(1500)
        status, told = snakemake(checkout, "slurm", env=env)
        assert status == 0, (checkout / "said").read_text() + told
    complete(checkout)
