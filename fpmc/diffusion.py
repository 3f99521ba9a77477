r"""Diffusion in the EDM parametrisation: z = x + σ ε, noise levels, Tweedie's formula, the sampler.

With α = 1 and σ_t = t the probability-flow ODE is

.. math:: \frac{dz}{d\sigma} = \frac{z - D(z, \sigma)}{\sigma} = -\sigma \nabla \log p_\sigma(z) .

Source: Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc.checks import (
    as_answer,
    as_generator,
    as_images,
    as_noise_level,
    as_noise_levels,
    as_whole_number,
)
from fpmc.philox import edm_labels, edm_noise

__all__ = [
    "Denoiser",
    "Step",
    "add_noise",
    "as_levels",
    "edm_labels",
    "edm_noise",
    "edm_sigmas",
    "initial_noise",
    "sample",
    "score",
    "steps",
]

Denoiser = Callable[[Tensor, float], Tensor]
"""A function from (z, sigma) to x̂, both images with shape (b, c, h, w)."""


def edm_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    zero: bool = False,
) -> Float[Tensor, " m"]:
    r"""The sampler's noise levels, falling from σ_max to σ_min; the last step, to 0, is implied.

    .. math:: \sigma_i = \Big(\sigma_\max^{1/\rho} + \tfrac{i}{n-1}
              (\sigma_\min^{1/\rho} - \sigma_\max^{1/\rho})\Big)^\rho, \quad i = 0 … n-1 .

    Args:
        n: Number of levels, at least 2: 18 for CIFAR-10 in the papers, 40 for 64 × 64 images.
        sigma_min: The lowest level.
        sigma_max: The highest level.
        rho: How far the levels crowd towards σ_min.
        zero: Whether to add the closing 0 that samplers of other packages want.

    Returns:
        Shape (n,), float64; (n + 1,) with the 0.

    Raises:
        TypeError: If n is not a whole number.
        ValueError: If n < 2, the levels are not positive and ordered, or rho is too small for them.

    Source: Karras et al. (2022), equation (5).
    """
    n = as_whole_number(n, "n", 2)
    low, high = as_noise_level(sigma_min, "sigma_min"), as_noise_level(sigma_max, "sigma_max")
    rho = as_noise_level(rho, "rho")
    if rho < 0.1:
        raise ValueError(f"rho: got {rho}, wanted at least 0.1")
    if low >= high:
        raise ValueError(f"sigma_min: got {low}, wanted less than sigma_max = {high}")
    position = torch.arange(n, dtype=torch.float64) / (n - 1)
    try:
        sigmas = (high ** (1 / rho) + position * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    except OverflowError as error:
        raise ValueError(f"rho: got {rho}, too small for sigma_max = {high:g}") from error
    sigmas[0], sigmas[-1] = high, low
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if zero else sigmas


def add_noise(
    x: Float[Tensor, "b c h w"],
    sigma: Any,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    """A draw from the forward process, z ~ N(x, σ² I).

    Args:
        x: Clean images in [-1, 1], shape (b, c, h, w).
        sigma: The noise level σ > 0; or one for each image, a tensor or array with shape (b,) or
            (b, 1, 1, 1).
        seed: A seed or a generator. The draw is made where the generator lives.
        generator: A generator, in the seed's place.

    Raises:
        TypeError: If x is not a floating-point tensor, or the seed neither seed nor generator.
        ValueError: If x has a wrong shape or NaN, or sigma is not positive, or too large for x's
            type, or of seed and generator both or neither are given.
    """
    x = as_images(x, "x")
    generator = as_generator(seed, generator)
    sigmas = [_as_scale(s, "sigma", x.dtype) for s in as_noise_levels(sigma, len(x))]
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return x + _per_image(sigmas, x) * noise.to(x.device)


def initial_noise(
    n: int,
    shape: tuple[int, int, int],
    seed: int | torch.Generator | None = None,
    sigma_max: float = 80.0,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n c h w"]:
    """Where sampling starts: n draws from N(0, σ_max² I), float32, shape (n, *shape).

    Args:
        n: Number of images.
        shape: Their (c, h, w).
        seed: A seed or a generator.
        sigma_max: The sampler's first noise level.
        generator: A generator, in the seed's place.

    Raises:
        TypeError: If n or the seed is of another type.
        ValueError: If n, the shape or sigma_max is not positive, or it is too large for float32, or
            of seed and generator both or neither are given.
    """
    generator = as_generator(seed, generator)
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 3:
        raise ValueError(f"shape: got {shape!r}, wanted (c, h, w)")
    size = [as_whole_number(n, "n", 1), *(as_whole_number(s, "shape", 1) for s in shape)]
    sigma_max = _as_scale(sigma_max, "sigma_max", torch.float32)
    noise = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32)
    return sigma_max * noise


def score(denoiser: Denoiser, z: Float[Tensor, "b c h w"], sigma: Any) -> Float[Tensor, "b c h w"]:
    r"""Tweedie's formula (4): :math:`\nabla \log p_\sigma(z) = (D(z, \sigma) - z) / \sigma^2`.

    Args:
        denoiser: The posterior mean D.
        z: Noisy images, shape (b, c, h, w).
        sigma: The noise level σ > 0, or one for each image, as in :func:`add_noise`.

    Raises:
        TypeError: If the denoiser's answer is no tensor.
        ValueError: If sigma is not positive, or the answer's shape is another than z's.
    """
    x_hat = as_answer(denoiser(z, sigma), z, "denoiser")
    return (x_hat - z) / _per_image(as_noise_levels(sigma, len(z)), z) ** 2


class Step(NamedTuple):
    """One point of a sampling trajectory.

    Attributes:
        sigma: The noise level, 0 at the end.
        z: The noisy images there, shape (b, c, h, w); the samples at the end.
        x_hat: The denoiser's answer to them, shape (b, c, h, w); the samples at the end.
    """

    sigma: float
    z: Float[Tensor, "b c h w"]
    x_hat: Float[Tensor, "b c h w"]


def steps(
    denoiser: Denoiser,
    z: Float[Tensor, "b c h w"],
    sigmas: Sequence[float] | Tensor,
    *,
    progress: bool = False,
) -> Iterator[Step]:
    """The sampler of :func:`sample` step by step: a :class:`Step` per noise level, then the end.

    Arguments and errors as in :func:`sample`.
    """
    levels = as_levels(sigmas)
    z = as_images(z, "z")

    def answer(z: Tensor, sigma: float) -> Tensor:
        return as_answer(denoiser(z, sigma), z, "denoiser").to(z.dtype)

    def path(z: Tensor) -> Iterator[Step]:
        pairs = list(itertools.pairwise([*levels, 0.0]))
        for sigma, lower in tqdm(pairs, desc="sampling", unit="step", disable=not progress):
            x_hat = answer(z, sigma)
            yield Step(sigma, z, x_hat)
            slope = (z - x_hat) / sigma
            ahead = z + (lower - sigma) * slope
            if lower > 0:
                slope = (slope + (ahead - answer(ahead, lower)) / lower) / 2
                ahead = z + (lower - sigma) * slope
            z = ahead
        yield Step(0.0, z, z)

    return path(z)


def sample(
    denoiser: Denoiser,
    z: Float[Tensor, "b c h w"],
    sigmas: Sequence[float] | Tensor,
    *,
    progress: bool = False,
) -> Float[Tensor, "b c h w"]:
    r"""Integrate the probability-flow ODE from σ_0 to 0 with Heun's method.

    .. math:: \frac{dz}{d\sigma} = \frac{z - D(z, \sigma)}{\sigma}

    Second order; the last step, to 0, is Euler's. n noise levels take 2n − 1 evaluations of the
    denoiser: 18 take 35. The samples are differentiable where the denoiser is: one with weights
    that require gradients keeps what they need of every evaluation, unless it is called under
    ``torch.no_grad()``.

    Args:
        denoiser: D.
        z: Noisy images at the first noise level, shape (b, c, h, w): see :func:`initial_noise`.
        sigmas: Falling positive noise levels, shape (n,), such as :func:`edm_sigmas`; a closing 0
            may be left out or given.
        progress: Whether to show a progress bar.

    Returns:
        The samples, with z's shape and type.

    Raises:
        TypeError: If z is not a floating-point tensor, or the denoiser's answer no tensor.
        ValueError: If the levels do not fall or are not positive, z has a wrong shape or NaN, or
            the denoiser answers in another shape.

    Source: Karras et al. (2022), algorithm 1; Niedoba et al. (2026), equation (96) and section C.4.
    """
    *_, end = steps(denoiser, z, sigmas, progress=progress)
    return end.z


def _as_scale(sigma: float, name: str, dtype: torch.dtype) -> float:
    """A noise level whose normal noise is finite in a type."""
    sigma, most = as_noise_level(sigma, name), torch.finfo(dtype).max / 16
    if sigma > most:
        raise ValueError(f"{name}: got {sigma:g}, wanted at most {most:.2g} for noise in {dtype}")
    return sigma


def _per_image(sigmas: list[float], x: Tensor) -> float | Tensor:
    """Noise levels as a factor of images: a number if they are equal."""
    return x.new_tensor(sigmas).view(-1, 1, 1, 1) if len(set(sigmas)) != 1 else sigmas[0]


def as_levels(sigmas: Sequence[float] | Tensor) -> list[float]:
    """Return a sampler's noise levels without their closing 0.

    Raises:
        TypeError: If they are not a sequence of numbers.
        ValueError: If they do not fall, or are not positive.
    """
    try:
        levels = [float(sigma) for sigma in sigmas]
    except (TypeError, ValueError) as error:
        raise TypeError(f"sigmas: got {sigmas!r}, wanted falling positive numbers") from error
    if levels and levels[-1] == 0:
        levels.pop()
    levels = [as_noise_level(sigma, "sigmas") for sigma in levels]
    if not levels or any(lower >= sigma for sigma, lower in itertools.pairwise(levels)):
        raise ValueError(f"sigmas: got {levels}, wanted falling positive noise levels")
    return levels
