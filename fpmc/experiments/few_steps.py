"""Samplers by the number of calls that they make: of means, of draws, of filtered posteriors.

Each is a function from noise at the first level, a number of calls and a seed, to samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fpmc import diffusion
from fpmc.collection import FPMC
from fpmc.distributional import composite, sample
from fpmc.distributional.bridge import Network

__all__ = ["Sampler", "levels", "of_draws", "of_means", "of_posteriors"]

Sampler = Callable[[Tensor, int, int], Tensor]
"""A function from (noise, calls, seed) to samples."""


def levels(calls: int) -> list[float]:
    """As many levels as there are calls: the published ones without the lowest, σ = 0.002."""
    return diffusion.edm_sigmas(calls + 1)[:-1].tolist()


def of_means(denoiser: diffusion.Denoiser) -> dict[str, Sampler]:
    """Ordinary diffusion: Heun's method in at most so many calls, and the bridge."""

    def heun(z: Tensor, calls: int, seed: int) -> Tensor:
        return diffusion.sample(denoiser, z, levels((calls + 1) // 2))

    def bridge(z: Tensor, calls: int, seed: int) -> Tensor:
        return sample(lambda z, sigma, xi: denoiser(z, sigma), z, levels(calls), seed=seed)

    return {"heun": heun, "bridge": bridge}


def of_draws(network: Network) -> dict[str, Sampler]:
    """A network that draws, and the bridge."""
    return {"bridge": lambda z, calls, seed: sample(network, z, levels(calls), seed=seed)}


def of_posteriors(collection: FPMC) -> dict[str, Sampler]:
    """An FPMC whose composite samples stand for draws of a network, or without common noise."""

    def sampler(shared: bool) -> Sampler:
        def network(z: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
            return composite(collection, z, sigma, generator=generator, shared=shared)[0]

        return lambda z, calls, seed: sample(
            network, z, levels(calls), seed=seed, draw=lambda z, generator: generator
        )

    return {"bridge": sampler(True), "bridge, independent": sampler(False)}
