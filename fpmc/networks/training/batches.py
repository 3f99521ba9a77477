"""Batches of noisy images, which depend on the seed and the step alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpmc.networks.recipes import LEVELS, Recipe
from fpmc.networks.training.loop import seed_of
from fpmc.source import to_float

__all__ = ["NoisyBatches", "held_out_batch"]


class NoisyBatches:
    """Images, noise levels, noise, weights and maybe ξ, step by step; a state holds the step.

    Args:
        recipe: Batch, seed, levels, draws, flips, and whether ξ is drawn and how often.
        images: The training images, uint8, shape (n, c, h, w).
    """

    def __init__(self, recipe: Recipe, images: Tensor):
        self.recipe, self.images = recipe, images
        self.step = 0
        self.epoch, self.order = -1, torch.empty(0)

    def __next__(self) -> tuple[Tensor, ...]:
        batch = self.at(self.step)
        self.step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The step that comes next."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.step = state["step"]

    def at(self, step: int) -> tuple[Tensor, ...]:
        """The batch of a step, for all processes together.

        ξ is there for networks that take it, shape (b, m, c, h, w).
        """
        size, seed = self.recipe.batch, self.recipe.seed
        index = torch.tensor([self.position(i) for i in range(step * size, (step + 1) * size)])
        generator = torch.Generator().manual_seed(seed_of(seed, 1, step))
        x = to_float(self.images[index])
        sigma, weight = self.levels(generator)
        noise = torch.randn(x.shape, generator=generator)
        mirrored = torch.rand(size, generator=generator) < 0.5
        if self.recipe.flips:
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, sigma, noise, weight, *_xi(self.recipe, x, seed_of(seed, 4, step))

    def levels(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise levels of a step, and the density of the loss over that of the draws."""
        size, (middle, spread) = self.recipe.batch, self.recipe.levels
        if not self.recipe.draws:
            sigma = (middle + spread * torch.randn(size, generator=generator)).exp()
            return sigma, torch.ones(size)
        mean, std = self.recipe.draws
        strata = torch.randperm(size, generator=generator)
        share = (strata + torch.rand(size, generator=generator)) / size
        drawn = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
        log = mean + std * drawn
        wanted = (log - middle) / spread
        return log.exp(), std / spread * ((drawn**2 - wanted**2) / 2).exp()

    def position(self, i: int) -> int:
        """Which image is the i-th: every image once per epoch, in an order of its own."""
        epoch, place = divmod(i, len(self.images))
        if epoch != self.epoch:
            rng = np.random.default_rng([self.recipe.seed, 0, epoch])
            self.epoch, self.order = epoch, rng.permutation(len(self.images))
        return int(self.order[place])


def _xi(recipe: Recipe, x: Tensor, seed: int) -> list[Tensor]:
    """ξ of the draws for each image, if the network takes it: one array, or none."""
    if not recipe.options.get("xi"):
        return []
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(x), recipe.population, *x.shape[1:], generator=generator)]


def held_out_batch(images: Tensor, recipe: Recipe, n: int = 256) -> tuple[Tensor | None, ...]:
    """Held-out images, noise levels, noise and maybe ξ, the same at every call, as a loss has them.

    The levels are :data:`LEVELS`, whatever a recipe's are, so that curves compare.
    """
    x = to_float(images[:n])
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, 3))
    sigma = (LEVELS[0] + LEVELS[1] * torch.randn(len(x), generator=generator)).exp()
    noise = torch.randn(x.shape, generator=generator)
    return x, sigma, noise, torch.ones(len(x)), None, *_xi(recipe, x, seed_of(recipe.seed, 5))
