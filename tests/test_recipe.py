"""What each step of the recipe adds: rows are paired, and are what the steps' names say."""

from dataclasses import replace

import pytest
import torch

from fpmc import augment, data, diffusion, finetuning, methods, results
from fpmc.experiments import recipe, tuning
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.experiments.options import RECIPE
from fpmc.metrics import Estimate
from fpmc.source import to_float, union
from tests.small_jobs import digits_job, untrained

LEVELS = [2.0, 0.3]
POINTS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An untrained network, its maps, and PSPC-Flex tuned to it in two steps."""
    folder = tmp_path_factory.mktemp("network")
    network, maps = untrained(folder, LEVELS)
    images = data.load("digits")
    masks = methods.pspc_flex(images.source(), maps, "digits")
    for sigma in LEVELS:
        finetuning.finetune(
            masks, network, None, sigma, validation=images.test[-8:], out=folder / "tuned",
            steps=2, batch=8, rate=0.2, progress=False,
        )  # fmt: skip
    return folder


@pytest.fixture
def job(files, tmp_path, monkeypatch):
    """Digits, six points, and what was tuned."""
    monkeypatch.setattr(Job, "levels", LEVELS)
    return digits_job(files, tmp_path, tuned=str(files / "tuned"), points=POINTS, level=(1,))


def table(job):
    """What a run leaves, by step."""
    recipe.run(job, Clock())
    return {row["step"]: row for row in results.read("digits", "recipe", job.out.parent)}


def errors(job, denoiser, part="test", level=1):
    """Squared errors to the network of one of the parts of the held-out images."""
    x = to_float(getattr(tuning.HeldOut(job), part))
    z = diffusion.add_noise(x, LEVELS[level], recipe.FIRST_SEED[part] + level)
    with torch.no_grad():
        apart = denoiser(z, LEVELS[level]) - job.reference(z, LEVELS[level])
    return apart.double().square().flatten(1).mean(1)


def test_every_step_stands_on_one_before_it():
    names = list(recipe.STEPS)
    assert names == list(RECIPE)
    for i, step in enumerate(recipe.STEPS.values()):
        assert step.before in ("", *names[:i])


def test_a_row_is_the_paired_gain_on_the_step_before(job):
    rows = table(replace(job, step=("masks", "tuned", "tuned + horizontal flips", "Wiener")))
    flips = union(job.source, augment.horizontal_flips(job.source.images))
    masks = errors(job, methods.pspc_flex(job.source, job.sensitivity, "digits"))
    tuned = errors(job, finetuning.load(job.tuned, job.source))
    both = errors(job, finetuning.load(job.tuned, flips))
    row = rows["tuned + horizontal flips"]
    for name, each in {"mse": both, "gain": masks - both, "added": tuned - both}.items():
        wanted = Estimate.of_samples(each)
        assert row[name] == pytest.approx(wanted, rel=1e-3, abs=1e-8)
        assert row[name].standard_error == pytest.approx(wanted.standard_error, rel=0.02)
    assert (row["before"], row["n_source"]) == ("tuned", 3000)
    filtered = errors(job, methods.wiener(job.source), "validation").mean().item()
    assert rows["Wiener"]["validation"] == pytest.approx(filtered, rel=1e-3)


def test_what_is_tuned_here_is_tuned_as_the_cards_say(job):
    steps = ("masks", "q", "r", "tuned with horizontal flips")
    rows = table(replace(job, step=steps))
    assert len({row["mse"] for row in rows.values()}) == len(steps)
    folders = {path.name: path for path in (job.runs / "recipe" / "digits").iterdir()}
    assert sorted(folders) == ["q-0", "qr-horizontal-flips-0", "r-0"]
    flips = union(job.source, augment.horizontal_flips(job.source.images))
    found = finetuning.load(folders["qr-horizontal-flips-0"], flips)
    again = Estimate.of_samples(errors(job, found))
    assert rows["tuned with horizontal flips"]["mse"] == pytest.approx(again, rel=1e-2)
    held = (job.out / "recipe.csv").read_bytes()
    table(replace(job, step=steps))
    assert (job.out / "recipe.csv").read_bytes() == held


def test_the_filter_stands_below_the_level_where_it_is_no_longer_nearer():
    near = {0.1: (1.0, 3.0), 0.2: (2.0, 3.0), 0.5: (3.0, 3.0), 1.0: (2.0, 3.0)}
    rows = [
        {"step": step, "sigma": sigma, "validation": error}
        for sigma, pair in near.items()
        for step, error in zip(("Wiener", "tuned"), pair, strict=True)
    ]
    assert recipe.filter_below(rows, "tuned") == 0.5
    assert recipe.filter_below([r for r in rows if r["sigma"] >= 0.5], "tuned") == 0.5
    assert recipe.filter_below([r for r in rows if r["sigma"] != 0.5], "tuned") == float("inf")


def test_without_a_tuned_collection_it_says_what_is_missing(job):
    with pytest.raises(ValueError, match=r"tuned: got none for .*, wanted the folder of PSPC-Flex"):
        recipe.run(replace(job, tuned=None), Clock())
