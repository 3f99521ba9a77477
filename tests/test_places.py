"""ELS beside LS over sources of rising size: the stage's rows, and how many images it is worth."""

import math
from dataclasses import replace

import pytest
import torch

from fpmc import metrics, results
from fpmc.diffusion import add_noise
from fpmc.experiments import places, stages
from fpmc.experiments.clock import Clock
from fpmc.experiments.places import worth
from tests.small_jobs import digits_job, untrained

LEVEL = 12


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "SIZES", {"ls": (20, 60), "els": (20,)})
    untrained(tmp_path, [1.0])
    job = digits_job(tmp_path, tmp_path, points=3, search_points=2, level=(LEVEL,))
    return replace(job, sources={"els": 60, "ls": 100})


def table(job):
    return results.read("digits", "places", job.out.parent)


def errors(job, row):
    """The errors of a row's machine to the network, computed here."""
    sigma = job.levels[LEVEL]
    z = add_noise(job.test(3), sigma, LEVEL + 500)
    machine = job.make(row["method"], int(row["value"]), job.first(int(row["n_source"])))
    return (machine(z, sigma) - job.reference(z, sigma)).square().flatten(1).mean(1)


def test_rows_are_those_of_nested_sources_and_noisy_images_that_all_share(job):
    stages.run("places", job, Clock())
    rows = table(job)
    assert [(row["method"], row["n_source"]) for row in rows] == [
        ("ls", 20), ("ls", 60), ("ls", 100), ("els", 20), ("els", 60),
    ]  # fmt: skip
    few, more = job.first(20).images, job.first(60).images
    assert torch.equal(few, more[:20])
    for row in rows:
        each = torch.tensor([float(x) for x in row["each"].split()], dtype=torch.float64)
        assert torch.allclose(each, errors(job, row).double(), rtol=1e-3)
        assert row["mse"] == pytest.approx(metrics.Estimate.of_samples(each), rel=1e-3)
        assert row["mse"].n == 3
        assert row["validation_n"] == 2


def test_the_side_is_the_best_of_the_odd_ones_around_and_the_even_ones_beside(job):
    asked = {}

    def error(p):
        asked[p] = abs(p - 4.4)
        return asked[p]

    assert min(places._tried(job, "ls", 1, error), key=asked.get) == 4
    assert sorted(asked) == [1, 3, 4, 5, 6, 7]
    stages.run("places", job, Clock())
    for row in table(job):
        tried = [int(p) for p in row["tried"].split()]
        assert row["value"] in tried
        assert any(p % 2 == 0 for p in tried)
        assert any(p % 2 == 1 for p in tried)


def test_rows_that_are_there_are_not_computed_again_and_others_are_an_error(job, monkeypatch):
    stages.run("places", job, Clock())
    before = (job.out / "places.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(places, "_Questions", None)
        stages.run("places", job, Clock())
    assert (job.out / "places.csv").read_bytes() == before
    with pytest.raises(ValueError, match=r"places\.csv: has a row of .* with validation_n = 2"):
        stages.run("places", replace(job, search_points=1), Clock())


def test_more_images_than_are_held_out_are_an_error(job):
    with pytest.raises(ValueError, match="points: got 290 and 60 to search, wanted at most 297"):
        stages.run("places", replace(job, points=290, search_points=60), Clock())


class TestWorth:
    """How many images LS needs, of errors that are known."""

    @pytest.fixture
    def ls(self):
        return {n: 100 / n * torch.tensor([0.8, 1.0, 1.1, 1.1]) for n in (100, 1_000, 10_000)}

    def test_on_a_power_law_it_is_the_number_and_common_noise_does_not_blur_it(self, ls):
        assert worth(ls, ls[1_000] * 0.5) == pytest.approx((2_000,) * 3)

    def test_noise_of_one_alone_does(self, ls):
        blurred = ls[1_000] * torch.tensor([1.2, 1.0, 0.8, 1.0])
        middle, low, high = worth(ls, blurred)
        assert low < middle < high
        assert middle == pytest.approx(1_000 / (blurred.mean() / ls[1_000].mean()).item())
        assert low * high == pytest.approx(middle**2)

    def test_its_error_is_that_of_many_draws(self):
        """The spread of the number over fresh images, beside two standard errors as told."""
        generator = torch.Generator().manual_seed(0)
        found, told = [], []
        for _ in range(300):
            hard, own = torch.rand(2, 40, generator=generator)
            ls = {n: (0.5 + hard) / n**0.5 for n in (100, 1_000, 10_000)}
            middle, low, high = worth(ls, (0.3 + hard + 0.4 * own) / 1_000**0.5)
            found.append(math.log(middle))
            told.append(math.log(high / low) / 4)
        assert torch.tensor(found).std().item() == pytest.approx(sum(told) / 300, rel=0.15)

    def test_outside_the_sources_no_number_is_made_up(self, ls):
        assert worth(ls, 2 * ls[100]) == (0, 0, 0)
        assert worth(ls, 0.5 * ls[10_000]) == (math.inf,) * 3
        near = 1.05 * ls[10_000] * torch.tensor([1.2, 1.0, 0.8, 1.0])
        middle, low, high = worth(ls, near)
        assert low < middle < 10_000
        assert high == math.inf
