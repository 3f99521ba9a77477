"""Stored tables: what is read is what was written, and computing goes on where it stopped."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fpmc import networks, results, sensitivity
from fpmc.methods.schedules import FOUND, found, patch_schedule
from fpmc.metrics import Estimate
from tests.test_networks import tiny

ROOT = Path(__file__).parents[1]
LEVELS = [2.0, 0.3]


@pytest.fixture(scope="module")
def compute():
    spec = importlib.util.spec_from_file_location("compute", ROOT / "results" / "compute.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compute"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compute"]


@pytest.fixture
def job(compute, tmp_path):
    """A small comparison on digits: two noise levels, two points, two values of each knob."""
    for seed in (0, 1):
        path = tmp_path / f"network{seed}.safetensors"
        networks.save(tiny(shape=(1, 8, 8), seed=seed), path)
    network = networks.load(tmp_path / "network0.safetensors")
    maps = sensitivity.maps_over(network, LEVELS, compute.data.load("digits").test[:1])
    sensitivity.write(tmp_path / "maps.npz", maps)

    class Small(compute.Job):
        levels = LEVELS
        knobs = {  # noqa: RUF012
            "pspc_square": [3, 8],
            "pspc_flex": [0.5, 1.0],
            "ls": [3, 5],
            "els": [3, 5],
            "lukoianov": [0.02, 0.1],
        }

    return Small(
        "digits",
        None,
        str(tmp_path / "network0.safetensors"),
        str(tmp_path / "network1.safetensors"),
        str(tmp_path / "maps.npz"),
        points=2,
        samples=2,
        batch=2,
        els_source=50,
        seed=0,
        device="cpu",
    )


def test_the_stages_compute_every_row_once_and_the_tables_can_be_read(compute, job, tmp_path):
    out = tmp_path / "digits"
    for _ in range(2):
        compute.schedules(job, out)
        compute.store(job, out)
        compute.denoising(job, out)
        compute.samples(job, out)
        contents = [path.read_bytes() for path in sorted(out.glob("*.csv"))]
    assert len(results.read("digits", "schedules", tmp_path)) == 5 * 2 * 2
    rows = results.read("digits", "denoising", tmp_path)
    assert len(rows) == (2 + 5 + 3) * 2 * 2
    assert isinstance(rows[0]["mse"], Estimate)
    assert rows[0]["mse"].n == 2
    assert {row["n_source"] for row in rows if row["method"] == "els"} == {50}
    drawn = results.images("digits", tmp_path)
    assert drawn["pspc_square, found"].shape == (2, 1, 8, 8)
    assert len(results.read("digits", "samples", tmp_path)) == 1 + 10
    assert results.stored(tmp_path) == [
        ("digits", name) for name in ("denoising", "samples", "schedules")
    ]
    compute.denoising(job, out)
    assert contents == [path.read_bytes() for path in sorted(out.glob("*.csv"))]


def test_a_stage_that_was_stopped_goes_on_and_never_leaves_half_a_table(
    compute, job, tmp_path, monkeypatch
):
    out, calls, mse = tmp_path / "digits", iter(range(7)), compute.metrics.mse

    def stop(a, b):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return mse(a, b)

    monkeypatch.setattr(compute.metrics, "mse", stop)
    with pytest.raises(KeyboardInterrupt):
        compute.schedules(job, out)
    before = results.read("digits", "schedules", tmp_path)
    assert len(before) == 7
    monkeypatch.setattr(compute.metrics, "mse", mse)
    compute.schedules(job, out)
    after = results.read("digits", "schedules", tmp_path)
    assert len(after) == 20
    assert after[:7] == before


def test_the_schedule_is_the_value_with_the_lowest_error(compute, job, tmp_path):
    compute.schedules(job, tmp_path / "digits")
    rows = results.read("digits", "schedules", tmp_path)
    for method, schedule in compute.best(tmp_path / "digits").items():
        for sigma, value in schedule.items():
            here = [r for r in rows if (r["method"], r["sigma"]) == (method, sigma)]
            assert value == min(here, key=lambda row: row["mse"])["value"]


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("column", ["pspc_square", "pspc_flex", "ls", "els", "lukoianov"])
def test_found_schedules_are_those_of_the_stored_search(name, column):
    kept = found(name, column)
    best = {}
    for row in results.read(name, "schedules"):
        if row["method"] == column:
            best.setdefault(row["sigma"], []).append(row)
    assert list(kept) == pytest.approx(list(best))
    for value, rows in zip(kept.values(), best.values(), strict=True):
        assert value == min(rows, key=lambda row: row["mse"])["value"]


def test_a_found_schedule_is_taken_as_it_is_on_its_own_data():
    for name, side in FOUND.items():
        table = found(name, "ls")
        schedule = patch_schedule(name, "ls", side)
        assert [schedule(sigma) for sigma in table] == list(table.values())


def test_a_missing_or_foreign_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"compute\.py --data nothing computes it"):
        results.read("nothing", "denoising")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "denoising.csv").write_text("mse,mse_error,n\n1,x,2\n")
    with pytest.raises(ValueError, match="not a table of results"):
        results.read("digits", "denoising", tmp_path)
    (tmp_path / "digits" / "samples.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of samples"):
        results.images("digits", tmp_path)
