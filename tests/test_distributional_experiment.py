"""The stage that compares samplers by the number of their calls, on a grid of one tiny network."""

import math
from dataclasses import replace

import pytest
import torch

from fpmc import metrics, results
from fpmc.experiments import distributional, few_steps, stages
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.source import to_float

TINY = {"width": 8, "depth": 1, "heads": 1}
MEAN = ("heun", "bridge")


@pytest.fixture
def job(tmp_path, monkeypatch):
    tiny = {
        "GRID": ((1.0, 1.0, 2),),
        "KERNEL_GRID": (("rbf", 1.0),),
        "ANSWERS": 32,
        "BATCH": 8,
        "SMALL": TINY,
        "SETS": 2,
    }
    tiny |= {"CALLS": (1, 2), "TIMED": 1}
    for name, value in tiny.items():
        monkeypatch.setattr(distributional, name, value)
    monkeypatch.setattr(distributional.networks, "DRAWING", ())
    return Job(data="digits", points=8, out=tmp_path / "results" / "digits", runs=tmp_path / "runs")


def test_it_fills_its_tables_once_and_the_numbers_are_those_of_its_sets(job, tmp_path, monkeypatch):
    stages.run("distributional", job, Clock())
    rows = results.read("digits", "distributional", tmp_path / "results")
    places = [(row["network"], row["sampler"], row["calls"]) for row in rows]
    expected = [("training images", "none", 0.0)]
    means = [(sampler, n) for sampler in MEAN for n in (1.0, 2.0)]
    patches = [(s, n) for s in ("bridge", "bridge, independent") for n in (1.0, 2.0)]
    expected += [("mean", *each) for each in means]
    expected += [("beta-1-lambda-1-m-2", "bridge", n) for n in (1.0, 2.0)]
    expected += [("rbf-1", "bridge", n) for n in (1.0, 2.0)]
    expected += [("pspc_flex", *each) for each in patches]
    expected += [("digits/ddpmpp", *each) for each in means]
    assert places == expected
    drawn = next(row for row in rows if row["network"].startswith("beta"))
    assert (drawn["beta"], drawn["lambda"], drawn["m"]) == (1.0, 1.0, 2.0)
    kernel = next(row for row in rows if row["network"] == "rbf-1")
    assert (kernel["bandwidth"], kernel["lambda"], kernel["m"]) == (1.0, 1.0, 4.0)
    assert math.isnan(kernel["beta"])
    held = to_float(job.dataset.test[:8])
    sets = [
        metrics.energy_distance(distributional._training(job, 8, 900 + seed), held)
        for seed in (0, 1)
    ]
    assert float(rows[0]["energy"]) == pytest.approx(sum(sets) / 2, rel=1e-4)
    assert rows[0]["energy"].n == 2
    cost = results.read("digits", "draws_cost", tmp_path / "results")
    assert [row["m"] for row in cost] == [1, 2, 4, 8, 16]
    assert all(row["step_seconds"] > 0 for row in cost)
    monkeypatch.setattr(distributional.Judge, "row", None)
    monkeypatch.setattr(distributional, "train", None)
    stages.run("distributional", job, Clock())  # nothing is left to do


def test_every_network_of_the_grid_computes_as_many_answers(job, monkeypatch):
    monkeypatch.setattr(distributional, "BATCH", 128)
    monkeypatch.setattr(distributional, "ANSWERS", 48_000)
    for m in (1, 2, 4, 8):
        chosen = distributional._recipe(job, 1.0, float(m > 1), m)
        assert chosen.batch * chosen.population == 128
        assert chosen.images * chosen.population == 48_000
    mean = distributional._mean_recipe(job)
    assert mean.objective == "mean"
    assert not mean.options.get("xi")
    assert mean.images == 48_000


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 8])
def test_no_sampler_calls_its_network_more_often_than_it_says(calls):
    asked = []

    def denoiser(z, sigma, xi=None):
        asked.append(sigma)
        return 0.5 * z

    z = torch.ones(2, 1, 4, 4)
    for name, sampler in few_steps.of_means(denoiser).items():
        asked.clear()
        sampler(z, calls, 0)
        assert len(asked) == (2 * ((calls + 1) // 2) - 1 if name == "heun" else calls)
    asked.clear()
    few_steps.of_draws(denoiser)["bridge"](z, calls, 0)
    assert len(asked) == calls
    assert asked[0] == pytest.approx(80)


def test_one_network_of_the_grid_is_computed_alone(job, tmp_path, monkeypatch):
    monkeypatch.setattr(distributional, "_cost", None)
    stages.run("distributional", replace(job, score=("rbf-1",), calls=(2,)), Clock())
    rows = results.read("digits", "distributional", tmp_path / "results")
    assert [(row["network"], row["calls"]) for row in rows] == [("rbf-1", 2)]
    with pytest.raises(ValueError, match=r"score: got 'rbf', wanted some of .*rbf-1"):
        stages.run("distributional", replace(job, score=("rbf",)), Clock())
    with pytest.raises(ValueError, match="calls: got 3, wanted some of 1, 2"):
        stages.run("distributional", replace(job, calls=(1, 3)), Clock())


def test_numbers_of_calls_that_a_named_network_does_not_have_are_an_error(job, monkeypatch):
    monkeypatch.setattr(distributional, "CALLS", (1, 2))
    monkeypatch.setattr(distributional, "FEW", 1)
    for name in ("rbf-1", "beta-1-lambda-1-m-2", "pspc_flex"):
        for calls in ((2,), (1, 2)):
            chosen = replace(job, score=("training images", "mean", name), calls=calls)
            with pytest.raises(ValueError, match=f"calls: got 2 for {name}, wanted some of 1$"):
                stages.run("distributional", chosen, Clock())
    assert not job.runs.exists()


def test_images_without_labels_are_compared_without_a_classifier(job, tmp_path, monkeypatch):
    monkeypatch.setattr(distributional, "CALLS", (1,))
    monkeypatch.setattr(distributional, "classifier", None)
    labels = replace(job.dataset, train_labels=None, test_labels=None)
    monkeypatch.setattr(Job, "dataset", labels)
    chosen = replace(job, score=("training images", "digits/ddpmpp"))
    stages.run("distributional", chosen, Clock())
    rows = results.read("digits", "distributional", tmp_path / "results")
    assert [row["sampler"] for row in rows] == ["none", *MEAN]
    assert all(row["energy"].n == 2 and math.isfinite(row["energy"]) for row in rows)
    assert not any("frechet" in row for row in rows)
