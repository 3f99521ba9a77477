"""What an augmented set will be, before any of it is made: so that it can be made in pieces."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from fpmc.augment import geometry
from fpmc.augment.copies import LABELS, Augmented, balanced
from fpmc.augment.strategies import STRATEGIES
from fpmc.checks import as_generator, as_whole_number
from fpmc.diffusion import Denoiser, edm_sigmas, initial_noise, sample
from fpmc.engine.memory import CACHE_FRIENDLY
from fpmc.source import as_uint8, to_uint8

__all__ = ["DRAWS", "MOST_SYNTHETIC", "Recipe", "of_images", "of_network"]

DRAWS = 20
"""Draws of parameters for an image, as in the paper."""

FIRST_SEED = 2**31
"""Seeds from here to 2³² are those of synthetic images; no evaluation draws noise from them."""

MOST_SYNTHETIC = 2**20
"""Synthetic images of a seed."""

SAMPLES = 64
"""Samples at a time, whatever is asked for: so that a network's rounding is the same."""


class Recipe(NamedTuple):
    """An augmented set that is still to be made.

    Attributes:
        parents: As in :class:`fpmc.augment.Augmented`, shape (m,).
        parameters: Likewise, shape (m, 9).
        shape: The images' (c, h, w).
        make: The images from one position to another.
        piece: How many are made at a time.
        device: Where they are made.
    """

    parents: Int[Tensor, " m"]
    parameters: Float[Tensor, "m 9"]
    shape: tuple[int, int, int]
    make: Callable[[int, int], UInt8[Tensor, "piece c h w"]]
    piece: int
    device: torch.device

    def pieces(self, start: int = 0, *, progress: bool = False) -> Iterator[Tensor]:
        """The images from a position on that is the first of a piece, some at a time."""
        size = len(self.parents)
        bar = tqdm(total=size, initial=start, desc="augmenting", unit="image", disable=not progress)
        with bar:
            for first in range(start, size, self.piece):
                images = self.make(first, min(size, first + self.piece))
                yield images
                bar.update(len(images))

    def made(self, *, progress: bool = False) -> Augmented:
        """The whole set, in memory, where it is made."""
        images = torch.empty(len(self.parents), *self.shape, dtype=torch.uint8, device=self.device)
        first = 0
        for piece in self.pieces(progress=progress):
            images[first : first + len(piece)] = piece
            first += len(piece)
        return Augmented(images, self.parents, self.parameters)


def of_images(
    name: str,
    images: Any,
    n: int | None = None,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
    draws: int = DRAWS,
    budget: int = CACHE_FRIENDLY,
) -> Recipe:
    """Copies of images by one of :data:`fpmc.augment.strategies.STRATEGIES`.

    Args:
        name: The strategy.
        images: What they are made of, uint8, shape (N, c, h, w); a tensor or an array.
        n: How many; all whose parameters differ if None.
        seed: A seed, 0 if left out, or a generator, of all draws.
        generator: A generator, in the seed's place.
        draws: Draws for an image.
        budget: Bytes of working memory for those made at a time, at least one; no image depends
            on it.

    Raises:
        TypeError: If the images are no uint8, or a number is not whole.
        ValueError: If their shape is wrong, there are fewer than n that differ, or seed and
            generator are both given.
    """
    strategy, images = STRATEGIES[name], as_uint8(images)
    draws = as_whole_number(draws, "draws", 1)
    budget = as_whole_number(budget, "budget", 1)
    size, generator = tuple(images.shape[2:]), as_generator(seed, generator, otherwise=0)
    drawn = strategy.draw(draws, len(images), size, generator)
    parents, drawn = balanced(drawn, generator)
    if n is not None:
        n = as_whole_number(n, "n", 1, len(parents))
        parents, drawn = parents[:n], drawn[:n]

    def make(first: int, last: int) -> Tensor:
        chosen = images[parents[first:last].to(images.device)]
        return strategy.move(chosen, drawn[first:last].to(images.device))

    shape = tuple(images.shape[1:])
    piece = max(1, budget // geometry.bytes_per_image(shape))
    return Recipe(parents, strategy.label(drawn, size), shape, make, piece, images.device)


def of_network(
    network: Denoiser,
    n: int,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Recipe:
    """A network's samples: see :func:`fpmc.augment.synthetic`, whose arguments these are."""
    n = as_whole_number(n, "n", 1, MOST_SYNTHETIC)
    first_seed = FIRST_SEED + MOST_SYNTHETIC * as_whole_number(seed, "seed", 0, 2**11 - 1)
    shape = getattr(network, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError("shape: got None, wanted (c, h, w), as the network does not tell its own")
    sigmas, device = edm_sigmas(18) if sigmas is None else sigmas, torch.device(device)

    @torch.no_grad()
    def make(first: int, last: int) -> Tensor:
        seeds = range(first_seed + first, first_seed + last)
        z = torch.cat([initial_noise(1, shape, seed, float(sigmas[0])) for seed in seeds])
        return to_uint8(sample(network, z.to(device), sigmas))

    parents = torch.full((n,), -1)
    label = torch.zeros(n, LABELS, dtype=torch.float64)
    return Recipe(parents, label, tuple(shape), make, SAMPLES, device)
