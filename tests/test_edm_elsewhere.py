"""EDM's sampler as other packages have it: with guidance in EDM2, and as ElucidatedDiffusion."""

import itertools

import pytest
import torch

from fpmc import Source, diffusion, methods
from tests.helpers import images, relative
from tests.test_denoisers import ALL, SHAPE
from tests.test_samplers import LEVELS, installed


def test_guidance_by_a_second_denoiser_as_edm2_asks():
    """Both denoisers are called alike, σ a 0-d float32 tensor; of a class and of all."""
    labels = torch.arange(12) % 3
    source = Source(images(12, SHAPE, 0), labels=labels)
    net, gnet = (methods.pspc_square(s, 3) for s in (source.of_class(1), source))
    noise = diffusion.initial_noise(3, SHAPE, seed=0, sigma_max=20.0).float()

    def guided(x, t, labels=None):
        return gnet(x, t, labels).to(x.dtype).lerp(net(x, t, labels).to(x.dtype), 2.0)

    x, levels = noise, torch.cat([LEVELS, torch.zeros(1)]).float()
    for sigma, lower in itertools.pairwise(levels):
        slope = (x - guided(x, sigma)) / sigma
        ahead = x + (lower - sigma) * slope
        if lower > 0:
            again = (ahead - guided(ahead, lower)) / lower
            ahead = x + (lower - sigma) * (0.5 * slope + 0.5 * again)
        x = ahead
    expected = diffusion.sample(guided, noise, LEVELS)
    assert relative(x, expected) < 2e-6
    assert relative(diffusion.sample(net, noise, LEVELS), expected) > 1e-2


@pytest.mark.parametrize("method", ["PSPC-Square", "ELS", "Wiener"])
def test_denoising_diffusion_pytorch_itself(method):
    """EDM's sampler there, whose noise is PyTorch's own."""
    package = installed("denoising_diffusion_pytorch")

    denoiser = ALL[method](Source(images(12, SHAPE, 0)))

    class Sampler(package.ElucidatedDiffusion):
        def preconditioned_network_forward(self, z, sigma, self_cond=None, clamp=False):
            return denoiser(z, sigma)

    net = torch.nn.Linear(1, 1)
    net.random_or_learned_sinusoidal_cond, net.self_condition = True, False
    c, side, _ = SHAPE
    options = {"sigma_min": 0.02, "sigma_max": 20.0, "num_sample_steps": 7}
    sampler = Sampler(net, image_size=side, channels=c, S_churn=0, **options)
    torch.manual_seed(0)
    noise = 20 * torch.randn(3, *SHAPE)
    torch.manual_seed(0)
    found = 2 * sampler.sample(3) - 1
    assert relative(found, diffusion.sample(denoiser, noise, LEVELS).clamp(-1, 1)) < 1e-5
