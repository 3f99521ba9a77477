"""What the open axes gain: rows are what the definition says, and validation alone chooses."""

import json
from dataclasses import replace

import pytest
import torch

import fpmc
from fpmc import diffusion, methods, networks, results, sensitivity
from fpmc.experiments import axes, blends, forms
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tuning import HeldOut
from fpmc.source import to_float
from tests.helpers import relative

LEVEL = 12
SOME = ("flex", "tuned", "isotropic width", "source width", "mixture", "scales", "gate")


@pytest.fixture
def job(tmp_path):
    """Digits, and six points."""
    return Job(data="digits", out=tmp_path / "digits", points=6, level=(LEVEL,))


@pytest.fixture
def level(job):
    made = {8: fpmc.mixtures.fit(job.source, 8, 3, steps=1)}
    return forms.Level(job, HeldOut(job), LEVEL, lambda: made)


def test_rows_are_paired_errors_to_the_network(job, monkeypatch):
    monkeypatch.setattr(forms, "MIXTURES", {"digits": {8: 3}})
    monkeypatch.setattr(axes, "AXES", {name: forms.AXES[name] for name in SOME})
    axes.run(job, Clock())
    rows = {row["axis"]: row for row in results.read("digits", "axes", job.out.parent)}
    assert list(rows) == list(SOME)
    sigma, held = job.levels[LEVEL], HeldOut(job)
    z = diffusion.add_noise(to_float(held.test), sigma, forms.FIRST_SEED + LEVEL)
    target = networks.load("digits/ddpmpp")(z, sigma).detach()
    flex = methods.pspc_flex(job.source, sensitivity.load("digits/ddpmpp"), "digits")
    tuned = fpmc.finetuning.load("digits/ddpmpp/pspc_flex", job.source)
    errors = {
        name: (denoiser(z, sigma) - target).double().square().flatten(1).mean(1)
        for name, denoiser in (("flex", flex), ("tuned", tuned))
    }
    for name, error in errors.items():
        assert rows[name]["mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    gain = errors["flex"] - errors["tuned"]
    assert rows["tuned"]["gain"] == pytest.approx(gain.mean().item(), rel=1e-4)
    standard_error = (gain.std() / 6**0.5).item()
    assert rows["tuned"]["gain"].standard_error == pytest.approx(standard_error, rel=0.01)
    again = job.table("axes", axes.KEY)
    assert len(again.rows) == len(SOME), "a second run has nothing to compute"


def test_validation_images_choose_and_test_images_do_not(level):
    near = level.target["validation"]
    calls = []

    def right(z):
        calls.append(len(z))
        return near if torch.equal(z, level.z["validation"]) else torch.full_like(z, 9.0)

    found = level.choose({"zero": torch.zeros_like, "right": right})
    assert found.chosen == "right"
    assert (found.answers["test"] == 9).all()
    assert not set(map(bytes, level.z["test"].numpy())) & set(map(bytes, near.numpy()))


def test_a_blend_finds_the_weights_that_made_the_network_s_answers(level):
    one, two = (forms.Found("", {p: torch.rand_like(z) for p, z in level.z.items()}) for _ in "ab")
    level.target = {p: 0.3 * one.answers[p] + 0.5 * two.answers[p] for p in forms.PARTS}
    found = level.blend({"one": one, "two": two})
    assert found.chosen == "0.30 one + 0.50 two"
    assert level.errors(found).max() < 1e-10


def test_widths_are_the_mixtures_of_their_name(level):
    z, sigma = level.z["test"], level.sigma
    gaussian = methods.wiener(level.source)
    for axis, covariance in (
        ("isotropic width", lambda share: (share * sigma) ** 2 * torch.eye(64).double()),
        ("source width", lambda t: gaussian.spectral(lambda values: t * values)),
    ):
        found = level.found(axis)
        value = float(found.chosen.split()[2])
        points = level.source.read(slice(None), torch.float64)
        weights, wide = torch.ones(len(points)), covariance(value)[None]
        mixture = fpmc.mixtures.Mixture(level.source.shape, weights, points, wide)
        assert relative(found.answers["test"], mixture(z, sigma)) < 1e-5


def test_cells_of_one_pixel_are_local_estimators_with_flex_s_masks(level):
    found = forms._cells(1)(level)
    queries = level.masks[0]
    local = fpmc.FPMC(queries, fpmc.operators.Identity((8, 8)), level.source)
    wanted = in_batches(local, 16)(level.z["test"], level.sigma)
    assert relative(found.answers["test"], wanted) < 1e-5


def test_the_blend_that_is_left_is_the_one_of_the_rows(job, tmp_path, monkeypatch):
    monkeypatch.setenv("FPMC_DATA", str(tmp_path))
    for module in (forms, blends):
        monkeypatch.setattr(module, "MIXTURES", {"digits": {8: 3}})
    job = replace(job, steps=2, level=(0,), runs=tmp_path / "runs")
    blends.run(job, Clock())
    assert not blends.folder_of(job).exists(), "a level is missing yet"
    blends.run(replace(job, level=()), Clock())
    rows, held = results.read("digits", "blends", job.out.parent), HeldOut(job)
    read = fpmc.blends.load(blends.folder_of(job), job.source)
    for i, (row, sigma) in enumerate(zip(rows, job.levels, strict=True)):
        z = diffusion.add_noise(to_float(held.test), sigma, forms.FIRST_SEED + i)
        network = networks.load("digits/ddpmpp")
        error = (read(z, sigma) - network(z, sigma)).detach().square().mean().item()
        assert error == pytest.approx(row["mse"], rel=1e-4)
        assert read.at(sigma) == json.loads(row["chosen"])
        least = 0.02 * max(read.at(sigma).values())
        assert min(read.at(sigma).values()) > 0.5 * least
    before = (job.out / "blends.csv").read_bytes()
    blends.run(replace(job, level=()), Clock())
    assert (job.out / "blends.csv").read_bytes() == before


@pytest.mark.parametrize("stage", [axes, blends])
def test_data_without_a_tuned_collection_are_refused(stage, tmp_path):
    with pytest.raises(ValueError, match="data: got 'photos32', wanted one with a tuned"):
        stage.run(Job(data="photos32", out=tmp_path / "photos32"), Clock())


PHOTOS = {(row["axis"], row["sigma"]): row for row in results.read("photos", "axes")}


class TestPhotos:
    """What the chapter says of its table."""

    ROWS = PHOTOS
    SIGMAS = tuple(sorted({sigma for _, sigma in PHOTOS}))

    def clear(self, axis, sigma):
        """The gain over PSPC-Flex in standard errors; 0 where it is PSPC-Flex."""
        gain = self.ROWS[axis, sigma]["gain"]
        return gain / gain.standard_error if gain else 0.0

    def part(self, axis, sigma):
        """The error as a part of PSPC-Flex's."""
        return self.ROWS[axis, sigma]["mse"] / self.ROWS["flex", sigma]["mse"]

    def test_the_combination_gains_at_every_level_and_halves_at_the_lowest(self):
        assert all(self.clear("combination", sigma) > 2 for sigma in self.SIGMAS)
        assert [self.part("combination", sigma) < 0.5 for sigma in self.SIGMAS] == [
            True,
            *5 * [False],
        ]

    def test_mixtures_help_at_the_three_lowest_levels(self):
        for i, sigma in enumerate(self.SIGMAS):
            assert (self.clear("mixtures", sigma) > 2) == (i < 3)

    def test_no_other_single_axis_is_clearly_nearer_than_pspc_flex_but_sides_at_the_lowest(self):
        others = {axis for axis, _ in self.ROWS} - {"mixture", "mixtures", "combination", "flex"}
        clear = {(a, s) for a in others for s in self.SIGMAS if self.clear(a, s) > 2}
        assert clear == {("scales", self.SIGMAS[0]), ("gate", self.SIGMAS[0])}

    def test_above_the_lowest_level_a_gate_is_less_than_the_same_sides_summed(self):
        for sigma in self.SIGMAS[1:]:
            assert self.part("scales", sigma) < self.part("gate", sigma)

    def test_a_width_is_much_nearer_than_points_at_low_noise(self):
        assert all(
            self.part("source width", s) < self.part("optimal", s) / 3 for s in self.SIGMAS[:3]
        )

    def test_fewer_estimators_lose_wherever_there_are_several(self):
        for axis in ("cells of 2", "cells of 4"):
            assert all(self.clear(axis, sigma) < -2 for sigma in self.SIGMAS[:-1])


def test_on_digits_mixtures_do_not_help_and_the_combination_is_mostly_tuned():
    rows = {(row["axis"], row["sigma"]): row for row in results.read("digits", "axes")}
    sigmas = sorted({sigma for _, sigma in rows})
    for i, sigma in enumerate(sigmas):
        combined, mixed = rows["combination", sigma], rows["mixtures", sigma]["gain"]
        assert mixed < 2 * mixed.standard_error
        gain, over_tuned = combined["gain"], combined["gain_tuned"]
        assert gain > 2 * gain.standard_error
        assert (combined["mse"] < rows["flex", sigma]["mse"] / 2) == (i == 0)
        assert (over_tuned > 2 * over_tuned.standard_error) == (i < 4)
