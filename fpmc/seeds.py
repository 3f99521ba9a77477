"""Streams of random numbers that have nothing in common, though they are made of the same seed."""

import zlib

import numpy as np
import torch

from fpmc.checks import as_generator

__all__ = ["own_stream"]


def own_stream(
    purpose: str,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
) -> torch.Generator:
    """Return the generator that is given, or a new one whose seed depends on the purpose, too.

    Noise that was added with seed 0 and draws from the posterior with seed 0 would be functions of
    the same random bits otherwise, and the draws no draws given the noisy image.

    Args:
        purpose: What the numbers are for, the same words each time.
        seed: A seed, 0 if neither is given; or a generator.
        generator: A generator, in its place. It is used as it is: what it gives next is new anyway.

    Raises:
        TypeError: If the seed is neither a generator nor a whole number, or the generator none.
        ValueError: If the seed is negative or 2⁶³ or more, or both are given.
    """
    found = as_generator(seed, generator, otherwise=0)
    if found is seed or found is generator:
        return found
    key = zlib.crc32(purpose.encode())
    state = np.random.SeedSequence(found.initial_seed(), spawn_key=(key,))
    return found.manual_seed(int(state.generate_state(1, np.uint64)[0] >> 1))
