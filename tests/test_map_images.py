"""How many noisy images maps need: the stage's rows, computed again from the maps themselves."""

from itertools import combinations

import pytest
import torch

from fpmc import methods, metrics, results, sensitivity
from fpmc.diffusion import add_noise
from fpmc.experiments import map_images, stages
from fpmc.experiments.clock import Clock
from fpmc.methods.schedules import threshold_schedule
from tests.small_jobs import digits_job, untrained

LEVEL, POINTS = 12, 5


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map_images")
    untrained(folder, [1.0])
    job = digits_job(folder, folder, points=POINTS, level=(LEVEL,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_images, "GROUP", 1)
        stages.run("map_images", job, Clock())
    return job


@pytest.fixture(scope="module")
def rows(job):
    return results.read("digits", "map_images", job.out.parent)


@pytest.fixture(scope="module")
def maps(job):
    """Of each of the last eight held-out images."""
    sigma, images = job.levels[LEVEL], job.dataset.test[-8:]
    made = [
        sensitivity.maps(job.reference, sigma, one[None], seed=map_images.FIRST_SEED + i)
        for i, one in enumerate(images)
    ]
    return torch.stack(made)


def test_two_maps_share_what_no_image_of_both_made(rows, maps):
    assert [row["images"] for row in rows] == [1, 2, 4, 8]
    tau = threshold_schedule("digits", "pspc_flex", "thresholds")(rows[0]["sigma"])
    for row in rows[:3]:
        sets = [part.mean(0) for part in maps.split(int(row["images"]))]
        shared = [torch.minimum(a, b).sum((1, 2)).mean() for a, b in combinations(sets, 2)]
        assert row["shared"] == pytest.approx(torch.stack(shared).mean().item(), rel=1e-3)
        assert row["threshold"] == tau
        assert 0 < row["pixels_shared"] <= 1
    assert rows[0]["shared"] < rows[2]["shared"] < 1, "averages differ less"


def test_errors_are_those_of_the_first_images_maps_and_gains_are_paired(job, rows, maps):
    sigma, each = job.levels[LEVEL], []
    z = add_noise(job.test(POINTS), sigma, LEVEL)
    for row in rows:
        mean = maps[: int(row["images"])].mean(0)
        flex = methods.pspc_flex(job.source, {sigma: mean}, row["threshold"])
        with torch.no_grad():
            gap = (flex(z, sigma) - job.reference(z, sigma)).square().flatten(1).mean(1)
        each.append(gap.double())
        assert row["mse"] == pytest.approx(metrics.Estimate.of_samples(gap), rel=1e-3)
        gain = metrics.Estimate.of_samples(each[0] - each[-1])
        assert float(row["gain"]) == pytest.approx(float(gain), rel=1e-2, abs=1e-7)
        assert row["gain"].standard_error == pytest.approx(gain.standard_error, rel=1e-2, abs=1e-7)


def test_what_is_there_is_not_computed_again(job, monkeypatch):
    monkeypatch.setattr(map_images, "GROUP", 1)
    monkeypatch.setattr(map_images, "_rows", None)  # not called
    stages.run("map_images", job, Clock())


def test_images_of_the_maps_are_not_asked_about(job, monkeypatch):
    monkeypatch.setattr(map_images, "GROUP", len(job.dataset.test) // 8)
    with pytest.raises(ValueError, match=f"points: got {POINTS}, wanted up to 1 beside"):
        stages.run("map_images", job, Clock())
