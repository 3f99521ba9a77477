r"""The paper's equations (7) to (10), one function each, in float64.

Written to be read beside the paper and to be tested against, not to be fast: plain loops over the
batch and the estimators. Images are flat vectors of D dimensions here, q and
r are the paper's vectors in :math:`\mathbb{R}^D`.

Source: Niedoba et al. (2026), "Filtered Posterior Mean Collections", section 3.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "collection",
    "filtered_log_likelihood",
    "filtered_posterior",
    "filtered_posterior_mean",
]


def filtered_log_likelihood(
    z: Float[Tensor, " d"], x: Float[Tensor, "*n d"], q: Float[Tensor, " d"], sigma: float
) -> Float[Tensor, "*n"]:
    r"""(8): :math:`\log p(z|x;q) = -\frac{1}{2\sigma^2} \sum_d q_d (z_d - x_d)^2` + const.

    Args:
        z: The noisy image, shape (d,).
        x: A source image, shape (d,), or several, shape (n, d).
        q: The query precision, shape (d,), q ≥ 0.
        sigma: The noise level σ > 0.
    """
    return -(q * (z - x) ** 2).sum(-1) / (2 * sigma**2)


def filtered_posterior(
    z: Float[Tensor, " d"],
    images: Float[Tensor, "n d"],
    q: Float[Tensor, " d"],
    sigma: float,
    log_weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    r"""(9): :math:`p(x_n|z;q,S) \propto p(z|x_n;q)\, S(x_n)`, normalised over the n images.

    Args:
        z: The noisy image, shape (d,).
        images: The support of S, shape (n, d).
        q: The query precision, shape (d,), q ≥ 0.
        sigma: The noise level σ > 0.
        log_weights: log S(x_n), shape (n,); uniform if left out.
    """
    log_p = filtered_log_likelihood(z, images, q, sigma)
    if log_weights is not None:
        log_p = log_p + log_weights
    return torch.softmax(log_p, dim=0)


def filtered_posterior_mean(
    z: Float[Tensor, " d"],
    images: Float[Tensor, "n d"],
    q: Float[Tensor, " d"],
    sigma: float,
    log_weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " d"]:
    r"""(7): :math:`D_{q,S}(z) = \sum_n p(x_n|z;q,S)\, x_n`.

    Arguments as in :func:`filtered_posterior`.
    """
    return filtered_posterior(z, images, q, sigma, log_weights) @ images


def collection(
    z: Float[Tensor, "b d"],
    images: Float[Tensor, "n d"],
    queries: Float[Tensor, "k d"],
    responses: Float[Tensor, "k d"],
    sigma: float,
    log_weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "b d"]:
    r"""(10): :math:`D(z) = \left(\sum_k r_k \odot D_{q_k,S}(z)\right) \oslash \sum_k r_k`.

    Args:
        z: Noisy images, shape (b, d).
        images: The support of S, shape (n, d), in [-1, 1].
        queries: The rows q_k ≥ 0, shape (k, d).
        responses: The rows r_k ≥ 0, shape (k, d); each dimension needs a positive sum.
        sigma: The noise level σ > 0.
        log_weights: log S(x_n), shape (n,); uniform if left out.

    Returns:
        The denoised images x̂ in float64, shape (b, d).
    """
    z, images, queries, responses = (a.double() for a in (z, images, queries, responses))
    denoised = []
    for z_b in z:
        total = torch.zeros_like(z_b)
        for q_k, r_k in zip(queries, responses, strict=True):
            mean = filtered_posterior_mean(z_b, images, q_k, sigma, log_weights)
            total = total + r_k * mean
        denoised.append(total / responses.sum(0))
    return torch.stack(denoised)
