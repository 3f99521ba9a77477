"""A training that starts from another network's weights."""

import pytest
import torch

from fpmc import networks
from fpmc.networks.training.starting import FRESH, start_from

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
