r"""Scoring rules: how well a distribution P foretold x, told from draws of it.

.. math::
    S_\lambda(P, x) = \mathbb{E}\, \rho(\hat x, x)
        - \frac{\lambda}{2}\, \mathbb{E}\, \rho(\hat x, \hat x'),
    \qquad \hat x, \hat x' \sim P \text{ independent}.

Lower is better. Here ρ, a dissimilarity with ρ(x, x) = 0, is a power of the distance (the energy
score) or 1 − k for a kernel k (kernel scores). From m draws both expectations are estimated
without bias, whatever m is: the second is a mean over pairs of two different draws,

.. math::
    \frac1m \sum_j \rho(\hat x_j, x)
        - \frac{\lambda}{2 m (m - 1)} \sum_{j \neq j'} \rho(\hat x_j, \hat x_{j'}) .

With λ = 1 the score is proper: where x is drawn from P*, no P has a lower mean than P*; and
strictly so, which means that no other P has one as low, for all ρ here but the squared distance.
With λ < 1 a narrower P is preferred. For x ~ N(0, τ²) and normal P with the right mean, the energy
score with β = 1 is least at the standard deviation :math:`\tau \lambda / \sqrt{2 - \lambda^2}`.

Source: Gneiting and Raftery (2007), "Strictly Proper Scoring Rules, Prediction, and Estimation",
sections 4 and 5; with λ, De Bortoli et al. (2025).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_fraction, as_positive, kind

__all__ = ["KERNELS", "energy_score", "kernel_score"]

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda squared: torch.expm1(-squared / 2).neg(),
    "imq": lambda squared: 1 - (1 + squared).rsqrt(),
}
"""1 − k by the kernel's name, as a function of the squared distance over that of the bandwidth."""


def energy_score(
    samples: Float[Tensor, "m b *shape"],
    target: Float[Tensor, "b *shape"],
    beta: float = 1.0,
    weight: float = 1.0,
) -> Float[Tensor, " b"]:
    r"""The generalised energy score of m draws for each target, estimated without bias.

    .. math::
        \frac1m \sum_j \|\hat x_j - x\|^\beta
            - \frac{\lambda}{2 m (m - 1)} \sum_{j \neq j'} \|\hat x_j - \hat x_{j'}\|^\beta

    The norm is Euclidean over all dimensions of a target, their sum and not their mean: the score
    has the unit of a pixel value to the power β, and grows with the number of dimensions. With
    β = 2, λ = 0 and m = 1 it is that number times the mean squared error.

    The package ``scoringrules`` divides the second sum of ``es_ensemble`` by :math:`2 m^2` unless
    it is asked for its estimator "fair". Its score is this one with β = 1 and a weight of
    (m − 1) / m, and so is too high, in expectation by :math:`\mathbb{E}\|\hat x - \hat x'\| / 2m`.

    Args:
        samples: Draws x̂_j, independent given what they were drawn for, shape (m, b, *shape).
        target: What came true, x, shape (b, *shape).
        beta: β, above 0 and up to 2; at 2 the score looks at no more of the distribution than its
            mean, and its variance where λ < 1.
        weight: λ, from 0 to 1; above 0 it takes two draws or more.

    Returns:
        Shape (b,), at least float32. Differentiable in both; where two draws are the same, or a
        draw is the target, their distance has a gradient of 0. NaN where an input has one.

    Raises:
        TypeError: If samples or target are not floating-point tensors, or a number is none.
        ValueError: If their shapes do not fit, or beta or weight are out of range, or the weight is
            above 0 for a single draw.

    Source: De Bortoli et al. (2025); Gneiting and Raftery (2007), equation (22).
    """
    beta = as_positive(beta, "beta")
    if beta > 2:
        raise ValueError(f"beta: got {beta}, wanted a number above 0 and up to 2")
    return _score(samples, target, lambda squared: _power(squared, beta / 2), weight)


def kernel_score(
    samples: Float[Tensor, "m b *shape"],
    target: Float[Tensor, "b *shape"],
    kernel: str = "rbf",
    *,
    bandwidth: float,
    weight: float = 1.0,
) -> Float[Tensor, " b"]:
    r"""The kernel score of m draws for each target, estimated without bias.

    .. math::
        \frac{\lambda}{2 m (m - 1)} \sum_{j \neq j'} k(\hat x_j, \hat x_{j'})
            - \frac1m \sum_j k(\hat x_j, x) + 1 - \frac{\lambda}{2}

    with the Gaussian kernel or the inverse multiquadric, both 1 at a distance of 0:

    .. math::
        k(x, y) = e^{-\|x - y\|^2 / 2 h^2}, \qquad
        k(x, y) = \big(1 + \|x - y\|^2 / h^2\big)^{-1/2} .

    With λ = 1 its expectation is half the squared maximum mean discrepancy between P and the point
    x; a mean over x ~ P* is that between P and P*, but for a constant. It has no unit.

    Args:
        samples: Draws x̂_j, as in :func:`energy_score`, shape (m, b, *shape).
        target: What came true, x, shape (b, *shape).
        kernel: "rbf" or "imq".
        bandwidth: h > 0, in the unit of a distance: of pixel values, and of all dimensions. Much
            below the distances that occur, the kernel is 0 for "rbf" and its gradient too.
        weight: λ, from 0 to 1; above 0 it takes two draws or more.

    Returns:
        Shape (b,), at least float32, from −λ/2 to 1; differentiable in both.

    Raises:
        TypeError: As :func:`energy_score`.
        ValueError: As :func:`energy_score`, or if there is no kernel of that name, or the bandwidth
            is not above 0.

    Source: Gneiting and Raftery (2007), section 5; De Bortoli et al. (2025).
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel: got {kernel!r}, wanted one of {', '.join(KERNELS)}")
    unit = as_positive(bandwidth, "bandwidth") ** 2
    return _score(samples, target, lambda squared: KERNELS[kernel](squared / unit), weight)


def _score(
    samples: Tensor, target: Tensor, rho: Callable[[Tensor], Tensor], weight: float
) -> Float[Tensor, " b"]:
    """The estimator of the module's head, for a function of squared distances."""
    samples, target = _as_draws(samples, "samples"), _as_draws(target, "target")
    if samples.ndim < 2 or samples.shape[1:] != target.shape or 0 in samples.shape:
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)} for a target of {tuple(target.shape)}, "
            "wanted draws first, (m, b, ...) for (b, ...), none of them 0"
        )
    weight, m = as_fraction(weight, "weight"), len(samples)
    if weight > 0 and m < 2:
        raise ValueError(f"samples: got 1 draw with weight = {weight:g}, wanted 2 or more, or 0")
    dtype = torch.promote_types(torch.promote_types(samples.dtype, target.dtype), torch.float32)
    samples, target = (
        value.to(dtype).reshape(*shape, -1)
        for value, shape in ((samples, samples.shape[:2]), (target, target.shape[:1]))
    )

    score = rho(_squared(samples - target)).mean(0)
    if weight > 0:
        # Each pair once, draws a given shift apart at a time: m arrays of differences, not m².
        pairs = sum(
            rho(_squared(samples[shift:] - samples[:-shift])).sum(0) for shift in range(1, m)
        )
        score = score - weight / 2 * (pairs / math.comb(m, 2))
    return score


def _as_draws(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}: got {kind(value)}, wanted a floating-point tensor")
    return value


def _squared(difference: Float[Tensor, "m b d"]) -> Float[Tensor, "m b"]:
    return difference.square().sum(-1)


def _power(squared: Tensor, half: float) -> Tensor:
    """A power of the distance, whose gradient is finite and 0 at a distance of 0.

    For β < 2 the derivative in the squared distance grows without bound towards 0. Numbers so small
    that they have lost digits count as 0, so that it does not overflow.
    """
    if half == 1:
        return squared
    apart = squared >= torch.finfo(squared.dtype).tiny
    return torch.where(apart, torch.where(apart, squared, 1).pow(half), 0)
