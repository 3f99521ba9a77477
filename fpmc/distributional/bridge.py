r"""The Gaussian bridge, and the sampler that goes down it: draw x̂, then z at a lower noise level.

In the EDM process, z_t = x + t ε, the step from a level s up to t > s adds independent noise:
:math:`z_t = z_s + \sqrt{t^2 - s^2}\, \epsilon'`. Given both ends, therefore,

.. math::
    p(z_s \mid z_t, x) \propto N(z_s; x, s^2)\, N(z_t; z_s, t^2 - s^2) .

The precisions add up to :math:`1/s^2 + 1/(t^2 - s^2) = t^2 / s^2 (t^2 - s^2)`, which gives

.. math::
    z_s \mid z_t, x \sim
        N\Big(x + \frac{s^2}{t^2}(z_t - x),\ s^2 \Big(1 - \frac{s^2}{t^2}\Big)\Big).

It is one of a family, with η from 0 to 1 times that standard deviation:

.. math::
    z_s = x + \sqrt{s^2 - \varsigma^2}\; \frac{z_t - x}{t} + \varsigma\, \epsilon, \qquad
    \varsigma = \eta\, s \sqrt{1 - s^2 / t^2} .

Where z_t ~ N(x, t²), the second term is normal with variance s² − ς² and the third with ς²: all
have z_s ~ N(x, s²). At η = 1 the factor of z_t − x is s²/t², which is the bridge; at η = 0 it is
s/t, an Euler step of the probability-flow ODE, without noise.

If x̂ is a draw from p(x | z_t), then z_s has the distribution of noisy data at level s exactly, by
as long a step as one likes; if x̂ is their mean, only in the limit of short steps.

Source: Song, Meng and Ermon (2021), "Denoising Diffusion Implicit Models", equation (12), for
α = 1; De Bortoli et al. (2025).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc.checks import as_answer, as_fraction, as_images, as_noise_level
from fpmc.diffusion import as_levels
from fpmc.seeds import own_stream

__all__ = ["Network", "moments", "normal", "sample"]

Network = Callable[[Tensor, float, Any], Tensor]
"""A function from (z, sigma, xi) to x̂, a draw from p(x | z) that is decided by ξ."""


def moments(
    z: Float[Tensor, "b c h w"],
    x_hat: Float[Tensor, "b c h w"],
    sigma: float,
    lower: float,
    eta: float = 1.0,
) -> tuple[Float[Tensor, "b c h w"], float]:
    r"""The mean and the standard deviation of z_s given z_t and x̂.

    .. math::
        \hat x + \frac{\sqrt{s^2 - \varsigma^2}}{t} (z_t - \hat x), \qquad
        \varsigma = \eta\, s \sqrt{1 - s^2 / t^2}

    Args:
        z: z_t, noisy images at level t, shape (b, c, h, w).
        x_hat: x̂, the clean images, the same shape.
        sigma: t > 0.
        lower: s, from 0 up to t.
        eta: η from 0 to 1: 1 is the bridge of the process, 0 the step without noise.

    Raises:
        TypeError: If x̂ is not a tensor, or a level or η not a number.
        ValueError: If the shapes differ, or a level or η is out of range.
    """
    t, eta = as_noise_level(sigma), as_fraction(eta, "eta")
    s = 0.0 if lower == 0 else as_noise_level(lower, "lower")
    if s > t:
        raise ValueError(f"lower: got {s:g}, wanted at most sigma = {t:g}")
    x_hat = as_answer(x_hat, z, "x_hat")
    ratio = s / t
    lost = (1 - ratio) * (1 + ratio)
    kept = ratio * math.sqrt(max(0.0, 1 - eta**2 * lost))
    return x_hat + kept * (z - x_hat), eta * s * math.sqrt(lost)


def normal(z: Float[Tensor, "b c h w"], generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """A draw from N(0, I) with z's shape, type and device, made where the generator lives."""
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device)
    return noise.to(z.device)


def sample(
    network: Network,
    z: Float[Tensor, "b c h w"],
    sigmas: Sequence[float] | Tensor,
    *,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
    draw: Callable[[Tensor, torch.Generator], Any] = normal,
    eta: float = 1.0,
    progress: bool = False,
) -> Float[Tensor, "b c h w"]:
    r"""Sample with a network that draws from p(x | z): ξ, then x̂, then the bridge, at each level.

    .. math::
        \xi \sim N(0, I), \qquad \hat x = \hat x(z_t, t, \xi), \qquad
        z_s \sim p(z_s \mid z_t, \hat x)

    n noise levels take n evaluations of the network; the last step, to 0, gives its x̂. Where the
    network draws from p(x | z_t), the samples follow the data's distribution on any grid, as far as
    z does that of noisy data. The samples are differentiable where the network is.

    A denoiser, which answers with a mean and takes no ξ, is ``lambda z, sigma, xi: denoiser(z,
    sigma)``. With a generator for ξ, the posterior over a source is such a network, too::

        def network(z, sigma, generator):
            return source[optimal.posterior(z, sigma).sample(1, generator)[0, :, 0]]

        sample(network, z, sigmas, draw=lambda z, generator: generator)

    Args:
        network: A function from (z, sigma, xi) to x̂, with z's shape.
        z: Noisy images at the first noise level, shape (b, c, h, w): see
            :func:`fpmc.diffusion.initial_noise`.
        sigmas: Falling positive noise levels, shape (n,), such as :func:`fpmc.diffusion.edm_sigmas`
            makes; a closing 0 may be left out or given.
        seed: A seed or a generator, for ξ and for the bridge, in this order at each level. The same
            seed, 0 if left out, gives the same samples; z may have been made of it, too.
        generator: A generator, in the seed's place.
        draw: A function from z and the generator to ξ; standard normal, of z's shape, if left out.
        eta: η from 0 to 1: how much of the bridge's noise is drawn. With 0 there is none, and the
            steps are Euler's.
        progress: Whether to show a progress bar.

    Returns:
        The samples, with z's shape and type.

    Raises:
        TypeError: If z is not a floating-point tensor, the network's answer no tensor, or the seed
            neither seed nor generator.
        ValueError: If the levels do not fall or are not positive, z has a wrong shape or NaN, the
            network answers in another shape, eta is out of range, or seed and generator are both
            given.

    Source: De Bortoli et al. (2025).
    """
    levels, z, noise = as_levels(sigmas), as_images(z, "z"), own_stream("bridge", seed, generator)
    pairs = list(itertools.pairwise([*levels, 0.0]))
    for sigma, lower in tqdm(pairs, desc="sampling", unit="step", disable=not progress):
        x_hat = as_answer(network(z, sigma, draw(z, noise)), z, "network").to(z.dtype)
        z, spread = moments(z, x_hat, sigma, lower, eta)
        if spread > 0:
            z = z + spread * normal(z, noise)
    return z
