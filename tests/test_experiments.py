"""Stored tables: what is read is what was written, and computing goes on where it stopped."""

import contextlib
import csv
import importlib
import io
import itertools
import math
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fpmc import (
    augment,
    blends,
    data,
    diffusion,
    finetuning,
    methods,
    networks,
    results,
    sensitivity,
)
from fpmc.finetuning.files import digest, write_level
from fpmc.limits import OUT_OF_TIME, OutOfTimeError
from fpmc.methods.schedules import FOUND, columns, found, patch_schedule
from fpmc.metrics import Estimate
from fpmc.operators import Dense, Ones
from fpmc.source import union
from tests.test_networks import tiny

ROOT = Path(__file__).parents[1]
LEVELS = [2.0, 0.3]
KNOBS = {
    "pspc_square": [3, 8],
    "pspc_flex": [0.5, 1.0],
    "ls": [3, 5],
    "els": [3, 5],
    "lukoianov": [0.02, 0.1],
}
VARYING = ("seconds", "date", "code")


def stage(name):
    """A module of the command that computes the tables."""
    return importlib.import_module(f"fpmc.experiments.{name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two untrained networks, and the maps of the first at both noise levels."""
    folder = tmp_path_factory.mktemp("networks")
    for seed in (0, 1):
        networks.save(tiny(shape=(1, 8, 8), seed=seed), folder / f"network{seed}.safetensors")
    network = networks.load(folder / "network0.safetensors")
    maps = sensitivity.maps_over(network, LEVELS, data.load("digits").test[:1])
    sensitivity.write(folder / "maps.npz", maps)
    return folder


@pytest.fixture
def job(files, tmp_path, monkeypatch):
    """A small comparison on digits: two noise levels, two points, two values of each knob."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(stage("contest"), "values", lambda job, name: KNOBS[name])

    monkeypatch.setattr(stage("job").Job, "levels", LEVELS)
    return stage("job").Job(
        data="digits",
        out=tmp_path / "digits",
        label="digits",
        network=str(tmp_path / "network0.safetensors"),
        other=str(tmp_path / "network1.safetensors"),
        maps=str(tmp_path / "maps.npz"),
        points=2,
        samples=2,
        batch=2,
        sources={"els": 50},
    )


def run(job, *names, clock=None):
    """Run stages."""
    for name in names:
        stage(name).run(job, clock or stage("clock").Clock())


def rows(path):
    """A table's rows, without what differs between runs."""
    with path.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in VARYING}
            for row in csv.DictReader(file)
        ]


def test_the_stages_compute_every_row_once_and_the_tables_can_be_read(job, tmp_path):
    out = tmp_path / "digits"
    for _ in range(2):
        run(job, "schedules", "denoising", "samples", "worth")
        contents = [path.read_bytes() for path in sorted(out.glob("*.csv"))]
    assert len(results.read("digits", "schedules", tmp_path)) == 5 * 2 * 2
    denoised = results.read("digits", "denoising", tmp_path)
    assert len(denoised) == (2 + 5 + 3) * 2 * 2
    assert isinstance(denoised[0]["mse"], Estimate)
    assert denoised[0]["mse"].n == 2
    assert {row["n_source"] for row in denoised if row["method"] == "els"} == {50}
    drawn = results.images("digits", tmp_path)
    assert drawn["pspc_square, found"].shape == (2, 1, 8, 8)
    rows = results.read("digits", "samples", tmp_path)
    assert len(rows) == 1 + 11
    singly = results.per_sample("digits", tmp_path)
    for row in rows:
        one = singly[results.contestant(row["method"], row["schedule"])]
        assert one["mse"].shape == (2,)
        assert row["mse"] == pytest.approx(one["mse"].mean().item(), rel=1e-4)
        assert row["r2"] == pytest.approx(one["r2"].mean().item(), rel=1e-4)
        assert row["nearest"] == pytest.approx(one["nearest"].quantile(0.5).item(), rel=1e-3)
    worth = results.read("digits", "worth", tmp_path)
    assert len(worth) == 2 * 10
    assert isinstance(worth[0]["wiener"], Estimate)
    assert results.stored(tmp_path) == [
        ("digits", name) for name in ("copies", "denoising", "samples", "schedules", "worth")
    ]
    run(job, "denoising")
    assert contents == [path.read_bytes() for path in sorted(out.glob("*.csv"))]


def test_a_stage_that_was_stopped_goes_on_and_never_leaves_half_a_table(job, tmp_path, monkeypatch):
    schedules, calls = stage("schedules"), iter(range(7))
    mse = schedules.metrics.mse

    def stop(a, b):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return mse(a, b)

    monkeypatch.setattr(schedules.metrics, "mse", stop)
    with pytest.raises(KeyboardInterrupt):
        run(job, "schedules")
    before = results.read("digits", "schedules", tmp_path)
    assert len(before) == 7
    monkeypatch.setattr(schedules.metrics, "mse", mse)
    with pytest.raises(ValueError, match="not complete; run the stage schedules to its end"):
        run(job, "denoising")
    run(job, "schedules")
    after = results.read("digits", "schedules", tmp_path)
    assert len(after) == 20
    assert after[:7] == before


@pytest.mark.parametrize("papers", [False, True])
def test_stages_that_their_minutes_stop_end_with_the_tables_of_one_run(job, tmp_path, papers):
    clock = stage("clock")
    job = replace(job, papers=papers, samples=3, part=1)
    names = ("schedules", "denoising", "samples")
    run(replace(job, out=tmp_path / "whole"), *names)
    stops = 0
    for name in names:
        while True:
            seconds = itertools.count()
            try:
                run(job, name, clock=clock.Clock(20 / 60, lambda: next(seconds)))  # noqa: B023
            except OutOfTimeError:
                stops += 1
            else:
                break
    assert stops > 5
    for name in names:
        assert rows(job.out / f"{name}.csv") == rows(tmp_path / "whole" / f"{name}.csv")
    with np.load(job.out / "each.npz") as parts, np.load(tmp_path / "whole" / "each.npz") as whole:
        assert set(parts) == set(whole)
        for name in parts:
            np.testing.assert_array_equal(parts[name], whole[name])


class TestClock:
    def test_nothing_is_begun_that_would_not_end_in_time(self):
        now, module = [0.0], stage("clock")
        clock = module.Clock(1, lambda: now[0])

        def work():
            with clock.unit("work"):
                now[0] += 25

        work()
        work()
        with pytest.raises(OutOfTimeError):
            work()
        assert now == [50]

    def test_the_first_piece_is_always_done(self):
        module = stage("clock")
        clock = module.Clock(0)
        with clock.unit("work"):
            pass
        with pytest.raises(OutOfTimeError), clock.unit("other work"):
            pass


class TestTable:
    def test_a_row_with_new_columns_leaves_the_earlier_ones_readable(self, tmp_path):
        path = tmp_path / "digits" / "denoising.csv"
        path.parent.mkdir()
        path.write_text("method,mse,mse_error,n\nls,0.5,0.1,4\n")
        table = stage("tables").Table(path, ("method",))
        assert table.has({"method": "ls"}, {})
        table.add({"method": "els", "mse": 1, "mse_error": 0.2, "n": 4, "seconds": 2, "code": "a"})
        table.collect()
        first, second = results.read("digits", "denoising", tmp_path)
        assert first["mse"] == 0.5
        assert math.isnan(first["seconds"])
        assert (first["code"], second["seconds"], second["code"]) == ("", 2, "a")


class TestSearch:
    def test_the_schedule_is_the_value_with_the_lowest_error(self, job, tmp_path):
        run(job, "schedules")
        contest = stage("contest")
        table = results.read("digits", "schedules", tmp_path)
        best = stage("schedules").found(job, contest.searched(job))
        assert list(best) == list(contest.KNOBS)
        for method, schedule in best.items():
            for sigma, value in schedule.items():
                here = [r for r in table if (r["method"], r["sigma"]) == (method, sigma)]
                assert value == min(here, key=lambda row: row["mse"])["value"]

    @given(st.integers(1, 12), st.data())
    def test_around_a_middle_it_finds_the_lowest_of_a_curve_that_falls_then_rises(self, n, data):
        values = list(range(1, 2 * n, 2))
        lowest, middle = (data.draw(st.sampled_from(values)) for _ in range(2))
        curve = {value: abs(value - lowest) for value in values}
        tried = methods.search.errors_around(values, middle, curve.get)
        assert min(tried, key=tried.get) == lowest
        assert {lowest - 2, lowest, lowest + 2} & set(values) <= set(tried)
        assert len(tried) <= abs(lowest - middle) // 2 + 3


class TestContestants:
    def names(self, job):
        contest = stage("contest")
        found = {name: {} for name in contest.searched(job)}
        return [who.row for who in contest.contestants(job, found)]

    def test_on_the_papers_data_published_schedules_stand_for_all(self, job):
        assert self.names(replace(job, data="cifar10", label="c", papers=True)) == [
            ("optimal", ""),
            ("wiener", ""),
            ("ls", "found"),
            ("els", "found"),
            ("pspc_square", "cifar10"),
            ("ls", "cifar10"),
            ("els", "cifar10"),
            ("pspc_flex", "cifar10"),
            ("lukoianov", "0.05"),
            ("lukoianov", "0.02"),
        ]

    def test_on_embedded_data_published_schedules_that_no_network_tuned_stand_beside(self, job):
        beside = [name for name in self.names(job) if name[1] not in ("", "found")]
        assert beside == [(n, "cifar10") for n in ("pspc_square", "pspc_flex", "lukoianov")]

    def test_a_method_without_a_published_schedule_for_the_data_is_left_out(self, job):
        names = self.names(replace(job, data="ffhq64", label="f", papers=True))
        assert ("ls", "ffhq64") in names
        assert ("els", "ffhq64") not in names

    def test_methods_can_be_run_alone(self, job):
        only = replace(job, papers=True, method=("optimal", "lukoianov"))
        names = [("optimal", ""), ("lukoianov", "0.05"), ("lukoianov", "0.02")]
        run(only, "denoising", "samples")
        table = rows(job.out / "samples.csv")
        network = (only.called(only.reference_file), "")
        assert [(row["method"], row["schedule"]) for row in table] == [network, *names]


class TestTunedRows:
    """PSPC-Flex tuned to the network, as given and with larger sources, among the samples."""

    STAGES = ("schedules", "samples")

    @pytest.fixture
    def tuned(self, job, tmp_path):
        """The job, with a tuned collection at each of its levels: masks, with other weights."""
        masks = methods.pspc_flex(job.source, job.sensitivity, 0.5)
        for sigma in LEVELS:
            queries, responses = masks.operators(sigma)
            path = tmp_path / "tuned" / f"sigma-{sigma:g}.safetensors"
            path.parent.mkdir(exist_ok=True)
            write_level(path, sigma, Dense(0.5 * queries.dense()), responses)
        return replace(job, tuned=str(path.parent), method=("pspc_flex",), runs=tmp_path / "runs")

    def test_they_are_the_last_rows_and_say_how_they_came_about(self, tuned):
        run(tuned, *self.STAGES)
        table = {row["schedule"]: row for row in rows(tuned.out / "samples.csv")}
        names = ["tuned", "tuned + horizontal flips", "tuned + synthetic"]
        assert list(table)[-3:] == names
        assert [table[name]["n_source"] for name in names] == ["1500", "3000", "3000"]
        assert {table[name]["schedule_hash"] for name in names} == {digest(tuned.tuned)}
        assert len({table[name]["mse"] for name in ("found", *names)}) == 4
        held = (tuned.out / "samples.csv").read_bytes()
        run(tuned, "samples")
        assert (tuned.out / "samples.csv").read_bytes() == held

    def test_they_answer_as_the_collection_over_the_union(self, tuned):
        contest, z = stage("contest"), diffusion.add_noise(tuned.test(2), 0.3, 0)
        found = {who.joined: who for who in contest.tuned(tuned)}
        flips = augment.horizontal_flips(tuned.source.images)
        for joined, source in {
            "": tuned.source,
            "horizontal flips": union(tuned.source, flips),
        }.items():
            answer = contest.denoiser(tuned, found[joined])(z, 0.3)
            torch.testing.assert_close(answer, finetuning.load(tuned.tuned, source)(z, 0.3))

    def test_what_was_tuned_otherwise_is_another_setting(self, tuned):
        run(tuned, *self.STAGES)
        path = Path(tuned.tuned) / f"sigma-{LEVELS[0]:g}.safetensors"
        ones = Ones(tuned.source.shape[1:])
        write_level(path, LEVELS[0], ones, ones)
        with pytest.raises(ValueError, match=r"pspc_flex, tuned with schedule_hash = \w+, wanted"):
            run(replace(tuned), "samples")

    def test_without_a_tuned_collection_there_are_none(self, job, tmp_path):
        contest = stage("contest")
        assert list(contest.tuned(job)) == []
        assert list(contest.tuned(replace(job, network=None, method=("optimal",)))) == []
        shipped = [who.row for who in contest.tuned(replace(job, network=None))]
        assert shipped[0] == ("pspc_flex", "tuned")
        with pytest.raises(FileNotFoundError, match="no tuned noise levels there, wanted a folder"):
            run(replace(job, tuned=str(tmp_path / "none"), method=("pspc_flex",)), *self.STAGES)


def test_a_blend_has_samples_where_one_is_shipped_for_the_network(job):
    contest = stage("contest")
    assert list(contest.blended(job)) == []
    (who,) = contest.blended(replace(job, network=None))
    assert list(contest.blended(replace(job, network=None, method=("optimal",)))) == []
    assert who.row == ("blend", "")
    assert who.digest == blends.files.digest("digits/ddpmpp")
    z = diffusion.add_noise(job.test(2), 0.3, 0)
    answer = contest.denoiser(job, who)(z, 0.3)
    torch.testing.assert_close(answer, blends.load("digits/ddpmpp", job.source)(z, 0.3))


def test_a_method_may_have_fewer_samples_which_are_the_first(job):
    job = replace(job, method=("optimal", "wiener"), fewer={"wiener": 1})
    run(job, "samples")
    drawn = results.per_sample("digits", job.out.parent)
    assert {name: len(values["mse"]) for name, values in drawn.items() if "/" not in name} == {
        "optimal": 2,
        "wiener": 1,
    } | {name: 2 for name in drawn if name.startswith("network")}
    alone = replace(job, out=job.out / "all", fewer={})
    run(alone, "samples")
    whole = results.per_sample("all", job.out)
    assert whole["wiener"]["mse"][0] == pytest.approx(drawn["wiener"]["mse"][0].item(), rel=1e-5)
    assert stage("job").Job(data="photos").fewer == {"lukoianov": 48, "blend": 64}
    with pytest.raises(ValueError, match="fewer: got 'els7', wanted one of optimal"):
        replace(job, fewer={"els7": 2})


def test_the_precision_reaches_the_collections_and_stands_in_the_rows(job):
    job = replace(job, precision="float32")
    z = diffusion.add_noise(job.test(2), 0.3, 0)
    masks = methods.pspc_flex(job.source, job.sensitivity, 0.5).with_precision("float32")
    assert torch.equal(job.make("pspc_flex", 0.5)(z, 0.3), masks(z, 0.3))
    assert not torch.equal(masks(z, 0.3), masks.with_precision("exact")(z, 0.3))
    told = {name: job.settings(name, 2)["precision"] for name in ("pspc_flex", "wiener", "els", "")}
    assert told == {"pspc_flex": "float32", "wiener": "exact", "els": "exact", "": "exact"}
    tuning, forms = stage("tuning"), stage("forms")
    assert [tuning.base(job, name).precision for name in tuning.TUNED] == ["float32"] * 3
    level = forms.Level(job, tuning.HeldOut(job), 1, dict)
    answer = level.collection(*masks.operators(level.sigma))
    assert torch.equal(answer(z), masks(z, level.sigma))


def test_rows_over_another_part_of_the_source_stand_beside_the_others(job):
    job = replace(job, method=("ls",))
    for part in (replace(job, sources={"ls": 40}), job):
        run(part, "schedules", "denoising")
    for table in ("schedules", "denoising"):
        seen = [row["n_source"] for row in rows(job.out / f"{table}.csv")]
        assert seen == ["40"] * (len(seen) // 2) + ["1500"] * (len(seen) // 2)


def test_samples_of_another_reference_or_seed_are_not_taken_for_these(job, tmp_path):
    job = replace(job, method=("optimal",))
    run(job, "samples")
    path = job.out / "samples.csv"
    before = path.read_bytes()
    for changes in ({"other": str(tmp_path / "network0.safetensors")}, {"seed": 1}):
        path.unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"each\.npz: holds samples by .* name another folder"):
            run(replace(job, **changes), "samples")
    path.write_bytes(before)
    assert list(results.per_sample("digits", tmp_path))[1:] == ["optimal"]


def test_a_row_says_on_which_gpu_it_was_computed(job, monkeypatch):
    monkeypatch.setattr(type(job), "seen_by", lambda self, method: [])
    monkeypatch.setattr(stage("options"), "as_device", torch.device)  # this machine may have none
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    assert replace(job, device="cuda:1").provenance()["device"] == "a GPU, cuda:1"


def test_copies_of_training_images_are_kept_only_where_they_may_be_passed_on(job, tmp_path):
    for papers in (False, True):
        out = tmp_path / str(papers)
        run(replace(job, out=out, papers=papers, method=("optimal",)), "samples")
        kept = results.images(str(papers), tmp_path)["optimal"]
        assert (kept.std() == 0) == papers


def folder_of_images(root, n_train=40, n_test=10):
    """Colour noise, smooth enough to be an image, as a dataset on disk."""
    generator = np.random.default_rng(0)
    for part, n in (("train", n_train), ("test", n_test)):
        (root / f"tiny-{part}").mkdir(parents=True)
        for i in range(n):
            small = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((8, 8), Image.Resampling.BILINEAR)
            image.save(root / f"tiny-{part}" / f"{i:03d}.png")
    return root / "tiny-train"


def test_tuning_gains_on_forward_and_reverse_z_and_goes_on_where_it_stopped(job):
    """Rows of the error before and after, of images that chose nothing."""
    job = replace(
        job, method=("pspc_square",), learn=("q",), points=20, tune_steps=4, runs=job.out / "runs"
    )
    run(job, "tuning")
    table = results.read(job.out.name, "tuning", job.out.parent)
    assert [(row["z"], row["sigma"]) for row in table] == [
        (z, sigma) for sigma in LEVELS for z in ("forward", "reverse")
    ]
    for row in table:
        assert row["learn"] == "q"
        assert row["n"] == row["validation_n"] == 20
        apart = row["given"] - row["mse"]
        assert math.isclose(row["gain"], apart, rel_tol=1e-3, abs_tol=1e-5 * row["given"])
        assert row["validation"] <= row["validation_given"]
    before = (job.out / "tuning.csv").read_bytes()
    run(job, "tuning")
    assert (job.out / "tuning.csv").read_bytes() == before
    with pytest.raises(ValueError, match=r"tuning = 4 steps of 64, rate 0[.]05, wanted 5 steps"):
        run(replace(job, tune_steps=5), "tuning")


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"level": (2,)}, "--level: got 2"), ({"method": ("ls",)}, "method: got 'ls'")],
)
def test_tuning_names_what_it_cannot_tune(job, changes, told):
    with pytest.raises(ValueError, match=told):
        run(replace(job, **changes), "tuning")


def test_one_command_goes_from_images_to_every_table_and_repeats_nothing(tmp_path, monkeypatch):
    """On a machine without what only other data or CPUs need."""
    out = tmp_path / "tiny-jpeg"
    script = tmp_path / "benchmarks" / "speed.py"
    script.parent.mkdir()
    script.write_text(
        "import sys; from pathlib import Path\n"
        "Path(sys.argv[-1]).write_text(chr(10).join(['asked', ' '.join(sys.argv[1:-2]), '']))\n"
    )
    options = '{"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0}'
    words = f"--data {folder_of_images(tmp_path)} --label tiny-jpeg --out {out} --steps 4".split()
    words += f"--runs {tmp_path / 'runs'} --points 3 --samples 2 --part 1 --batch 4".split()
    words += ["--sources", "els=10", "--map-images", "1", "--budget", "0.1"]
    words += ["--recipe", f'{{"images": 64, "batch": 32, "options": {options}}}']
    words += [
        "--benchmark",
        "speed.py --data {data} --label {label} --n {n} --device {device} --budget {budget}",
    ]
    code = f"""if True:
        import sys
        sys.modules |= dict.fromkeys(["numba", "llvmlite", "skimage", "pooch"])
        import fpmc.experiments.__main__ as compute
        from fpmc.experiments import engine
        from pathlib import Path
        engine.FOLDER = Path({str(script.parent)!r})
        compute.main({words!r})
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path: path.read_bytes() for path in out.rglob("[!.]*") if path.is_file()}
    by_name = stage("__main__").BY_NAME
    tables = [name for name in results.TABLES if name not in by_name]
    assert {str(path.relative_to(out)) for path in files} == {
        *(f"{name}.csv" for name in tables),
        *("each.npz", "engine/speed.csv", "samples.npz", "schedule.csv"),
        *(f"networks/{name}" for name in ("ddpmpp.safetensors", "ddpmpp.npz")),
        "networks/ncsnpp.safetensors",
    }
    compute = stage("__main__")
    monkeypatch.setattr(stage("engine"), "FOLDER", script.parent)
    compute.main(words)
    assert files == {path: path.read_bytes() for path in out.rglob("[!.]*") if path.is_file()}

    card = networks.card(out / "networks" / "ddpmpp.safetensors")
    assert (card["label"], card["images"], card["train_images"]) == ("tiny-jpeg", 64, 40)
    maps = sensitivity.read(out / "networks" / "ddpmpp.npz")
    assert len(maps) == 4
    asked = f"--data {tmp_path / 'tiny-train'} --label tiny-jpeg --n 40 --device cpu "
    asked += "--budget 107374182"
    (speed,) = results.measurements("speed", tmp_path, "tiny-jpeg")
    assert speed["asked"] == asked
    assert speed["arguments"] == "speed.py " + asked.replace(
        str(tmp_path / "tiny-train"), "tiny-jpeg"
    )
    with pytest.raises(
        SystemExit, match=r"speed\.csv: has rows with arguments = .* 107374182, wanted"
    ):
        compute.main([*words, "--stage", "engine", "--budget", "0.2"])
    for name in tables:
        table = results.read("tiny-jpeg", name, tmp_path)
        assert {row["data"] for row in table} == {"tiny-jpeg"}
        assert {row["n_source"] for row in table} <= {40, 10}
        assert all(row["date"] and row["code"] and row["device"] for row in table)
    assert {row["network"] for row in results.read("tiny-jpeg", "worth", tmp_path)} == {
        "tiny-jpeg/ddpmpp",
        "tiny-jpeg/ncsnpp",
    }


def test_training_that_its_minutes_stop_ends_as_one_run(job, tmp_path):
    train, clock = stage("train"), stage("clock")
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0}
    changes = {"images": 96, "batch": 32, "options": options}
    weights = []
    for minutes in (math.inf, 1e-6):
        name = str(minutes)
        # Digits of another name, so that no shipped network stands for them.
        named = {"data": str(tmp_path), "label": "others", "other": None}
        here = replace(
            job, **named, arch=("ncsnpp",), recipe=changes, compiled=False,
            out=tmp_path / name, runs=tmp_path / name,
        )  # fmt: skip
        here.__dict__["dataset"] = job.dataset
        stops = 0
        while not Path(here.other_file).exists():
            try:
                train.run(here, clock.Clock(minutes))
            except OutOfTimeError:
                stops += 1
        network = networks.load(here.other_file)
        weights.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert stops == 2
    assert torch.equal(*weights)


def test_every_method_of_the_stored_tables_has_a_title():
    for name, table in results.stored():
        for row in results.read(name, table):
            assert {"n", "n_source", "seed", "device"} <= row.keys()  # as the results page needs
            method = row.get("method", "")
            if "/" not in method:  # no network
                assert not method or method in (*results.TITLES, "blend")
    assert results.title("pspc_square", "found") == "PSPC-Square, found"
    assert results.title("photos/ddpmpp") == "photos/ddpmpp"


def test_networks_that_are_named_are_not_trained(tmp_path):
    words = ["--data", "cifar10", "--root", str(tmp_path / "nothing"), "--out", str(tmp_path)]
    named = ["--network", "edm-cifar10-32x32-uncond-vp", "--other", "edm-cifar10-32x32-uncond-ve"]
    stage("__main__").main([*words, *named, "--stage", "train"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_out_of_time_ends_with_a_status_of_its_own(tmp_path, monkeypatch, capsys):
    compute = stage("__main__")

    def late(job, clock):
        raise OutOfTimeError

    monkeypatch.setattr(compute.schedules, "run", late)
    with pytest.raises(SystemExit) as stopped:
        compute.main(["--data", "digits", "--out", str(tmp_path), "--minutes", "2"])
    assert stopped.value.code == OUT_OF_TIME
    assert "schedules: stopped after 2 minutes; the same command goes on" in capsys.readouterr().out


def test_what_the_command_cannot_do_is_one_line(tmp_path):
    main = stage("__main__").main
    with pytest.raises(SystemExit, match="error: sources: got"):
        main(["--data", "digits", "--sources", "els"])
    with pytest.raises(SystemExit, match="error: name: got 'nothing'"):
        main(["--data", "nothing", "--out", str(tmp_path), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: recipe: got \{'batches': 3\}"):
        main(["--data", "photos32", "--stage", "train", "--recipe", '{"batches": 3}'])
    with pytest.raises(SystemExit, match="error: precision: got 'tf32' on cpu, wanted cuda"):
        main(["--data", "digits", "--precision", "tf32"])
    for words, says in (
        (["--points", "-290"], "--points: got -290, wanted at least 1"),
        (["--part", "-5"], "--part: got -5, wanted at least 1"),
        (["--steps", "1"], "--steps: got 1, wanted at least 2"),
        (["--batch", "0"], "--batch: got 0"),
        (["--minutes", "nan"], "--minutes: got nan, wanted a number above 0"),
        (["--budget", "inf"], "--budget: got inf, wanted a finite number above 0"),
        (["--sources", "els=-1490"], "sources: els: got -1490"),
        (["--sources", "foo=3"], "sources: got 'foo', wanted one of optimal"),
        (
            ["--stage", "worth", "--network", "photos/ddpmpp"],
            r"network: photos/ddpmpp is for images of \(3, 16, 16\), wanted one for \(1, 8, 8\)",
        ),
        (["--recipe", "[1]"], r"recipe: got \[1\], wanted an object"),
        (["--stage", "engine", "--benchmark", "paths.py {foo}"], "benchmark: got 'paths.py {foo}'"),
    ):
        with pytest.raises(SystemExit, match=f"error: {says}"):
            main(["--data", "digits", "--out", str(tmp_path), *words])
    words = ["--data", "digits", "--out", str(tmp_path), "--stage", "engine"]
    with pytest.raises(SystemExit, match=r"error: .*none\.py: no such benchmark"):
        main([*words, "--benchmark", "none.py"])


@pytest.mark.parametrize(("name", "column"), [(n, c) for n in FOUND for c in columns(n)])
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
        table = found(name, "pspc_square")
        schedule = patch_schedule(name, "pspc_square", side)
        assert [schedule(sigma) for sigma in table] == list(table.values())


def test_a_missing_or_foreign_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fpmc\.experiments --data nothing computes it"):
        results.read("nothing", "denoising")
    (tmp_path / "digits").mkdir()
    for row in ("1,x,2", "1,0.1,2,3", "1,0.1", '1,"0.1,2'):
        (tmp_path / "digits" / "denoising.csv").write_text(f"mse,mse_error,n\n{row}\n")
        with pytest.raises(ValueError, match="not a table of results"):
            results.read("digits", "denoising", tmp_path)
    (tmp_path / "digits" / "samples.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of samples"):
        results.images("digits", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"fpmc\.experiments --data digits computes it"):
        results.per_sample("digits", tmp_path)
    packed = io.BytesIO()
    np.savez_compressed(packed, optimal=np.random.default_rng(0).random((40, 3)))
    whole = packed.getvalue()
    for place in range(0, len(whole), 7):
        spoilt = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        for name, read in (("samples", results.images), ("each", results.per_sample)):
            (tmp_path / "digits" / f"{name}.npz").write_bytes(spoilt)
            with contextlib.suppress(ValueError):
                read("digits", tmp_path)
    np.savez(tmp_path / "digits" / "each.npz", optimal=np.zeros((4, 2)))
    with pytest.raises(ValueError, match="not a file of samples' measures"):
        results.per_sample("digits", tmp_path)


class TestMeasurements:
    """The benchmarks' tables come back as they were written."""

    def test_numbers_are_numbers_and_what_names_something_is_text(self, tmp_path):
        (tmp_path / "engine").mkdir()
        text = 'method,ours,loop / ours,code\n"LS, p = 7",0.072,nan,1234567\n'
        (tmp_path / "engine" / "paths.csv").write_text(text)
        (row,) = results.measurements("paths", tmp_path)
        (same,) = results.measurements("paths", tmp_path.parent, tmp_path.name)
        assert repr(same) == repr(row)
        assert math.isnan(row.pop("loop / ours"))
        assert row == {"method": "LS, p = 7", "ours": 0.072, "code": "1234567"}

    @pytest.mark.parametrize("table", ["paths", "scaling", "els"])
    def test_every_row_of_the_stored_tables_says_where_it_was_measured(self, table):
        for row in results.measurements(table):
            assert all(row[name] for name in ("device", "threads", "torch", "date"))
            assert re.fullmatch("[0-9a-f]{7,}", row["code"])

    def test_a_missing_or_cut_table_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"benchmarks/paths\.py --out .* measures it"):
            results.measurements("paths", tmp_path)
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "paths.csv").write_text("method,ours\noptimal\n")
        with pytest.raises(ValueError, match="not a table of measurements"):
            results.measurements("paths", tmp_path)


class TestTrials:
    """``fpmc.experiments.trials`` keeps a trained network's errors over those of two denoisers."""

    def test_a_shipped_network_s_stored_rows_are_what_is_measured(self, tmp_path, monkeypatch):
        trials = stage("trials")
        monkeypatch.setattr(trials, "LEVELS", [trials.LEVELS[0], trials.LEVELS[6]])
        words = ["digits/dit-1", "--trial", "shipped", "--draws", "20", "--out", str(tmp_path)]
        trials.main(words)
        trials.main(words)
        again = results.read(tmp_path.name, "trials", tmp_path.parent)
        assert len(again) == 2
        stored = {
            row["sigma"]: row
            for row in results.read("digits", "trials")
            if (row["network"], row["trial"]) == ("digits/dit-1", "shipped")
        }
        for row in again:
            for name in ("images", "minutes", "held_out", "n", "seed", "command", "trained_on"):
                assert row[name] == stored[row["sigma"]][name]
            for name in ("to_wiener", "to_optimal"):
                assert row[name] == pytest.approx(stored[row["sigma"]][name], abs=2e-4)

    @pytest.mark.parametrize("n", ["-1", "0", "1501"])
    def test_as_many_training_images_as_there_are(self, tmp_path, n):
        words = ["digits/dit-1", "--trial", "x", "--training", n, "--out", str(tmp_path)]
        with pytest.raises(SystemExit, match=f"training: got {n}, wanted between 1 and 1500"):
            stage("trials").main(words)

    def test_nothing_is_written_among_the_images(self, tmp_path, monkeypatch):
        trials = stage("trials")
        monkeypatch.setattr(trials, "LEVELS", [1.0])
        monkeypatch.setattr(stage("options"), "ROOT", tmp_path)
        data = folder_of_images(tmp_path)
        card = {"data": str(data), "arch": "ddpmpp", "seed": 0, "images": 1, "minutes": 1.0}
        card |= {"loss": [{"held_out": 1.0}], "command": "none"}
        networks.save(tiny(shape=(3, 8, 8)), tmp_path / "network.safetensors", card)
        before = sorted(data.parent.rglob("*"))
        trials.main([str(tmp_path / "network.safetensors"), "--trial", "none"])
        (row,) = rows(tmp_path / "results" / data.stem / "trials.csv")
        assert row["network"] == f"{data.stem}/ddpmpp"
        assert sorted(p for p in data.parent.rglob("*") if "results" not in p.parts) == before

    def test_a_network_without_a_card_is_an_error(self, tmp_path):
        networks.save(tiny(shape=(1, 8, 8)), tmp_path / "network.safetensors")
        with pytest.raises(SystemExit, match="has no card of a training"):
            stage("trials").main([str(tmp_path / "network.safetensors"), "--trial", "none"])


class TestLooks:
    """``fpmc.experiments.looks`` keeps how wide networks look, and what their maps share."""

    def test_rows_are_the_sides_and_the_shared_mass(self, tmp_path):
        one = torch.eye(16).view(16, 4, 4)
        other = 0.75 * one + 0.25 * one.roll(1, 0)
        for name, value in (("a", one), ("b", other)):
            sensitivity.write(tmp_path / f"{name}.npz", {1.0: value}, images=3)
        words = [f"tiny/{name}={tmp_path / name}.npz" for name in ("a", "b")]
        out = tmp_path / "tiny"
        for _ in range(2):
            stage("looks").main([*words, "--out", str(out)])
        first, second = results.read("tiny", "looks", tmp_path)
        assert (first["network"], second["network"]) == ("tiny/a", "tiny/b")
        assert (first["side_0.5"], first["shared"], first["next"]) == (1, 1, 0)
        assert (second["side_0.75"], second["shared"], second["next"]) == (1, 0.75, 0.25)
        assert second["n"] == 3

    def test_maps_that_cannot_be_compared_are_an_error(self, tmp_path):
        with pytest.raises(SystemExit, match="networks: got some of digits, photos, wanted one"):
            stage("looks").main(["digits/ddpmpp", "photos/ddpmpp"])
        sensitivity.write(tmp_path / "a.npz", {1.0: torch.eye(64).view(64, 8, 8)})
        with pytest.raises(SystemExit, match="digits/a: its maps have other levels or sizes"):
            stage("looks").main(["digits/ddpmpp", f"digits/a={tmp_path / 'a.npz'}"])

    @pytest.mark.parametrize("data", ["digits", "photos"])
    def test_stored_rows_are_what_the_shipped_maps_give(self, data, tmp_path):
        name, out = f"{data}/ddpmpp", tmp_path / data
        stage("looks").main([name, "--out", str(out)])
        stored = [row for row in results.read(data, "looks") if row["network"] == name]
        for row, again in zip(stored, results.read(data, "looks", tmp_path), strict=True):
            for column in ("sigma", "side_0.5", "side_0.75", "side_0.95", "shared", "next", "n"):
                assert row[column] == pytest.approx(again[column], rel=1e-3)


class TestWrongRowsSayNothing:
    """Ways in which rows of other settings, images or processes once landed without a word."""

    @pytest.mark.parametrize(
        ("changes", "named"),
        [({"points": 3}, "n = 2, wanted 3"), ({"seed": 1}, "seed = 0, wanted 1")],
    )
    def test_other_settings_are_an_error_that_names_them(self, job, changes, named):
        job = replace(job, method=("optimal",))
        run(job, "denoising")
        before = (job.out / "denoising.csv").read_bytes()
        with pytest.raises(ValueError, match=rf"denoising\.csv: has a row of .* with {named}"):
            run(replace(job, **changes), "denoising")
        assert (job.out / "denoising.csv").read_bytes() == before

    def test_so_is_another_network_in_the_same_file(self, job):
        job = replace(job, method=("optimal",))
        run(job, "denoising")
        networks.save(tiny(shape=(1, 8, 8), seed=5), Path(job.network))
        with pytest.raises(ValueError, match=r"network_hash = \w+, wanted \w+"):
            run(replace(job), "denoising")

    def test_so_are_more_samples_and_other_images(self, job):
        job = replace(job, method=("optimal",))
        run(job, "samples")
        with pytest.raises(ValueError, match="n = 2, wanted 3"):
            run(replace(job, samples=3), "samples")
        other = replace(job)
        other.__dict__["dataset"] = replace(job.dataset, train=job.dataset.train.flip(0))
        with pytest.raises(ValueError, match=r"data_hash = \S+, wanted"):
            run(other, "samples")

    def test_a_folder_takes_no_dataset_s_name(self, tmp_path):
        with pytest.raises(ValueError, match=r"label: got 'photos' for .*, wanted --label NAME"):
            stage("job").Job(data=str(tmp_path / "photos"))
        own = stage("job").Job(data=str(tmp_path / "photos"), label="mine")
        assert own.file("ddpmpp") not in networks.SHIPPED
        assert own.out.name == "mine"

    def test_a_network_is_taken_for_the_images_it_was_trained_on_alone(self, job):
        network = networks.load(job.network)
        networks.save(network, Path(job.network), {"images_hash": data.fingerprint(torch.zeros(3))})
        with pytest.raises(ValueError, match="was trained on other images than those of digits"):
            replace(job).load(job.network)
        here = {"images_hash": data.fingerprint(job.dataset.train)}
        networks.save(network, Path(job.network), here)
        replace(job).load(job.network)

    def test_two_processes_on_one_folder_lose_no_row(self, tmp_path):
        path, key = tmp_path / "table.csv", ("method", "sigma")
        code = """if True:
            import sys
            from pathlib import Path
            from fpmc.experiments.tables import Table
            path, name = Path(sys.argv[1]), sys.argv[2]
            for sigma in range(40):
                with Table(path, ("method", "sigma")).collected() as table:
                    table.add({"method": name, "sigma": sigma, "mse": 0.5})
                    table.add({"method": "both", "sigma": sigma, "mse": 0.5})
        """
        words = [sys.executable, "-c", code, str(path)]
        started = [subprocess.Popen([*words, name]) for name in ("one", "other")]
        assert [process.wait() for process in started] == [0, 0]
        table = stage("tables").Table(path, key)
        assert len(table.rows) == 3 * 40
        assert len(rows(path)) == 3 * 40

    def test_a_row_that_is_cut_off_is_computed_again_and_said(self, job, capsys):
        job = replace(job, method=("optimal",))
        run(job, "denoising", "samples")
        for name in ("denoising.csv", "samples.csv", "each.npz"):
            path = job.out / name
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) - 20])
        run(replace(job), "denoising", "samples")
        told = capsys.readouterr().err
        assert "denoising.csv: the row of digits," in told
        assert "is cut off; it is computed again" in told
        assert "each.npz: cannot be read" in told
        found = results.read("digits", "denoising", job.out.parent)
        assert len(found) == 2 * len(LEVELS)
        assert set(results.per_sample("digits", job.out.parent)) >= {"optimal"}

    @pytest.mark.parametrize("shorter", ["each", "samples"])
    def test_samples_whose_file_alone_is_cut_off_are_drawn_again(self, job, shorter, capsys):
        job = replace(job, method=("optimal",))
        run(job, "samples")
        path = job.out / f"{shorter}.npz"
        before = {name: dict(np.load(job.out / f"{name}.npz")) for name in ("each", "samples")}
        path.write_bytes(path.read_bytes()[:-20])
        run(replace(job), "samples")
        assert f"{shorter}.npz: cannot be read" in capsys.readouterr().err
        for name, arrays in before.items():
            with np.load(job.out / f"{name}.npz") as again:
                assert set(again) == set(arrays)
                for key, value in arrays.items():
                    np.testing.assert_array_equal(again[key], value)

    def test_a_shard_or_a_head_that_is_cut_off_is_computed_again_and_said(self, tmp_path, capsys):
        path, key = tmp_path / "table.csv", ("method", "sigma")
        table = stage("tables").Table(path, key)
        table.add({"method": "ls", "sigma": 1})
        (shard,) = table.shards.iterdir()
        shard.write_bytes(shard.read_bytes()[:5])
        assert not stage("tables").Table(path, key).has({"method": "ls", "sigma": 1}, {})
        path.write_text("method,sig")
        assert not stage("tables").Table(path, key).rows
        told = capsys.readouterr().err
        assert f"{shard}: is cut off; its row is computed again" in told
        assert f"{path}: is cut off; it is computed again" in told
        path.write_text("something,else\n1,2\n")
        with pytest.raises(ValueError, match="not a table with the columns method, sigma"):
            stage("tables").Table(path, key)

    def test_of_two_processes_with_other_settings_one_is_told(self, tmp_path):
        path, tables = tmp_path / "table.csv", stage("tables")
        one, other = (tables.Table(path, ("method",)) for _ in range(2))
        one.add({"method": "ls", "n": 2, "mse": 0.1})
        other.add({"method": "ls", "n": 3, "mse": 0.2})
        other.add({"method": "els", "n": 3, "mse": 0.3})
        with pytest.raises(ValueError, match=r"has a row of ls with n = \d, wanted \d, by another"):
            one.collect()
        assert sorted(row["method"] for row in rows(path)) == ["els", "ls"]
        tables.Table(path, ("method",)).collect()

    @pytest.mark.parametrize("changes", [{"sources": {"optimal": 40}}, {"steps": 5}])
    def test_the_part_of_the_source_and_the_levels_are_settings(self, job, changes, monkeypatch):
        job = replace(job, method=("optimal",))
        run(job, "samples", "denoising")
        if "steps" in changes:
            monkeypatch.setattr(type(job), "levels", [LEVELS[0], 1.0, LEVELS[1]])
        named = {"sources": "n_source = 1500, wanted 40", "steps": "steps = 2, wanted 3"}
        with pytest.raises(ValueError, match=named[next(iter(changes))]):
            run(replace(job, **changes), "samples")
        if "steps" in changes:
            with pytest.raises(ValueError, match="steps = 2, wanted 3"):
                run(replace(job, **changes), "denoising")

    def test_so_are_found_schedules_and_maps(self, job, tmp_path):
        job = replace(job, method=("pspc_flex", "ls"))
        run(job, "schedules", "denoising")
        table = job.out / "schedules.csv"
        lines = table.read_text().splitlines(keepends=True)
        with table.open(newline="") as file:
            held = list(csv.DictReader(file))
        for row in held:  # as another search would find them
            row["mse"] = 1 / float(row["mse"])
        stage("tables").write_rows(table, held)
        with pytest.raises(ValueError, match=r"schedule_hash = \w+, wanted \w+"):
            run(job, "denoising")
        table.write_text("".join(lines))
        network = networks.load(job.other)
        sensitivity.write(
            tmp_path / "others.npz", sensitivity.maps_over(network, LEVELS, job.dataset.test[:1])
        )
        with pytest.raises(ValueError, match=r"maps_hash = \w+, wanted \w+"):
            run(replace(job, maps=str(tmp_path / "others.npz")), "schedules")

    def test_rows_that_name_no_network_count_for_shipped_ones_of_shipped_data_alone(self, job):
        head = {"data": "digits", "method": "optimal"}
        job.out.mkdir()
        (job.out / "old.csv").write_text("data,method,n\ndigits,optimal,2\n")
        shipped = replace(job, network=None, other=None, maps=None)
        wanted = shipped.settings("optimal", 2, shipped.reference_file)
        assert shipped.table("old", tuple(head)).has(head, wanted)
        for changes in ({"network": job.network}, {"label": "mine"}):
            with pytest.raises(ValueError, match="without network_hash, wanted"):
                replace(shipped, **changes).table("old", tuple(head)).has(head, wanted)

    def test_a_network_that_names_no_images_is_taken_if_it_is_named(self, job):
        own = replace(job, network=None, label="mine", data=str(job.out / "images"))
        own.__dict__["dataset"] = job.dataset
        Path(own.reference_file).parent.mkdir(parents=True)
        networks.save(networks.load(job.network), own.reference_file)
        with pytest.raises(
            ValueError, match=r"does not say on which images .* name it as --network"
        ):
            own.load(own.reference_file)
        named = replace(own, network=own.reference_file)
        named.__dict__["dataset"] = job.dataset
        named.load(own.reference_file)
        assert named.called(own.reference_file) == "mine/ddpmpp"

    def test_published_networks_have_no_card_and_are_taken(self, job, monkeypatch):
        network = networks.load(job.network)
        monkeypatch.setattr(stage("job").networks, "load", lambda file, shape=None: network)
        for file in ("edm-cifar10-32x32-uncond-vp", "somewhere/theirs.pkl"):
            assert replace(job, network=file).load(file) is network

    def test_trials_measure_on_the_images_of_the_training_alone(self, tmp_path):
        data = folder_of_images(tmp_path)
        card = {"data": str(data), "arch": "ddpmpp", "seed": 0, "command": "none"}
        path = tmp_path / "network.safetensors"
        networks.save(tiny(shape=(3, 8, 8)), path, {**card, "images_hash": "0" * 16})
        with pytest.raises(SystemExit, match="was trained on other images"):
            stage("trials").main([str(path), "--trial", "none", "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("label", ["a/b", "..", ".", "/"])
    def test_a_label_is_the_name_of_a_folder(self, label):
        with pytest.raises(ValueError, match=r"label: got .*, wanted a name of a folder"):
            stage("job").Job(data="digits", label=label)

    def test_the_folder_that_one_is_in_has_its_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert stage("job").Job(data=".").label == tmp_path.name
        with pytest.raises(ValueError, match="engine's tables, wanted --label NAME"):
            stage("job").Job(data="engine")

    def test_worth_is_measured_on_the_whole_source_whatever_methods_see(self, job):
        x = job.test(2)
        part = replace(job, sources={"wiener": 40, "optimal": 40})
        for name in ("wiener", "optimal"):
            whole, seen = job.make(name, None)(x, 1.0), part.make(name, None)(x, 1.0)
            assert torch.equal(part.make(name, None, part.source)(x, 1.0), whole)
            assert not torch.allclose(seen, whole, atol=1e-3)


def test_what_a_search_tries_is_in_the_registry(job, monkeypatch):
    monkeypatch.undo()  # the job's fixture tries less
    contest = stage("contest")
    assert contest.values(job, "pspc_square") == [1, 3, 5, 7, 8]
    assert contest.values(job, "ls") == contest.values(job, "els") == [1, 3, 5, 7]
    for name in contest.KNOBS:
        known = methods.METHODS[name]
        assert contest.values(job, name)
        assert known.has_sides != bool(known.tried)


def test_what_lists_methods_reads_the_registry():
    from fpmc import plotting

    options, contest = stage("options"), stage("contest")
    made = {name for name in methods.__all__ if name in methods.METHODS}
    assert made == set(methods.METHODS)
    assert set(options.COMPARED) == {n for n, m in methods.METHODS.items() if m.compared}
    assert set(contest.KNOBS) == {n for n in options.COMPARED if methods.METHODS[n].knob}
    assert list(results.TITLES) == list(options.COMPARED)
    for method in methods.METHODS.values():
        assert plotting.COLOURS[method.title] == method.colour


def test_options_are_the_fields_of_a_job(tmp_path):
    command = stage("command")
    job, given = command.parse(["--data", "digits", "--out", str(tmp_path)], ["worth"], "")
    assert job == stage("job").Job(data="digits", out=tmp_path)
    words = ["--data", "digits", "--method", "ls", "--method", "els", "--sources", "ls=7", "els=3"]
    words += ["--no-papers", "--points", "5", "--recipe", '{"batch": 3}', "--stage", "worth"]
    job, given = command.parse(words, ["worth"], "")
    assert (job.method, job.sources, job.points) == (("ls", "els"), {"ls": 7, "els": 3}, 5)
    assert (job.papers, job.recipe, given.stage) == (False, {"batch": 3}, ["worth"])


def test_found_schedules_enter_the_package_by_a_step_of_their_own(job, tmp_path, monkeypatch):
    schedules = stage("schedules")
    package = tmp_path / "package"
    (package / "tables").mkdir(parents=True)
    monkeypatch.setattr(methods, "__file__", str(package / "__init__.py"))
    with pytest.raises(ValueError, match="no such file; run the stage schedules to its end"):
        schedules.store(job)
    run(job, "schedules")
    assert not list((package / "tables").iterdir())
    assert schedules.store(job).read_text() == (job.out / "schedule.csv").read_text()
    inside = package / "tables" / f"{job.data}.csv"
    inside.write_text(inside.read_text().replace("sigma,", "sigma,more,", 1))
    with pytest.raises(ValueError, match="lacks more, which"):
        schedules.store(job)
    with pytest.raises(ValueError, match="data: got 'photos32', wanted one of digits, photos"):
        schedules.store(stage("job").Job(data="photos32", out=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "photos"])
def test_of_the_stored_tables_nothing_is_left_to_compute(name, tmp_path, capsys):
    out = tmp_path / name
    shutil.copytree(ROOT / "results" / name, out)
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    stage("__main__").main(["--data", name, "--out", str(out)])
    told = capsys.readouterr().out.splitlines()
    stages = ("schedules", "denoising", "samples")
    assert told == [f"{stage}: nothing to do, {out} has all of it" for stage in stages]
    assert {n: (out / n).read_bytes() for n in held} == held


def test_a_map_is_by_default_of_as_many_images_as_the_stored_ones():
    job = stage("job").Job(data="photos32")
    assert {row["n"] for row in results.read("photos32", "maps")} == {job.map_images}


def test_an_installed_package_holds_the_tables():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"fpmc.stored": "results"}
    globs = settings["package-data"]["fpmc.stored"]
    held = {path for pattern in globs for path in (ROOT / "results").glob(pattern)}
    tables = {path for kind in ("csv", "npz") for path in (ROOT / "results").rglob(f"*.{kind}")}
    assert {path for path in tables if path.parent.name != "networks"} <= held | set(
        (ROOT / "results").glob("engine/*.csv")
    )
