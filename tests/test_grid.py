"""A grid becomes jobs, and what they leave becomes tables, each row once."""

import copy
import csv
import re
from pathlib import Path

import pytest
import yaml

from fpmc.experiments import grid
from fpmc.experiments.command import job_of
from fpmc.limits import OutOfTimeError

ROOT = Path(__file__).parents[1]
GRIDS = sorted((ROOT / "workflow" / "grids").glob("*.yaml"))
SMALL = {
    "name": "small",
    "results": "results/{data}",
    "jobs": [
        {
            "stage": "denoising",
            "axes": {"data": ["digits"], "method": ["optimal", "wiener"], "level": [1, [2, 3]]},
            "sizes": {"points": 4, "steps": 4},
            "needs": {"minutes": 3},
        }
    ],
}


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_combination_of_the_axes_is_one_job():
    runs = grid.expand(SMALL)
    assert [run.name for run in runs] == [
        f"denoising/digits-{method}-{level}"
        for method in ("optimal", "wiener")
        for level in ("1", "2+3")
    ]
    assert runs[1].options["level"] == [2, 3]
    assert runs[1].options["out"] == "results/digits"
    assert len({run.folder for run in runs}) == 4
    assert runs[0].needs == grid.NEEDS | {"minutes": 3}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_that_come_with_the_project_can_be_asked_for(path):
    given = yaml.safe_load(path.read_text())
    assert given["name"] == path.stem
    assert all(re.fullmatch(r"[\w/.+-]+", run.name) for run in grid.expand(given))


@pytest.mark.parametrize(
    ("where", "name", "value", "told"),
    [
        ("grid", "nam", 1, r"grid: got 'nam', wanted some of jobs, name, needs, results"),
        ("grid", "name", "a/b", "name: got 'a/b', wanted the name of a folder"),
        ("grid", "jobs", [], "jobs: got none"),
        ("grid", "results", "runs/{sigma}", "results: got 'runs/{sigma}', which has no 'sigma'"),
        ("block", "stage", "train", "stage: got 'train', wanted one of schedules, denoising"),
        ("block", "size", {}, "jobs: got 'size', wanted some of axes, needs, sizes, stage"),
        ("axes", "pionts", [3], "pionts: no such option"),
        ("axes", "method", ["optimal", "magic"], "method: got 'magic', wanted one of optimal"),
        ("axes", "data", [], "stands for no job"),
        ("axes", "level", [8, 8], "denoising/digits-optimal-8 stands for two jobs"),
        ("axes", "seed", [0, 1], "for more than one seed, wanted {seed}"),
        ("sizes", "points", 0, "--points: got 0"),
        ("sizes", "seed", "x", "seed: got 'x', wanted a number"),
        ("sizes", "device", "abacus", "device: got 'abacus'"),
        ("needs", "minutes", 0.5, "needs: minutes"),
        ("needs", "hours", 1, "needs: got 'hours'"),
    ],
)
def test_a_wrong_grid_is_an_error_that_names_what_is_wrong(where, name, value, told):
    wrong = copy.deepcopy(SMALL)
    block = wrong["jobs"][0]
    {"grid": wrong, "block": block}.get(where, block.get(where))[name] = value
    with pytest.raises((TypeError, ValueError), match=told.replace("{", r"\{")):
        grid.expand(wrong)


def test_a_job_for_a_gpu_is_seen_to_where_there_is_none():
    given = copy.deepcopy(SMALL)
    given["jobs"][0]["sizes"] |= {"device": "cuda", "precision": "tf32"}
    assert grid.expand(given)[0].options["device"] == "cuda"


def test_needs_of_the_grid_are_those_of_its_jobs_where_they_say_nothing_else():
    runs = grid.expand(SMALL | {"needs": {"partition": "short", "minutes": 9}})
    assert runs[0].needs == grid.NEEDS | {"partition": "short", "minutes": 3}


def test_seeds_have_tables_of_their_own():
    given = copy.deepcopy(SMALL)
    given["results"] = "results/{data}-{seed}"
    given["jobs"][0]["axes"]["seed"] = [0, 1]
    outs = {run.options["out"] for run in grid.expand(given)}
    assert outs == {"results/digits-0", "results/digits-1"}


def test_what_jobs_leave_is_what_one_process_computes(here):
    runs = grid.expand(SMALL)
    for run in runs:
        grid.keep(grid.compute(run.stage, run.options), Path(f"{run.folder}.csv"))
        assert not Path("results/digits").exists()  # a job writes to no table
    for _ in range(2):
        grid.collect(runs, Path("collected.csv"))
    found = rows("results/digits/denoising.csv")
    assert [row["rows"] for row in rows("collected.csv")] == ["2", "4", "2", "4"]
    options = {"data": "digits", "method": ["optimal", "wiener"], "level": [1, 2, 3]}
    options |= SMALL["jobs"][0]["sizes"]
    grid.compute("denoising", options | {"out": "alone"})
    alone = rows("alone/denoising.csv")
    varies = ("seconds", "date", "code")
    kept = [{tuple((k, v) for k, v in row.items() if k not in varies) for row in both}
            for both in (found, alone)]  # fmt: skip
    assert kept[0] == kept[1]
    assert len(found) == len(alone) == 12


def test_a_job_goes_on_with_the_rows_it_left_and_with_those_of_the_tables(here):
    given = copy.deepcopy(SMALL)
    given["jobs"][0]["axes"] = {"data": ["digits"], "level": [1], "method": [["optimal", "wiener"]]}
    (run,) = grid.expand(given)
    with pytest.raises(OutOfTimeError):
        grid.compute(run.stage, run.options, 1e-9)
    assert len(job_of(run.options).table("denoising", grid.STAGES["denoising"].KEY).own()) == 1
    assert len(grid.compute(run.stage, run.options)) == 4
    grid.keep(grid.compute(run.stage, run.options), Path(f"{run.folder}.csv"))
    grid.collect([run], Path("collected.csv"))
    later = {**run.options, "shards": "later", "runs": "later"}
    assert grid.compute(run.stage, later) == []


def test_rows_by_other_settings_are_said_and_the_others_merged(here):
    runs = grid.expand(SMALL)
    other = grid.Run("x", "denoising", {**runs[0].options, "points": 3, "shards": "x"}, {})
    for run in (other, *runs[:2]):
        grid.keep(grid.compute(run.stage, run.options), Path(f"{run.folder}.csv"))
    grid.collect([other], Path("collected.csv"))
    with pytest.raises(ValueError, match=r"has a row of .* with n = 3, wanted 4"):
        grid.collect(runs[:2], Path("collected.csv"))
    assert len(rows("results/digits/denoising.csv")) == 2 + 4


def test_samples_are_merged_with_their_pictures(here):
    given = copy.deepcopy(SMALL)
    axes = {"data": ["digits"], "method": ["optimal", "wiener"]}
    given["jobs"] = [
        {"stage": "samples", "axes": axes, "sizes": {"samples": 3, "part": 2, "steps": 4}}
    ]
    runs = grid.expand(given)
    for run in runs:
        grid.keep(grid.compute(run.stage, run.options), Path(f"{run.folder}.csv"))
    grid.collect(runs, Path("collected.csv"))
    merged = job_of({"data": "digits", "out": "results/digits"})
    assert {"optimal", "wiener", "digits/ddpmpp", "digits/ncsnpp"} <= set(
        merged.held("samples.npz")
    )
    assert merged.held("each.npz")["optimal"].shape == (3, 3)
    methods = sorted(row["method"] for row in rows("results/digits/samples.csv"))
    assert methods == ["digits/ddpmpp", "optimal", "wiener"]
