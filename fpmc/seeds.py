"""Streams of random numbers that have nothing in common, though they are made of the same seed."""

import zlib

import numpy as np
import torch

from fpmc.checks import as_generator

__all__ = ["own_stream"]


def own_stream(seed: int | torch.Generator, purpose: str) -> torch.Generator:
    """Return the generator that is given, or a new one whose seed depends on the purpose, too.

    Noise that was added with seed 0 and draws from the posterior with seed 0 would be functions of
    the same random bits otherwise, and the draws no draws given the noisy image.

    Args:
        seed: A seed, or a generator, which is used as it is: what it gives next is new anyway.
        purpose: What the numbers are for, the same words each time.

    Raises:
        TypeError: If it is neither a generator nor a whole number.
        ValueError: If the seed is negative or 2⁶³ or more.
    """
    generator = as_generator(seed)
    if generator is seed:
        return generator
    key = zlib.crc32(purpose.encode())
    state = np.random.SeedSequence(generator.initial_seed(), spawn_key=(key,))
    return generator.manual_seed(int(state.generate_state(1, np.uint64)[0] >> 1))
