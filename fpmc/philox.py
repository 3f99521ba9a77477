r"""Random numbers as PyTorch draws them on an NVIDIA GPU, computed anywhere.

Philox 4x32-10 turns a counter of four 32-bit words and a key of two into four random words. A GPU
gives every thread a counter of its own, and the seed as the key. Two words w, w' make two normal
numbers, by Box and Muller's transform in float32:

.. math::
    u = 2^{-32} w + 2^{-33}, \qquad v = 2\pi (2^{-32} w' + 2^{-33}), \qquad
    \sqrt{-2 \ln u}\, (\sin v, \cos v) .

Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller (1958).
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpmc.checks import as_shape, as_whole_number, kind

__all__ = ["edm_labels", "edm_noise", "philox"]

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
"""Of Philox's rounds."""

WEYL = 0x9E3779B9, 0xBB67AE85
"""What the key's words grow by from round to round: the golden ratio and √3 − 1, times 2³²."""

ROUNDS = 10

BLOCK = 256
"""Threads of a block in PyTorch's kernels for random numbers; a thread draws four at a time."""

EVERYWHERE = 40_960
"""Values of an image up to which its noise is taken not to depend on the GPU: a T4's threads."""

TURN = np.float32(2**-32) * np.float32(2 * math.pi)
"""Radians of an angle's unit, as rounded as CUDA's constant."""


def philox(counter: Any, key: Any) -> np.ndarray:
    """Philox 4x32-10, one round after the other, for many counters at once.

    Args:
        counter: Four words of 32 bits, shape (4, *), whole numbers below 2³².
        key: Two such words, shape (2, *): broadcast against the counter's.

    Returns:
        Four random words, uint32, shape (4, *).

    Source: Salmon et al. (2011), sections 3.3 and 5.
    """
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    m0, m1, w0, w1 = (np.uint64(constant) for constant in MULTIPLIERS + WEYL)
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3)).astype(np.uint32)


def edm_noise(
    seeds: Iterable[Any],
    shape: tuple[int, int, int],
    *,
    threads: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """The noise that EDM's ``generate.py`` starts from on an NVIDIA GPU, computed on the CPU.

    Each image has its own seed, and is what ``torch.randn`` draws on the GPU from a generator with
    that seed. Sampling starts at σ_max = 80 times it. So images that somebody generated with EDM
    can be compared, seed by seed, with what a denoiser here makes of the same noise.

    The random words are exact. The normal numbers are what float64 makes of u and v in float32. A
    GPU's differ by its fast sine, whose error is up to 2⁻²⁰·⁵, and its fused product, which may
    move v by a last bit: less than 1e-5 together, for the longest radius.

    Args:
        seeds: Whole numbers, one for each image, listed or as a tensor or array; of those of 2³²
            and more the remainder counts, as in ``generate.py``.
        shape: An image's (c, h, w).
        threads: How many threads the GPU runs at a time: multiprocessors times threads each, such
            as 108 · 2,048 for an A100. An image with more values than that wraps around, so its
            noise depends on the GPU. Needed for images of more than 40,960 values, and for a GPU
            with fewer threads than an image has values, such as a part of one.

    Returns:
        Draws from N(0, I), float32, shape (len(seeds), c, h, w).

    Raises:
        TypeError: If the seeds are no whole numbers, or a size is none.
        ValueError: If there are no seeds, one is negative, a size is not positive, threads are no
            multiple of 256, or they are needed and left out.

    Source: Karras et al. (2022), the code's ``StackedRandomGenerator``. The order of threads is
    that of PyTorch's kernels for random numbers, the transform that of NVIDIA's cuRAND, and the
    sine's error is PTX's for ``sin.approx`` from −2π to 2π.
    """
    keys, size = _keys(seeds), as_shape(shape, "shape")
    n = math.prod(size)
    threads = _threads(n, threads)
    noise = np.stack([_normal(n, key, threads) for key in keys])
    return torch.from_numpy(noise).view(-1, *size)


def edm_labels(
    seeds: Iterable[Any],
    shape: tuple[int, int, int],
    classes: int,
    *,
    each: int = 1,
    threads: int | None = None,
) -> Int64[Tensor, " b"]:
    """The classes that EDM's ``generate.py`` draws on an NVIDIA GPU, after an image's noise.

    They are what ``torch.randint`` draws from the seed's generator once ``torch.randn`` has drawn
    the noise: the first word of a thread's next four, modulo the number of classes.

    Args:
        seeds: As in :func:`edm_noise`.
        shape: The (c, h, w) of what was drawn before from each seed.
        classes: Of the network, at least 1.
        each: How many classes are drawn from a seed: 1, or as many images as one seed made at once.
        threads: As in :func:`edm_noise`.

    Returns:
        Numbers from 0 to classes − 1, int64, shape (len(seeds) · each,).

    Raises:
        TypeError: If a number is no whole number.
        ValueError: If one lies outside its range, or as :func:`edm_noise` does.

    Source: Karras et al. (2022), the code's ``generate.py``.
    """
    keys, n = np.array(_keys(seeds), np.uint64)[:, None], math.prod(as_shape(shape, "shape"))
    threads = _threads(n, threads)
    classes = as_whole_number(classes, "classes", 1, 2**28)
    each = as_whole_number(each, "each", 1, threads)
    drawn = -(-n // (4 * min(threads, -(-n // BLOCK) * BLOCK)))
    thread = np.arange(each, dtype=np.uint64)[None]
    first = philox((np.uint64(drawn), 0, thread, 0), (keys, 0))[0]
    return torch.from_numpy((first % np.uint32(classes)).astype(np.int64).ravel())


def _keys(seeds: Iterable[Any]) -> list[int]:
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise TypeError(f"seeds: got {kind(seeds)}, wanted whole numbers, one for each image")
    keys = [as_whole_number(_number(seed), "seeds", 0) % 2**32 for seed in seeds]
    if not keys:
        raise ValueError("seeds: got none, wanted one for each image")
    return keys


def _threads(n: int, threads: int | None) -> int:
    """How many threads draw n values at a time."""
    if threads is None:
        if n > EVERYWHERE:
            raise ValueError(
                f"threads: left out for {n:,} values an image, wanted a number: above "
                f"{EVERYWHERE:,} the noise depends on the GPU"
            )
        threads = EVERYWHERE
    threads = as_whole_number(threads, "threads", BLOCK)
    if threads % BLOCK:
        raise ValueError(f"threads: got {threads}, wanted a multiple of {BLOCK}")
    return threads


def _number(seed: Any) -> Any:
    """The number in a tensor or array of one, as a sequence of seeds may hold."""
    return seed.item() if isinstance(seed, Tensor | np.generic) else seed


def _normal(n: int, key: int, threads: int) -> np.ndarray:
    """The first n normal numbers of a seed below 2³², float32, shape (n,).

    Of the four that a thread draws at a time, each lies a launch's threads behind the one before.
    """
    threads = min(threads, -(-n // BLOCK) * BLOCK)
    draws = np.arange(-(-n // (4 * threads)), dtype=np.uint64)[:, None]
    thread = np.arange(threads, dtype=np.uint64)
    words = philox((draws, 0, thread, 0), (key, 0))
    pairs = [_box_muller(*words[i : i + 2]) for i in (0, 2) if n > i * threads]
    return np.concatenate(pairs, axis=1).ravel()[:n]


def _box_muller(w: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two normal numbers from two words: shape (m, t) to (m, 2, t), float32."""
    u = w.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
    v = other.astype(np.float32) * TURN + TURN / np.float32(2)
    radius, v = np.sqrt(-2 * np.log(u.astype(np.float64))), v.astype(np.float64)
    return np.stack([radius * np.sin(v), radius * np.cos(v)], axis=1).astype(np.float32)
