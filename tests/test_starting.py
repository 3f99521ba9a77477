"""A training that starts from another network's weights."""

from dataclasses import replace

import pytest
import torch

from fpmc import networks
from fpmc.data import Dataset
from fpmc.networks import train
from fpmc.networks.recipes import Recipe
from fpmc.networks.training.run import Run
from fpmc.networks.training.starting import FRESH, start_from
from fpmc.processes import ALONE

UNET = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
TOKENS = {"width": 16, "depth": 1, "heads": 2, "patch": 2}
MADE = {
    "ddpmpp": ((3, 8, 8), UNET),
    "ncsnpp": ((3, 8, 8), UNET),
    "dit": ((3, 8, 8), TOKENS),
    "path": ((2, 1, 16), {"waves": 4, "width": 16, "depth": 1}),
}


def means(arch, seed=1):
    """A network none of whose layers is at its zero start."""
    shape, options = MADE[arch]
    network = networks.build(arch, shape, seed=seed, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def fresh(arch, **changes):
    shape, options = MADE[arch]
    return networks.build(arch, shape, seed=2, **options | {"xi": True} | changes).eval()


def normal(shape, seed):
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", MADE)
class TestANetworkThatDrawsStartsFromOneOfMeans:
    def test_without_noise_in_xi_it_answers_alike_and_with_it_otherwise(self, arch):
        start, network = means(arch), fresh(arch)
        start_from(network, start, "start")
        z = normal(start.shape, 3)
        answer, still = start(z, 1.5), torch.zeros_like(z)
        torch.testing.assert_close(network(z, 1.5, still), answer, rtol=1e-5, atol=1e-5)
        moved = (network(z, 1.5, normal(start.shape, 4)) - answer).norm() / answer.norm()
        assert 1e-3 < moved < 0.5

    def test_the_weights_of_xi_are_fresh_and_small(self, arch):
        start, network, untouched = means(arch), fresh(arch), fresh(arch)
        start_from(network, start, "start")
        given, own = start.state_dict(), untouched.state_dict()
        wider = {name: v for name, v in network.state_dict().items() if given[name].ndim > 1}
        wider = {name: v for name, v in wider.items() if v.shape != given[name].shape}
        assert wider
        for name, weights in wider.items():
            found = {
                place
                for place in range(weights.shape[1])
                if torch.equal(weights[:, place], FRESH * own[name][:, place])
            }
            assert len(found) == weights.shape[1] - given[name].shape[1]
            kept = [place for place in range(weights.shape[1]) if place not in found]
            assert torch.equal(weights[:, kept], given[name])

    def test_another_network_is_an_error(self, arch):
        _, options = MADE[arch]
        wide = "channels" if "channels" in options else "width"
        with pytest.raises(ValueError, match=r"start: 'mine' is another network: got .* par"):
            start_from(fresh(arch, **{wide: 2 * options[wide]}), means(arch), "mine")
        with pytest.raises(ValueError, match=r"start: 'mine' is another network: got .* par"):
            start_from(means(arch), fresh(arch), "mine")  # nothing to put in the place of its ξ


@pytest.mark.parametrize(
    ("arch", "option", "value"), [("dit", "heads", 4), ("ncsnpp", "taps", (1, 2, 2, 1))]
)
def test_weights_that_mean_something_else_are_an_error(arch, option, value):
    with pytest.raises(ValueError, match=rf"start: 'mine' is another network: got {option} = "):
        start_from(fresh(arch, **{option: value}), means(arch), "mine")


def test_another_deviation_of_the_data_is_an_error():
    start = means("dit")
    start.sigma_data = 0.25
    with pytest.raises(ValueError, match=r"got sigma_data = 0\.25, wanted 0\.5"):
        start_from(fresh("dit"), start, "mine")


def test_dropout_and_the_form_of_options_may_differ():
    start = means("ncsnpp")
    start_from(fresh("ncsnpp", xi=False, multipliers=(1, 2), dropout=0.3), start, "mine")


def test_a_start_named_from_here_is_found_from_elsewhere(tmp_path, monkeypatch):
    """The same bits go on under another path; the card names the start from the root."""
    images, places = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), (tmp_path / "a", tmp_path / "b")

    def run(start, n):
        recipe = Recipe("toy", "dit", MADE["dit"][1], images=n, batch=4, start=start)
        dataset = Dataset("toy", images, images)
        train.train(recipe, tmp_path / "out", dataset=dataset, progress=False)
        return networks.card(tmp_path / "out" / "network.safetensors")

    for place in places:
        place.mkdir()
        networks.save(means("dit", seed=1), place / "start.safetensors")
    monkeypatch.chdir(places[0])
    card = run("start.safetensors", 8)
    assert card["start"] == str(places[0] / "start.safetensors")
    assert f"--start {card['start']} " in card["command"]
    monkeypatch.chdir(tmp_path)
    assert run(card["start"], 12)["images"] == 12
    assert run("b/start.safetensors", 16)["images"] == 16


def test_a_shipped_start_keeps_its_name(tmp_path):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    options = networks.load("digits/ddpmpp").architecture["options"]
    recipe = Recipe("toy", "ddpmpp", options, images=4, batch=4, start="digits/ddpmpp")
    run = Run(recipe, tmp_path, Dataset("toy", images, images), replace(ALONE), "float32")
    assert run.recipe.start == "digits/ddpmpp"


def test_a_run_does_not_go_on_from_another_start_of_the_same_name(tmp_path):
    path, images = tmp_path / "start.safetensors", torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    networks.save(means("dit", seed=1), path)
    recipe = Recipe("toy", "dit", MADE["dit"][1], images=8, batch=4, start=str(path))

    def run():
        dataset = Dataset("toy", images, images)
        train.train(recipe, tmp_path / "out", dataset=dataset, progress=False)

    run()
    run()  # the same start goes on
    networks.save(means("dit", seed=2), path)
    with pytest.raises(ValueError, match="holds a run with start_hash="):
        run()
