"""Training: what it minimises, that it is reproducible, and that nothing is lost when it stops."""

import csv
import errno
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import fpmc
from fpmc import networks, storage
from fpmc.data import Dataset, fingerprint
from fpmc.networks import train as training
from fpmc.networks.optimizers import optimizer
from fpmc.networks.recipes import Recipe, command
from fpmc.networks.train import edm_loss, posterior_mean, train
from fpmc.networks.training import run as training_run
from fpmc.networks.training.loop import Loop
from fpmc.networks.training.run import Run
from fpmc.processes import ALONE
from fpmc.sensitivity import __main__ as sensitivity
from fpmc.source import to_float
from tests.helpers import interrupted_after

OPTIONS = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.2}
WIDER = OPTIONS | {"channels": 16}
MUON = {"optimizer": "muon", "options": WIDER}
RECIPE = Recipe("toy", "ddpmpp", OPTIONS, images=80, batch=8, flips=True, seed=3)


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("toy", images[:24], images[24:])


def run(toy, out, recipe=RECIPE, **options):
    options = {"precision": "float32", "progress": False, "dataset": toy, **options}
    return train(recipe, out, **options)


def weights(network):
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


def state(out):
    return torch.load(out / "state.pt", weights_only=True)


def assert_same(a, b):
    """Nested dictionaries and lists of tensors and numbers, equal in every bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class TestLoss:
    def test_it_is_the_weighted_squared_error_of_the_denoiser(self):
        network = networks.build("ddpmpp", (1, 8, 8), **OPTIONS).eval()
        generator = torch.Generator().manual_seed(1)
        x, noise = torch.randn(2, 3, 1, 8, 8, generator=generator)
        sigmas = [0.02, 0.7, 9.0]
        expected = 0.0
        for image, eps, sigma in zip(x, noise, sigmas, strict=True):
            out = network((image + sigma * eps)[None], sigma)[0]
            weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
            expected += weight * (out - image).square().mean().item() / 3
        loss = edm_loss(network, x, torch.tensor(sigmas), noise)
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    def test_at_the_start_every_noise_level_weighs_the_same(self):
        class Silent(nn.Module):
            def forward(self, x, condition):
                return torch.zeros_like(x)

        network = networks.Preconditioned(Silent(), (1, 8, 8))
        generator = torch.Generator().manual_seed(2)
        x = 0.5 * torch.randn(4000, 1, 8, 8, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        for sigma in (0.01, 0.5, 30.0):
            loss = edm_loss(network, x, torch.full((4000,), sigma), noise)
            assert loss.item() == pytest.approx(1, abs=0.02)

    def test_a_weight_and_another_target_stand_where_they_should(self):
        network = networks.build("ddpmpp", (1, 8, 8), **OPTIONS).eval()
        x, noise, target = torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        sigma, weight = torch.tensor([0.1, 0.5, 1.0, 7.0]), torch.tensor([0.5, 2.0, 0.0, 1.0])
        each = [
            edm_loss(network, *(part[i : i + 1] for part in (x, sigma, noise)), target=target[i])
            for i in range(4)
        ]
        together = edm_loss(network, x, sigma, noise, weight, target)
        assert together.item() == pytest.approx((weight * torch.stack(each)).mean().item(), 1e-4)

    def test_the_posterior_mean_is_the_optimal_denoiser_with_a_level_for_each(self, digits):
        images = to_float(digits.train[:200])
        sigmas = [0.002, 0.1, 1.0, 20.0]
        noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        z = to_float(digits.test[:4]) + torch.tensor(sigmas)[:, None, None, None] * noise
        means = posterior_mean(images, z, torch.tensor(sigmas))
        optimal = fpmc.methods.optimal(fpmc.Source(digits.train[:200]))
        for mean, at, sigma in zip(means, z, sigmas, strict=True):
            torch.testing.assert_close(mean[None], optimal(at[None], sigma), rtol=1e-3, atol=1e-3)


class TestReproducible:
    def test_the_same_recipe_gives_the_same_network_and_another_seed_another(self, toy, tmp_path):
        first, again = run(toy, tmp_path / "a"), run(toy, tmp_path / "b")
        other = run(toy, tmp_path / "c", replace(RECIPE, seed=4))
        assert torch.equal(weights(first), weights(again))
        assert not torch.equal(weights(first), weights(other))

    def test_training_leaves_the_global_generator_alone(self, toy, tmp_path):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        run(toy, tmp_path)
        assert torch.equal(torch.rand(3), expected)

    def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(self, toy, tmp_path):
        order = [
            batches.position(i) for batches in [self.plan(toy, tmp_path).batches] for i in range(72)
        ]
        epochs = [order[:24], order[24:48], order[48:]]
        assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]

    def test_flips_mirror_half_of_the_images_and_only_if_wanted(self, toy, tmp_path):
        kept = 0
        for step in range(20):
            still = self.plan(toy, tmp_path, replace(RECIPE, flips=False)).batches.at(step)[0]
            turned = self.plan(toy, tmp_path).batches.at(step)[0]
            same = (still == turned).flatten(1).all(1)
            assert torch.equal(turned[~same], still[~same].flip(3))
            kept += same.sum().item()
        assert 50 <= kept <= 110

    def test_noise_levels_are_log_normal(self, toy, tmp_path):
        plan = self.plan(toy, tmp_path, replace(RECIPE, batch=20_000))
        logs = plan.batches.at(0)[1].log()
        assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
        assert logs.std().item() == pytest.approx(1.2, abs=0.03)

    def test_weighted_draws_have_the_moments_of_the_loss_s_own_levels(self, toy, tmp_path):
        plan = self.plan(toy, tmp_path, replace(RECIPE, batch=20_000, draws=(-0.4, 1.5)))
        _, sigma, _, weight = plan.batches.at(0)
        logs = sigma.log()
        assert logs.mean().item() == pytest.approx(-0.4, abs=1e-3)
        assert logs.std().item() == pytest.approx(1.5, abs=1e-3)
        assert weight.mean().item() == pytest.approx(1, abs=1e-3)
        mean = (weight * logs).mean().item()
        assert mean == pytest.approx(-1.2, abs=2e-3)
        assert (weight * (logs - mean) ** 2).mean().item() == pytest.approx(1.2**2, abs=5e-3)

    def test_the_loss_may_be_averaged_over_other_levels(self, toy, tmp_path):
        recipe = replace(RECIPE, batch=20_000, levels=(0.4, 1.5))
        _, sigma, _, weight = self.plan(toy, tmp_path, recipe).batches.at(0)
        assert sigma.log().mean().item() == pytest.approx(0.4, abs=0.04)
        assert sigma.log().std().item() == pytest.approx(1.5, abs=0.04)
        assert torch.equal(weight, torch.ones(recipe.batch))
        _, sigma, _, weight = self.plan(
            toy, tmp_path, replace(recipe, draws=(0.0, 1.7))
        ).batches.at(0)
        assert (weight * sigma.log()).mean().item() == pytest.approx(0.4, abs=4e-3)

    @pytest.mark.parametrize("levels", [(-1.2, 1.2), (0.4, 1.5)])
    def test_draws_of_the_loss_s_own_distribution_weigh_the_same(self, levels, toy, tmp_path):
        recipe = replace(RECIPE, levels=levels, draws=levels)
        weight = self.plan(toy, tmp_path, recipe).batches.at(3)[3]
        torch.testing.assert_close(weight, torch.ones(RECIPE.batch))

    def test_a_run_starts_from_another_network(self, toy, tmp_path):
        begun = run(toy, tmp_path / "a")
        start = str(tmp_path / "a" / "network.safetensors")
        plan = self.plan(toy, tmp_path / "b", replace(RECIPE, start=start, draws=(0.0, 1.0)))
        torch.testing.assert_close(weights(plan.network), weights(begun), rtol=1e-3, atol=1e-4)
        assert torch.equal(weights(plan.network), weights(plan.average))
        assert plan._card()["begun"] == networks.card(start)
        other = replace(RECIPE, start=start, options=OPTIONS | {"channels": 16})
        with pytest.raises(ValueError, match=r"start: .*network\.safetensors' is another network"):
            self.plan(toy, tmp_path / "c", other)

    def test_another_network_to_start_from_is_an_error_that_says_briefly_what_differs(
        self, toy, tmp_path
    ):
        recipe = replace(RECIPE, start="photos/ddpmpp")
        with pytest.raises(ValueError, match=r"is another network: got .* par") as caught:
            self.plan(toy, tmp_path, recipe)
        first, second = str(caught.value).splitlines()
        size = networks.build("ddpmpp", (1, 8, 8), **OPTIONS).size
        assert first.endswith(f"wanted {size:,}")
        assert "tensors differ in name or shape" in second
        assert second.count("model.") == 3

    def test_the_average_follows_the_weights_with_the_stated_half_life(self, toy, tmp_path):
        plan = self.plan(toy, tmp_path)
        expected = weights(plan.average).clone()
        for step in range(1, 6):
            plan.loop._advance(0.5)
            keep = 0.5 ** (1 / (0.05 * step))
            expected = keep * expected + (1 - keep) * weights(plan.network)
        torch.testing.assert_close(weights(plan.average), expected, rtol=1e-6, atol=1e-7)

    def plan(self, toy, out, recipe=RECIPE):
        return Run(recipe, out, toy, ALONE, "float32")


class TestMuon:
    """Muon moves a matrix along what is left of its gradient without the singular values."""

    def step(self, shape, rate=0.01):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.zeros(shape))
        chosen = optimizer("muon", layer, rate)
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(6))
        layer.weight.grad = gradient
        chosen.step()
        return gradient, layer.weight.detach()

    @pytest.mark.parametrize("shape", [(32, 96), (96, 32), (32, 16, 3, 3)])
    def test_it_steps_along_the_nearest_orthogonal_matrix(self, shape):
        gradient, moved = (part.flatten(1) for part in self.step(shape))
        u, s, v = torch.linalg.svd(gradient, full_matrices=False)
        aligned = u.T @ moved @ v.T / (-0.01 * 0.2 * max(moved.shape) ** 0.5)
        assert s.max() > 2 * s.min()
        # five Newton-Schulz steps leave singular values between about 0.7 and 1.2
        assert aligned.diagonal().min() > 0.6
        assert aligned.diagonal().max() < 1.3
        assert (aligned - aligned.diagonal().diag()).abs().max() < 0.05

    @pytest.mark.parametrize("shape", [(40,), (32, 3), (8, 64, 3, 3)])
    def test_what_is_no_large_matrix_is_adam_s(self, shape):
        gradient, moved = self.step(shape)
        torch.testing.assert_close(moved, -0.01 * gradient.sign(), rtol=1e-3, atol=1e-5)

    def test_every_parameter_of_a_network_moves(self, toy, tmp_path):
        before = networks.build("ddpmpp", (1, 8, 8), seed=RECIPE.seed, **WIDER)
        after = run(toy, tmp_path, replace(RECIPE, **MUON))
        groups = state(tmp_path)["optimizer"]
        assert len(groups["muon"]["state"]) > 10
        names = [name for name, _ in before.named_parameters()]
        for name, x, y in zip(names, before.parameters(), after.parameters(), strict=True):
            assert not torch.equal(x, y), name


class TestResume:
    @pytest.mark.parametrize("steps", [1, 5, 9])
    @pytest.mark.parametrize("changes", [{}, {"target": "posterior", "draws": (-0.4, 1.5)}, MUON])
    def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
        self, steps, changes, toy, tmp_path, monkeypatch
    ):
        recipe = replace(RECIPE, **changes)
        whole = run(toy, tmp_path / "whole", recipe)
        with interrupted_after(steps, monkeypatch):
            run(toy, tmp_path / "stopped", recipe, save_minutes=0)
        assert state(tmp_path / "stopped")["loop"]["done"] == steps
        resumed = run(toy, tmp_path / "stopped", recipe)
        assert torch.equal(weights(resumed), weights(whole))
        a, b = state(tmp_path / "whole"), state(tmp_path / "stopped")
        for part in ("network", "average"):
            assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
        assert_same(a["optimizer"], b["optimizer"])
        losses = [[row["loss"] for row in part["loop"]["rows"]] for part in (a, b)]
        assert losses[0] == losses[1]

    def test_a_run_that_was_killed_loses_only_what_it_had_not_saved(self, tmp_path):
        out = tmp_path / "run"
        recipe = Recipe("digits", "ddpmpp", {**OPTIONS, "multipliers": [1]}, 4_000, batch=16)
        words = [sys.executable, *shlex.split(command(recipe))[1:], "--out", str(out)]
        words += ["--precision", "float32", "--save-minutes", "0"]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "network.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = state(out)["loop"]["done"]
        assert 0 < saved < 250
        networks.load(out / "network.safetensors")
        recipe = replace(recipe, images=16 * (saved + 2))
        train(recipe, out, precision="float32", progress=False)
        assert state(out)["loop"]["done"] == saved + 2

    def test_a_limit_stops_a_run_after_a_step_and_calls_in_a_row_end_as_one(self, toy, tmp_path):
        whole = run(toy, tmp_path / "whole")
        for step in range(1, 10):
            with pytest.raises(TimeoutError, match=f"stopped after {8 * step} images"):
                run(toy, tmp_path / "parts", limit=0.0)
        parts = run(toy, tmp_path / "parts", limit=0.0)
        assert torch.equal(weights(whole), weights(parts))
        losses = (
            [row["loss"] for row in state(tmp_path / name)["loop"]["rows"]]
            for name in ("whole", "parts")
        )
        assert next(losses) == next(losses)

    def test_a_finished_run_can_go_on_with_a_larger_budget(self, toy, tmp_path):
        run(toy, tmp_path)
        run(toy, tmp_path, replace(RECIPE, images=160))
        assert networks.card(tmp_path / "network.safetensors")["images"] == 160

    def test_another_recipe_s_run_is_not_overwritten(self, toy, tmp_path):
        run(toy, tmp_path)
        before = (tmp_path / "state.pt").read_bytes()
        with pytest.raises(ValueError, match=r"state\.pt: holds a run with seed=3; wanted seed=9"):
            run(toy, tmp_path, replace(RECIPE, seed=9))
        assert (tmp_path / "state.pt").read_bytes() == before

    @pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
    def test_a_state_cut_short_is_an_error(self, keep, toy, tmp_path):
        run(toy, tmp_path)
        data = (tmp_path / "state.pt").read_bytes()
        length = int(keep * len(data)) if keep < 1 else keep
        (tmp_path / "state.pt").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"state\.pt: .*name another folder"):
            run(toy, tmp_path)


class TestOutcome:
    @pytest.mark.parametrize(
        ("seen", "every"), [(64, 10_000), (999_999, 10_000), (1_000_000, 100_000), (10**7, 10**6)]
    )
    def test_rows_of_the_loss_curve_are_coarser_the_longer_it_is(self, seen, every):
        assert training_run._images_per_row(seen) == every

    def test_the_loss_falls_and_the_files_say_what_was_done(self, tmp_path, monkeypatch):
        monkeypatch.setattr(training_run, "LOG_EVERY", 500)
        shade = torch.linspace(0, 255, 64).to(torch.uint8).reshape(1, 1, 8, 8)
        data = Dataset("shade", shade.repeat(24, 1, 1, 1), shade)
        recipe = replace(
            RECIPE, images=2_000, batch=32, rate=5e-3, options=OPTIONS | {"dropout": 0.0}
        )
        network = run(data, tmp_path, recipe)
        with (tmp_path / "loss.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["images"]) for row in rows] == [512, 1024, 1504, 2016]
        assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
        assert float(rows[-1]["held_out"]) < 0.5 * float(rows[0]["held_out"])
        card = networks.card(tmp_path / "network.safetensors")
        assert card["images"] == 2_016
        assert card["data"] == "toy"
        assert card["seed"] == 3
        assert card["train_images"] == 24
        assert card["loss"][-1]["loss"] == float(rows[-1]["loss"])
        assert not network.training

    def test_the_card_s_command_makes_the_same_recipe(self, monkeypatch, tmp_path):
        seen = {}
        monkeypatch.setattr(training, "train", lambda recipe, out, **_: seen.update(recipe=recipe))
        other = {"target": "posterior", "draws": (-0.4, 1.5), "start": "a network.safetensors"}
        other |= {"levels": (0.4, 1.5), "optimizer": "muon"}
        for recipe in (
            RECIPE,
            replace(RECIPE, images=0, minutes=2.5, flips=False),
            replace(RECIPE, **other),
            replace(RECIPE, data="digits"),  # whose own recipe has another target, and draws
        ):
            words = shlex.split(command(recipe))
            training.main(words[3:])
            assert seen["recipe"] == recipe

    def test_a_budget_in_minutes_is_kept(self, toy, tmp_path):
        start = time.monotonic()
        run(toy, tmp_path, replace(RECIPE, images=0, minutes=0.02))
        assert time.monotonic() - start < 20
        assert state(tmp_path)["loop"]["seconds"] >= 1.2

    def test_bf16_trains(self, toy, tmp_path):
        network = run(toy, tmp_path, precision="bf16")
        assert weights(network).dtype == torch.float32
        assert networks.card(tmp_path / "network.safetensors")["precision"] == "bf16"

    def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(self, toy, tmp_path):
        run(toy, tmp_path)
        before = (tmp_path / "network.safetensors").read_bytes()
        run_state = state(tmp_path)
        first = next(iter(run_state["network"]))
        run_state["network"][first].fill_(torch.nan)
        torch.save(run_state | {"pending": [torch.tensor(torch.nan)]}, tmp_path / "state.pt")
        with pytest.raises(FloatingPointError, match="try a lower rate"):
            run(toy, tmp_path, replace(RECIPE, images=88))
        assert (tmp_path / "network.safetensors").read_bytes() == before

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"images": 0}, "budget: got none"),
            ({"images": 0, "minutes": math.nan}, "budget: got 0 images, nan minutes"),
            ({"minutes": math.inf}, "budget: got .* images, inf minutes"),
            ({"images": -1}, "budget: got -1 images"),
            ({"batch": 0}, "batch: got 0, wanted at least 1"),
            ({"optimizer": "sgd"}, "optimizer: got 'sgd', wanted one of adam, muon"),
            ({"target": "mean"}, "target: got 'mean', wanted 'image' or 'posterior'"),
            ({"draws": (0.0, 0.0)}, "draws: got .*, wanted a mean and a deviation above 0"),
            ({"levels": (0.0,)}, "levels: got .*, wanted a mean and a deviation above 0"),
            ({"levels": (math.nan, 1.0)}, "levels: got .*nan, 1.*, finite"),
            ({"levels": (0.0, math.inf)}, "levels: got .*0.0, inf.*, finite"),
            ({"draws": (-math.inf, 1.0)}, "draws: got .*-inf, 1.*, finite"),
            ({"rate": 0}, "rate: got 0, wanted a finite number above 0"),
            ({"rate": -1e-3}, "rate: got -0.001, wanted a finite number above 0"),
            ({"rate": math.nan}, "rate: got nan, wanted a finite number above 0"),
        ],
    )
    def test_a_recipe_that_cannot_run_is_an_error(self, changes, message, toy, tmp_path):
        with pytest.raises(ValueError, match=message):
            run(toy, tmp_path, replace(RECIPE, **changes))

    @pytest.mark.usefixtures("as_users_do")
    @pytest.mark.parametrize(
        ("options", "got"), [({"nope": 3}, "nope"), ({"seed": 1}, "seed"), ([3], r"\[3\]")]
    )
    def test_options_that_are_none_are_an_error_that_lists_the_valid_ones(
        self, options, got, toy, tmp_path
    ):
        with pytest.raises(TypeError, match=f"options: got {got}, wanted .* channels, multipliers"):
            run(toy, tmp_path, replace(RECIPE, options=options))

    @pytest.mark.parametrize("place", ["file", "file/run"])
    def test_a_folder_that_cannot_be_is_an_error_before_training(
        self, place, toy, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Loop, "_advance", None)
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=f"out: got '.*{place}', wanted a folder that can be"):
            run(toy, tmp_path / place)

    def test_a_folder_that_cannot_be_written_to_is_not_left_behind(
        self, toy, tmp_path, monkeypatch
    ):
        def refuse(**_):
            raise PermissionError("not yours")

        monkeypatch.setattr(Loop, "_advance", None)
        monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
        with pytest.raises(ValueError, match=r"out: got '.*run', wanted .*\(not yours\)"):
            run(toy, tmp_path / "new" / "run")
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("as_users_do")
    def test_the_command_line_says_what_is_wrong(self, tmp_path):
        out = ["--out", str(tmp_path)]
        with pytest.raises(SystemExit, match="error: name: got 'nothing'"):
            training.main(["--data", "nothing", "--arch", "ddpmpp", *out])
        with pytest.raises(SystemExit, match="error: width: got 5"):
            training.main(
                ["--data", "digits", "--arch", "dit", "--options", '{"patch": 2, "width": 5}', *out]
            )
        words = ["--data", "digits", "--arch", "dit", "--images", "4", "--batch", "4", *out]
        for minutes in ("-1", "nan"):
            with pytest.raises(SystemExit, match=f"error: save_minutes: got {minutes}.*from 0"):
                training.main([*words, "--save-minutes", minutes])
        for options, got in (('{"widht": 8}', "widht"), ("[1]", r"\[1\]"), ("3", "3")):
            with pytest.raises(SystemExit, match=f"error: options: got {got}, wanted .* width"):
                training.main([*words, "--options", options])
        (tmp_path / "file").write_text("")
        tiny = '{"patch": 4, "width": 8, "depth": 1, "heads": 1}'
        with pytest.raises(SystemExit, match=r"error: .*file"):
            training.main([*words[:-1], str(tmp_path / "file"), "--options", tiny])


@pytest.mark.slow
def test_processes_share_the_batch_and_agree_with_one(tmp_path, monkeypatch):
    """Two processes on the CPU, each with half of every batch, take the steps of one."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from fpmc.networks.recipes import Recipe\n"
        "from fpmc.networks.train import train\n"
        "options = {'channels': 8, 'multipliers': [1, 2], 'blocks': 1, 'attention': [4]}\n"
        "recipe = Recipe('digits', 'ddpmpp', options | {'dropout': 0.0}, images=48, batch=8)\n"
        "train(recipe, sys.argv[1], precision='float32', progress=False)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
        runpy.run_path(str(script))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    together = subprocess.run(
        [*launcher, str(script), str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert together.returncode == 0, together.stderr
    one, two = (state(tmp_path / name)["network"] for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_products_are_tf32_only_where_wanted_and_only_meanwhile():
    before = torch.get_float32_matmul_precision()
    with training.tf32(False):
        assert torch.get_float32_matmul_precision() == before
    with training.tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a compiler")
def test_compiled_steps_are_the_same_steps(tmp_path):
    """In a process of its own: the tests' shape checks cannot be compiled."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from torch._inductor import config\n"
        "from fpmc.networks.recipes import Recipe\n"
        "from fpmc.networks.train import train\n"
        "config.compile_threads = config.cpp.simdlen = 1  # less for the C++ compiler to read\n"
        "options = {'channels': 8, 'multipliers': [1], 'blocks': 1, 'attention': []}\n"
        "options['dropout'] = 0.0\n"
        "more = {'batch': 8, 'flips': True, 'target': 'posterior'}\n"
        "recipe = Recipe('digits', 'ddpmpp', options, images=48, **more)\n"
        "for compiled in (False, True):\n"
        "    out = f'{sys.argv[1]}/{compiled}'\n"
        "    train(recipe, out, precision='float32', compiled=compiled, progress=False)\n"
        "    assert (torch._dynamo.utils.counters['frames']['ok'] > 0) == compiled\n"
    )
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    plain, compiled = (state(tmp_path / name)["network"] for name in ("False", "True"))
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-5)


class TestWhatMayHappenToARun:
    """Signals, full disks, images that change: nothing is lost, and one line says what is wrong."""

    def test_sigterm_saves_and_ends_with_a_status_of_its_own(self, tmp_path):
        out = tmp_path / "run"
        recipe = Recipe("digits", "ddpmpp", {**OPTIONS, "multipliers": [1]}, 400_000, batch=16)
        words = [sys.executable, *shlex.split(command(recipe))[1:], "--out", str(out)]
        words += ["--precision", "float32", "--save-minutes", "0.002"]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "network.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert sorted(path.name for path in out.iterdir()) == [
            "loss.csv", "network.safetensors", "state.pt",
        ]  # fmt: skip
        assert state(out)["loop"]["done"] > 0
        networks.load(out / "network.safetensors")

    def test_a_full_disk_is_one_line_and_the_last_state_stays(self, toy, tmp_path, monkeypatch):
        run(toy, tmp_path)
        before = (tmp_path / "state.pt").read_bytes()

        def full(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'"):
            run(toy, tmp_path, replace(RECIPE, images=160))
        assert (tmp_path / "state.pt").read_bytes() == before
        assert not list(tmp_path.glob("*.part"))

    def test_files_have_the_mode_that_the_umask_says(self, toy, tmp_path):
        run(toy, tmp_path)
        (tmp_path / "other").write_text("")
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert len(modes) == 1

    def test_a_trained_network_is_not_overwritten_where_its_state_is_gone(self, toy, tmp_path):
        run(toy, tmp_path)
        before = (tmp_path / "network.safetensors").read_bytes()
        (tmp_path / "state.pt").unlink()
        with pytest.raises(ValueError, match="holds a network and no state to go on from"):
            run(toy, tmp_path)
        assert (tmp_path / "network.safetensors").read_bytes() == before

    def test_a_run_does_not_go_on_with_other_images(self, toy, tmp_path):
        run(toy, tmp_path)
        hashed = networks.card(tmp_path / "network.safetensors")["images_hash"]
        assert hashed == fingerprint(toy.train)
        other = replace(toy, train=toy.train.flip(0))
        with pytest.raises(ValueError, match=f"holds a run with images_hash='{hashed}'; wanted"):
            run(other, tmp_path, replace(RECIPE, images=160))

    def test_files_that_cannot_grow_end_the_command_with_one_line_that_names_them(
        self, tmp_path, capsys
    ):
        """By the system's own limit of a file's size, whose error is as a full disk's."""
        import resource  # which is not everywhere

        out = tmp_path / "run"
        recipe = Recipe("digits", "ddpmpp", {**OPTIONS, "multipliers": [1]}, 320, batch=16)
        words = [*shlex.split(command(recipe))[3:], "--out", str(out), "--precision", "float32"]
        training.main(words)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        capsys.readouterr()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["state.pt"]) - 1000, limits[1]))
        try:
            with pytest.raises(SystemExit) as ended:
                training.main([*words, "--images", "640"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "rror" not in capsys.readouterr().err
        assert re.fullmatch(r"error: \[Errno \d+\] File too large: '.*state\.pt'", ended.value.code)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def test_the_card_has_a_path_that_is_right_everywhere(self, toy, tmp_path, monkeypatch):
        folder = tmp_path / "imgs"
        folder.mkdir()
        for i, image in enumerate(toy.train):
            Image.fromarray(image[0].numpy()).save(folder / f"{i:02d}.png")
        monkeypatch.chdir(tmp_path)
        recipe = replace(RECIPE, data="imgs")
        train(recipe, tmp_path / "run", precision="float32", progress=False)
        card = networks.card(tmp_path / "run" / "network.safetensors")
        assert card["data"] == str(folder)
        assert shlex.quote(str(folder)) in card["command"]

        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        maps = ["--network", str(tmp_path / "run" / "network.safetensors"), "--images", "1"]
        maps += ["--steps", "2", "--cache", str(tmp_path / "cache"), "--out", "maps.npz"]
        sensitivity.main(maps)
        assert Path("maps.npz").exists()

        Image.fromarray(255 - toy.train[0, 0].numpy()).save(folder / "00.png")
        with pytest.raises(SystemExit, match=r"other images than lie under .*imgs now, wanted --"):
            sensitivity.main(maps)
        with pytest.raises(ValueError, match=r"state\.pt: holds a run with images_hash="):
            train(
                replace(recipe, data=str(folder), images=160),
                tmp_path / "run",
                precision="float32",
                progress=False,
            )
