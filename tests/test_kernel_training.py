"""Kernel scores as what a network is trained by: the loss, its closed form, and runs."""

import shlex
from dataclasses import replace

import pytest
import torch
from torch import nn

from fpmc import networks
from fpmc.data import Dataset
from fpmc.distributional import kernel_score
from fpmc.networks import train as training
from fpmc.networks.drawing import Drawing
from fpmc.networks.recipes import command, recipe
from fpmc.networks.train import train
from fpmc.networks.training.loss import Loss, energy_loss, kernel_loss
from fpmc.networks.training.run import Run
from fpmc.processes import ALONE

TINY = {"patch": 4, "width": 8, "depth": 1, "heads": 1, "dropout": 0.0, "xi": True}


def digits(objective, **changes):
    plain = {"options": TINY, "images": 16, "batch": 8, "optimizer": "adam"}
    return recipe("digits", "dit", objective=objective, **plain | changes)


class Spread(nn.Module):
    """F = b ξ: draws that have, in the network's units, the standard deviation b."""

    def __init__(self, b):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, inputs, condition):
        return self.b * inputs[:, 1:]


def expected_rbf(b, h, repulsion):
    """The loss on x ~ N(0, σ_d²) in one dimension, where (x − c_skip z) / c_out is N(0, 1).

    For u ~ N(0, v), the Gaussian kernel's mean is 1 / √(1 + v / h²).
    """
    to_target, to_draw = ((1 + v / h**2) ** -0.5 for v in (1 + b**2, 2 * b**2))
    return 1 - to_target - repulsion / 2 * (1 - to_draw)


def batch(n, m=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, 1, 1, 1, generator=generator, dtype=torch.float64)
    sigma = torch.rand(n, generator=generator, dtype=torch.float64).mul(8).sub(4).exp()
    xi = torch.randn(n, m, 1, 1, 1, generator=generator, dtype=torch.float64)
    return 0.5 * x, sigma, noise, xi


class TestLoss:
    @pytest.mark.parametrize(("b", "h"), [(0.5, 0.7), (1.0, 0.7), (1.5, 2.0)])
    def test_it_is_the_closed_form_of_gaussians_at_all_noise_levels(self, b, h):
        x, sigma, noise, xi = batch(100_000)
        loss = kernel_loss(
            Drawing(Spread(b), (1, 1, 1)), x, sigma, noise, xi=xi,
            kernel="rbf", bandwidth=h, repulsion=1.0,
        )  # fmt: skip
        assert loss.item() == pytest.approx(expected_rbf(b, h, 1.0), abs=3e-3)
        assert expected_rbf(b, h, 1.0) > expected_rbf(1.0, h, 1.0) - 1e-12

    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    def test_its_gradient_vanishes_at_the_right_spread_alone(self, kernel):
        x, sigma, noise, xi = batch(100_000, seed=1)
        slopes = []
        for b in (0.6, 1.0, 1.4):
            network = Drawing(Spread(b), (1, 1, 1))
            options = {"kernel": kernel, "bandwidth": 1.0, "repulsion": 1.0}
            kernel_loss(network, x, sigma, noise, xi=xi, **options).backward()
            slopes.append(network.model.b.grad.item())
        assert slopes[0] < -0.02
        assert abs(slopes[1]) < 0.005
        assert slopes[2] > 0.02

    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    def test_it_is_the_score_of_the_draws_in_units_of_what_the_network_has_to_add(self, kernel):
        network = networks.build("dit", (1, 8, 8), **TINY)
        generator = torch.Generator().manual_seed(0)
        x, noise = torch.randn(2, 3, 1, 8, 8, generator=generator)
        xi = torch.randn(3, 2, 1, 8, 8, generator=generator)
        weight, sigma = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.1, 1.0, 30.0])
        targets = torch.randn(4, 3, 1, 8, 8, generator=generator)
        options = {"kernel": kernel, "bandwidth": 0.8, "repulsion": 0.5}
        loss = kernel_loss(network, x, sigma, noise, weight, targets, xi, **options)
        total = 0.0
        for i in range(3):
            z = x[i : i + 1] + sigma[i] * noise[i : i + 1]
            draws = torch.stack([network(z, sigma[i].item(), xi[i : i + 1, j]) for j in range(2)])
            c_out = sigma[i] * 0.5 / (sigma[i] ** 2 + 0.25).sqrt()
            h = 0.8 * 8 * c_out.item()  # √D = 8
            scores = [
                kernel_score(draws, t[i : i + 1], kernel, bandwidth=h, weight=0.5) for t in targets
            ]
            total += weight[i] * torch.stack(scores).mean() / 3
        assert loss.item() == pytest.approx(total.item(), rel=1e-4)

    def test_the_module_takes_the_loss_that_its_options_are_of(self):
        network = networks.build("dit", (1, 8, 8), **TINY)
        generator = torch.Generator().manual_seed(0)
        x, noise = torch.randn(2, 3, 1, 8, 8, generator=generator)
        xi, sigma = torch.randn(3, 2, 1, 8, 8, generator=generator), torch.ones(3)
        given = (x, sigma, noise, torch.ones(3), None, xi)
        kernel = {"kernel": "imq", "bandwidth": 1.0, "repulsion": 1.0}
        energy = {"beta": 1.0, "repulsion": 1.0}
        assert Loss(network, **kernel)(*given) == kernel_loss(network, *given, **kernel)
        assert Loss(network, **energy)(*given) == energy_loss(network, *given, **energy)


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("toy", pixels[:24], pixels[24:])


class TestRuns:
    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    def test_a_run_moves_the_weights_and_its_card_tells_how(self, toy, tmp_path, kernel):
        chosen = digits(kernel)
        network = train(chosen, tmp_path, dataset=toy, precision="float32", progress=False)
        fresh = networks.build("dit", (1, 8, 8), **TINY)
        moved = [
            not torch.equal(a, b)
            for a, b in zip(network.parameters(), fresh.parameters(), strict=True)
        ]
        assert any(moved)
        card = networks.card(tmp_path / "network.safetensors")
        assert (card["objective"], card["bandwidth"], card["beta"]) == (kernel, 1.0, 2.0)
        words = shlex.split(card["command"])
        assert words[words.index("--bandwidth") + 1] == "1.0"
        assert "--beta" not in words

    def test_the_command_line_asks_for_the_same_recipe(self, monkeypatch, tmp_path):
        asked = []
        monkeypatch.setattr(training, "train", lambda chosen, out, **rest: asked.append(chosen))
        chosen = digits("imq", bandwidth=0.5, repulsion=0.5, population=2)
        training.main([*shlex.split(command(chosen))[3:], "--out", str(tmp_path)])
        assert asked == [chosen]

    def test_another_bandwidth_is_another_run_and_states_of_others_do_not_say_one(
        self, toy, tmp_path
    ):
        def identity(chosen):
            return Run(chosen, tmp_path, toy, replace(ALONE), "float32").loop.identity

        assert identity(digits("rbf")) != identity(digits("rbf", bandwidth=2.0))
        assert "bandwidth" not in identity(digits("energy"))
        assert "bandwidth" not in identity(replace(digits("energy"), objective="mean"))

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            (digits("rbf", bandwidth=0.0), "bandwidth: got 0"),
            (digits("rbf", beta=1.0), "beta: got 1, wanted 2, as 'rbf' has none"),
            (digits("energy", bandwidth=1.0), "bandwidth: got 1, wanted 0, as 'energy' has none"),
            (digits("imq", population=1), "population: got 1 with lambda = 1"),
            (digits("tps"), "objective: got 'tps', wanted one of 'mean', 'energy', 'rbf', 'imq'"),
        ],
    )
    def test_what_does_not_go_together_is_an_error(self, toy, tmp_path, chosen, message):
        with pytest.raises(ValueError, match=message):
            train(chosen, tmp_path / "run", dataset=toy, progress=False)
        assert not (tmp_path / "run").exists()
