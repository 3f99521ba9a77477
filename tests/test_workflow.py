"""Snakemake runs a grid: every row once, whatever ends a job, and what fails says where."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
import yaml

from tests import slurm

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[1]
TINY = yaml.safe_load((ROOT / "workflow" / "grids" / "tiny.yaml").read_text())
ROWS = {"denoising": 4, "tuning": 4, "samples": 2}
JOBS = {"denoising": 2, "tuning": 2, "samples": 1}
"""What the stages of the grid "tiny" compute: rows, and in how many jobs."""
LONGEST = 1_200
"""Seconds within which the tiny grid is done, whatever else the machine does."""
needs_slurm = pytest.mark.skipif(
    bool(slurm.missing()), reason=f"no SLURM here: {', '.join(slurm.missing())}"
)


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


def stages(*names):
    """The tiny grid's jobs of these stages."""
    return [block for block in TINY["jobs"] if block["stage"] in names]


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
        timeout=LONGEST,
    )
    return done.returncode, done.stdout + done.stderr


def typed(checkout, env):
    """Snakemake on SLURM as in a terminal, where Ctrl-C reaches it; it writes to "said"."""
    words = command(checkout, "slurm", "--slurm-init-seconds-before-status-checks", "2")
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (checkout / "said").open("w") as said:
        return subprocess.Popen(
            words, cwd=checkout, env=env, stdout=said, stderr=said, preexec_fn=heard
        )


def interrupt(process):
    """Press Ctrl-C; Snakemake ends when it would next ask for states, every 3 minutes at most."""
    process.send_signal(signal.SIGINT)
    assert process.wait(240) != 0


def see_through(process, running):
    """Wait for Snakemake, as a user does who looks: not for jobs that SLURM knows nothing of."""
    busy = time.monotonic()

    def over():
        nonlocal busy
        if running.jobs("PENDING,RUNNING,COMPLETING"):
            busy = time.monotonic()
        return process.poll() is not None or time.monotonic() - busy > 240

    slurm.until(over, LONGEST)
    if process.poll() is None:
        interrupt(process)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def begun(checkout):
    """Whether some job is in the middle of its chapter."""
    logs = (path.read_text() for path in checkout.glob("runs/tiny/*/*/job.log"))
    return any("Executing" in log and "executed notebook" not in log for log in logs)


def complete(checkout, *names):
    """See that tables have every row of these stages once, and that each notebook ran."""
    for stage in names:
        found = rows(checkout / f"runs/tiny/results/digits/{stage}.csv")
        keys = {
            tuple(row[k] for k in ("method", "learn", "z", "sigma") if k in row) for row in found
        }
        assert len(found) == len(keys) == ROWS[stage], stage
    notebooks = sorted((checkout / "runs/tiny").glob("*/*.ipynb"))
    assert len(notebooks) == sum(JOBS[stage] for stage in names)
    for path in notebooks:
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert cells[-1].outputs
        assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    collected = rows(checkout / "runs/tiny/collected.csv")
    assert sum(int(row["rows"]) for row in collected) == sum(ROWS[stage] for stage in names)


@pytest.mark.slow
def test_the_tiny_grid_runs_here_and_is_then_done(checkout):
    grid_of(checkout)
    status, told = snakemake(checkout, "local")
    assert status == 0, told
    complete(checkout, *ROWS)
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


def on_slurm(checkout, running):
    """Where Snakemake finds this SLURM."""
    env = environment(checkout)
    return env | running.environment | {k: env[k] for k in ("OMP_NUM_THREADS", "PYTHONPATH")}


@pytest.mark.slow
@needs_slurm
def test_slurm_runs_the_tiny_grid_whatever_ends_in_the_middle(checkout):
    grid_of(checkout)
    with slurm.cluster(checkout / "cluster") as running:
        env = on_slurm(checkout, running)
        process = typed(checkout, env)
        slurm.until(lambda: begun(checkout) and running.jobs(), 600)
        running.ask("scancel", running.jobs()[0])
        slurm.until(lambda: "Trying to restart" in (checkout / "said").read_text(), 300)
        slurm.until(lambda: begun(checkout) and running.jobs(), 600)
        running.kill("slurmd")
        running.kill("slurmctld")
        running.start("slurmctld")
        running.start("slurmd")
        slurm.until(running.up, 120)
        see_through(process, running)
        status, told = snakemake(checkout, "slurm", env=env)
        assert status == 0, (checkout / "said").read_text() + told
    complete(checkout, *ROWS)


@pytest.mark.slow
@needs_slurm
@pytest.mark.parametrize("moment", ["just accepted", "in the middle"])
def test_jobs_that_slurm_forgets_are_computed_by_the_same_command(checkout, moment):
    """A controller that dies knows after it only what it had saved; here, of no job."""
    names = ("denoising", "samples")  # three jobs: two run at a time, and one waits
    grid_of(checkout, jobs=stages(*names))
    with slurm.cluster(checkout / "cluster") as running:
        env = on_slurm(checkout, running)
        running.save()
        process = typed(checkout, env)
        slurm.until(lambda: (checkout / "said").read_text().count("SLURM jobid") == 3, 120)
        if moment == "in the middle":
            slurm.until(lambda: begun(checkout), 600)
        running.kill("slurmctld")
        running.forget()
        running.start("slurmctld")
        slurm.until(running.up, 120)
        assert running.jobs("all") == []
        interrupt(process)
        status, told = snakemake(checkout, "slurm", env=env)
        assert status == 0, (checkout / "said").read_text() + told
    complete(checkout, *names)


@pytest.mark.slow
@needs_slurm
def test_jobs_of_a_snakemake_that_was_killed_go_on_and_bring_their_rows_once(checkout):
    """As after a reboot of the login node: the folder is locked, and jobs still run."""
    grid_of(checkout, jobs=stages("denoising"))
    with slurm.cluster(checkout / "cluster") as running:
        env = on_slurm(checkout, running)
        process = typed(checkout, env)
        slurm.until(lambda: begun(checkout) and len(running.jobs()) == 2, 600)
        process.kill()
        process.wait()
        slurm.until(lambda: not running.jobs("PENDING,RUNNING,COMPLETING"), 600)
        status, told = snakemake(checkout, "slurm", env=env)
        assert status != 0
        assert "--unlock" in told
        assert len(rows(checkout / "runs/tiny/denoising/digits-10-wiener.csv")) == 2
        assert snakemake(checkout, "slurm", "--unlock", env=env)[0] == 0
        status, told = snakemake(checkout, "slurm", env=env)
        assert status == 0, told
    complete(checkout, "denoising")
