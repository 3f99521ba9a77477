"""Networks that draw: what they answer, the loss that trains them, and that a run goes on."""

import itertools
import math
import shlex
from dataclasses import replace

import pytest
import torch
from torch import nn

import fpmc
from fpmc import diffusion, distributional, networks
from fpmc.data import Dataset
from fpmc.distributional import energy_score
from fpmc.networks import train as training
from fpmc.networks.recipes import ENERGY, Recipe, command, recipe
from fpmc.networks.train import edm_loss, energy_loss, train
from fpmc.networks.training.loss import posterior_draws
from fpmc.networks.training.run import Run
from fpmc.processes import ALONE
from fpmc.source import to_float
from tests.helpers import images, interrupted_after

SMALL = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.0}
TOKENS = {"patch": 2, "width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
ARCHS = {"ddpmpp": SMALL, "ncsnpp": SMALL, "dit": TOKENS}
MEAN = Recipe("toy", "ddpmpp", SMALL, images=80, batch=8, flips=True, seed=3)
SPECIAL = replace(MEAN, objective="energy")
"""β = 2, λ = 0 and m = 1, without ξ."""
SCORE = {"objective": "energy", "beta": 1.0, "repulsion": 1.0, "population": 3}
DRAWS = replace(MEAN, options=SMALL | {"xi": True}, **SCORE)


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("toy", pixels[:24], pixels[24:])


def run(toy, out, recipe, **options):
    options = {"precision": "float32", "progress": False, "dataset": toy, **options}
    return train(recipe, out, **options)


def drawing(arch="ddpmpp", seed=1):
    """A network whose last layers, which start at nearly 0, say something."""
    network = networks.build(arch, (1, 8, 8), xi=True, **ARCHS[arch]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def weights(network):
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


class Affine(nn.Module):
    """A drawing network in closed form: F = a z + b ξ, by channels."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, x, condition):
        z, xi = x.chunk(2, dim=1)
        return self.a * z + self.b * xi


class Perceptron(nn.Module):
    """A drawing network for images of 2 x 2."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                                    nn.Linear(64, 4))  # fmt: skip

    def forward(self, x, condition):
        return self.layers(x.flatten(1)).view(-1, 1, 2, 2)


class TestAnswers:
    @pytest.mark.parametrize("arch", ARCHS)
    def test_another_xi_is_another_answer_of_the_images_shape(self, arch):
        network, z = drawing(arch), images(2, (1, 8, 8), 0)
        one, other = images(2, (1, 8, 8), 1), images(2, (1, 8, 8), 2)
        assert network(z, 1.0, one).shape == z.shape
        assert torch.equal(network(z, 1.0, one), network(z, 1.0, one))
        assert not torch.equal(network(z, 1.0, one), network(z, 1.0, other))

    def test_xi_of_colour_images_has_their_channels(self):
        options = SMALL | {"xi": True}
        network = networks.build("ncsnpp", (3, 8, 8), **options).eval()
        z = images(2, (3, 8, 8), 0)
        assert network(z, torch.tensor([0.1, 3.0]), z).shape == z.shape

    def test_a_generator_draws_xi(self):
        network, z = drawing(), images(3, (1, 8, 8), 0)
        xi = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
        answer = network(z, 1.0, torch.Generator().manual_seed(4))
        assert torch.equal(answer, network(z, 1.0, xi))

    def test_each_image_s_answer_is_its_own(self):
        network, z, xi = drawing(), images(3, (1, 8, 8), 0), images(3, (1, 8, 8), 1)
        sigmas = torch.tensor([0.1, 1.0, 10.0])
        apart = torch.cat([network(z[i : i + 1], sigmas[i], xi[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(network(z, sigmas, xi), apart, rtol=1e-4, atol=1e-5)

    def test_the_factors_give_draws_of_gaussian_data_a_target_of_variance_one(self):
        """x ~ N(0, σ_d²) and its draw given z: (x̂ − c_skip z) / c_out has variance 1."""
        generator = torch.Generator().manual_seed(0)
        for sigma in (0.05, 0.5, 5.0):
            x = 0.5 * torch.randn(40_000, generator=generator)
            z = x + sigma * torch.randn(40_000, generator=generator)
            gain = 0.25 / (0.25 + sigma**2)
            spread = sigma * math.sqrt(gain)
            draw = gain * z + spread * torch.randn(40_000, generator=generator)
            target = (draw - gain * z) * math.sqrt(0.25 + sigma**2) / (sigma * 0.5)
            assert target.var().item() == pytest.approx(1, abs=0.03)

    def test_it_is_what_the_sampler_takes_with_noise_or_with_a_generator(self):
        network = drawing()
        z = diffusion.initial_noise(4, (1, 8, 8), 0)
        sigmas = diffusion.edm_sigmas(3)
        first, again = (distributional.sample(network, z, sigmas, seed=5) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, distributional.sample(network, z, sigmas, seed=6))
        by_generator = distributional.sample(
            network, z, sigmas, seed=5, draw=lambda z, generator: generator
        )
        assert torch.equal(first, by_generator)

    def test_a_file_of_one_answers_as_it_did(self, tmp_path):
        network, z, xi = drawing(), images(2, (1, 8, 8), 0), images(2, (1, 8, 8), 1)
        networks.save(network, tmp_path / "draws.safetensors", dtype=torch.float32)
        loaded = networks.load(tmp_path / "draws.safetensors")
        assert isinstance(loaded, networks.Drawing)
        assert torch.equal(loaded(z, 1.0, xi), network(z, 1.0, xi))

    def test_no_images_have_no_answers(self):
        z = torch.zeros(0, 1, 8, 8)
        assert drawing()(z, 1.0, z).shape == z.shape

    @pytest.mark.parametrize(
        ("xi", "error", "message"),
        [
            (None, TypeError, "xi: got NoneType, wanted noise of z's shape or a torch.Generator"),
            (3, TypeError, "xi: got int, wanted noise"),
            (torch.zeros(1, 1, 8, 8), ValueError, "xi: got 1 of them, wanted one for each of 2"),
            (torch.zeros(2, 2, 8, 8), ValueError, "xi: got shape"),
            (torch.full((2, 1, 8, 8), math.nan), ValueError, "xi: got NaN"),
        ],
    )
    def test_another_xi_is_an_error(self, xi, error, message):
        with pytest.raises(error, match=message):
            drawing()(images(2, (1, 8, 8), 0), 1.0, xi)

    @pytest.mark.usefixtures("as_users_do")
    def test_whether_there_is_xi_is_yes_or_no(self):
        with pytest.raises(TypeError, match="xi: got 2, wanted True or False"):
            networks.build("ddpmpp", (1, 8, 8), xi=2, **SMALL)


class TestLoss:
    def arguments(self, b=4, m=3):
        x, noise = 0.5 * images(b, (1, 8, 8), 0), images(b, (1, 8, 8), 1)
        xi = images(b * m, (1, 8, 8), 2).view(b, m, 1, 8, 8)
        return x, torch.tensor([0.02, 0.3, 2.0, 40.0][:b]), noise, xi

    def test_with_one_answer_at_beta_two_it_is_the_denoising_loss_to_the_bit(self):
        network = networks.build("ddpmpp", (1, 8, 8), **SMALL).eval()
        x, sigma, noise, _ = self.arguments()
        weight = torch.tensor([0.5, 2.0, 0.1, 1.0])
        mean = edm_loss(network, x, sigma, noise, weight)
        same = energy_loss(network, x, sigma, noise, weight, beta=2.0, repulsion=0.0)
        assert torch.equal(mean, same)

    @pytest.mark.parametrize("beta", [0.1, 1.0, 1.9])
    @pytest.mark.parametrize("repulsion", [0.0, 0.5, 1.0])
    def test_it_is_the_score_of_each_image_s_draws_in_units_of_its_level(self, beta, repulsion):
        network = drawing()
        x, sigma, noise, xi = self.arguments()
        z, expected = x + sigma[:, None, None, None] * noise, 0.0
        for i in range(4):
            draws = torch.stack([network(z[i : i + 1], sigma[i], xi[i, j : j + 1])
                                 for j in range(3)])  # fmt: skip
            score = energy_score(draws, x[i : i + 1], beta, repulsion).item()
            level = (sigma[i] ** 2 + 0.25) / (0.25 * sigma[i] ** 2) / 64
            expected += score * level.item() ** (beta / 2) / 4
        loss = energy_loss(network, x, sigma, noise, xi=xi, beta=beta, repulsion=repulsion)
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    def test_several_targets_are_the_mean_over_them(self):
        network, (x, sigma, noise, xi) = drawing(), self.arguments()
        targets = torch.stack([x, -x, x.flip(3)])
        given = {"xi": xi, "beta": 1.0, "repulsion": 1.0}
        each = [energy_loss(network, x, sigma, noise, 1.0, t[None], **given) for t in targets]
        together = energy_loss(network, x, sigma, noise, 1.0, targets, **given)
        torch.testing.assert_close(together, torch.stack(each).mean())

    def test_draws_of_the_posterior_come_as_often_as_they_weigh(self):
        known, sigma = images(5, (1, 2, 2), 0), torch.tensor([0.8])
        z = known[:1] + 0.8 * images(1, (1, 2, 2), 1)
        found = posterior_draws(known, z, sigma, 40_000)
        weights = (-(known - z).square().flatten(1).sum(1) / (2 * 0.8**2)).softmax(0)
        for image, weight in zip(known, weights, strict=True):
            share = (found[:, 0] == image).flatten(1).all(1).float().mean().item()
            assert share == pytest.approx(weight.item(), abs=0.012)

    def test_of_ten_million_equal_images_each_half_is_drawn_equally_often(self):
        """By float32 weights the second half would come 55% of the time."""
        half = torch.arange(10_000_000).view(-1, 1, 1, 1) >= 5_000_000
        found = posterior_draws(half.float(), torch.zeros(1, 1, 1, 1), torch.tensor([1e4]), 160_000)
        assert found.mean().item() == pytest.approx(0.5, abs=0.01)

    def test_its_minimum_draws_from_the_posterior_of_gaussian_data(self):
        """x ~ N(0, s²) per pixel: F = a z + b ξ scores least where it draws from p(x | z)."""
        sigma, s = 0.7, 0.5
        gain = s**2 / (s**2 + sigma**2)
        shape = (1, 2, 2)
        generator = torch.Generator().manual_seed(0)
        x = s * torch.randn(4000, *shape, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        xi = torch.randn(4000, 4, *shape, generator=generator)

        def loss(a, b):
            network = networks.Drawing(Affine(a, b), shape)
            level = torch.full((4000,), sigma)
            with torch.no_grad():
                return energy_loss(network, x, level, noise, xi=xi, beta=1.0, repulsion=1.0)

        assert gain == pytest.approx(0.25 / (0.25 + sigma**2))  # c_skip z is the mean already
        best = loss(0.0, 1.0)  # and c_out is the posterior's spread
        for a, b in itertools.product((-0.3, 0.0, 0.3), (0.6, 1.0, 1.5)):
            assert (a, b) == (0.0, 1.0) or loss(a, b) > best

    @pytest.mark.parametrize(("repulsion", "least", "most"), [(0.0, 0.0, 0.1), (1.0, 0.6, 1.2)])
    def test_the_answers_spread_where_the_score_asks_for_it(self, repulsion, least, most):
        """Two images, much noise: by the energy score the draws are both, and else their middle."""
        torch.manual_seed(0)
        shape = (1, 2, 2)
        network = networks.Drawing(Perceptron(), shape)
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        sigma = torch.full((64,), 20.0)
        for _ in range(400):
            x = torch.randint(2, (64, 1, 1, 1)).float().expand(64, *shape) * 2 - 1
            noise, xi = torch.randn(64, *shape), torch.randn(64, 4, *shape)
            adam.zero_grad()
            energy_loss(network, x, sigma, noise, xi=xi, beta=1.5, repulsion=repulsion).backward()
            adam.step()
        with torch.no_grad():
            z = 20 * torch.randn(1, *shape).expand(500, *shape)
            draws = network(z, 20.0, torch.Generator().manual_seed(1))
        assert least <= draws.std(0).mean() < most


class TestTraining:
    def test_the_mean_network_is_a_special_case_to_the_bit(self, toy, tmp_path):
        mean, special = (run(toy, tmp_path / r.objective, r) for r in (MEAN, SPECIAL))
        assert torch.equal(weights(mean), weights(special))
        cards = [networks.card(tmp_path / r.objective / "network.safetensors")["loss"]
                 for r in (MEAN, SPECIAL)]  # fmt: skip
        assert [row["held_out"] for row in cards[0]] == [row["held_out"] for row in cards[1]]

    def test_a_state_of_a_mean_network_is_as_it_was_before_there_were_others(self, toy, tmp_path):
        run(toy, tmp_path, MEAN)
        identity = torch.load(tmp_path / "state.pt", weights_only=True)["identity"]
        assert not {"objective", "beta", "repulsion", "population"} & set(identity)

    @pytest.mark.parametrize("target", ["image", "posterior"])
    def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
        self, target, toy, tmp_path, monkeypatch
    ):
        chosen = replace(DRAWS, target=target)
        whole = run(toy, tmp_path / "whole", chosen)
        with interrupted_after(4, monkeypatch):
            run(toy, tmp_path / "stopped", chosen, save_minutes=0)
        resumed = run(toy, tmp_path / "stopped", chosen)
        assert torch.equal(weights(resumed), weights(whole))

    def test_another_score_s_run_is_not_overwritten(self, toy, tmp_path):
        run(toy, tmp_path, DRAWS)
        with pytest.raises(ValueError, match=r"holds a run with beta=1\.0; wanted beta=0\.1"):
            run(toy, tmp_path, replace(DRAWS, beta=0.1))

    def test_one_call_of_the_network_makes_all_draws(self, toy, tmp_path):
        made, calls = Run(DRAWS, tmp_path, toy, ALONE, "float32"), []
        made.network.model.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
        made.gradient_of(made.batches.at(0))
        assert [tuple(x.shape) for x in calls] == [(DRAWS.batch * 3, 2, 8, 8)]

    def test_the_card_s_command_makes_the_same_recipe(self, monkeypatch):
        seen = {}
        monkeypatch.setattr(training, "train", lambda recipe, out, **_: seen.update(recipe=recipe))
        for chosen in (DRAWS, SPECIAL, replace(DRAWS, data="digits", beta=1.9, repulsion=0.5)):
            training.main(shlex.split(command(chosen))[3:])
            assert seen["recipe"] == chosen

    def test_by_default_it_is_the_energy_score_of_four_draws_without_dropout(self):
        chosen = recipe("digits", "ddpmpp", objective="energy")
        assert {name: getattr(chosen, name) for name in ENERGY} == ENERGY
        assert chosen.options["xi"] is True
        assert chosen.options["dropout"] == 0
        plain = recipe("digits", "ddpmpp")
        assert "xi" not in plain.options
        assert plain.objective == "mean"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"objective": "median"},
                "objective: got 'median', wanted one of 'mean', 'energy', 'rbf', 'imq'",
            ),
            (
                {"objective": "mean"},
                "objective: got 'mean' with beta = 1, .* and xi, wanted a score",
            ),
            ({"beta": 2.5}, "beta: got 2.5, wanted a number above 0 and up to 2"),
            ({"beta": 0.0}, "beta: got 0"),
            ({"repulsion": 1.5}, "lambda: got 1.5"),
            ({"population": 0}, "population: got 0, wanted at least 1"),
            ({"population": 1}, "population: got 1 with lambda = 1, wanted 2 or more"),
            ({"options": SMALL}, "options: got no xi with population = 3, wanted xi = true"),
        ],
    )
    def test_a_recipe_that_cannot_run_is_an_error(self, changes, message, toy, tmp_path):
        with pytest.raises(ValueError, match=message):
            run(toy, tmp_path, replace(DRAWS, **changes))


class TestShipped:
    @pytest.mark.parametrize("name", networks.DRAWING)
    def test_they_load_draw_and_say_where_from(self, name):
        network, card = networks.load(name), networks.card(name)
        assert isinstance(network, networks.Drawing)
        assert card["data"] == name.partition("/")[0]
        assert card["objective"] == "energy"
        assert card["parameters"] == network.size
        mean = networks.load(f"{card['data']}/ddpmpp")
        assert mean.size < network.size < 1.01 * mean.size  # the weights of ξ are more
        assert "--objective energy" in card["command"]
        z = images(40, network.shape, 0)
        draws = network(z[:1].expand_as(z), 2.0, torch.Generator().manual_seed(0))
        assert draws.isfinite().all()
        assert draws.std(0).mean() > 0.05

    @pytest.mark.parametrize("name", networks.DRAWING)
    def test_they_foretell_held_out_images_better_than_the_mean_s_network_does(self, name):
        """By the energy score, whose best single answer is no better than a draw that is right."""
        dataset = fpmc.data.load(name.partition("/")[0])
        x = to_float(dataset.test[:200])
        network, mean = networks.load(name), networks.load(f"{dataset.name}/ddpmpp")
        z, generator = diffusion.add_noise(x, 2.0, 0), torch.Generator().manual_seed(0)
        with torch.no_grad():
            draws = torch.stack([network(z, 2.0, generator) for _ in range(8)])
            more = energy_score(mean(z, 2.0)[None], x, weight=0.0) - energy_score(draws, x)
        assert more.mean() > 3 * more.std() / math.sqrt(len(x))
