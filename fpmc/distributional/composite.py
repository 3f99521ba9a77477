r"""Samples of whole images from the posteriors of a collection, whose patches overlap.

One draw :math:`n_k \sim w_k` for each estimator, put together as the answer puts means together:

.. math:: \hat x = \Big[\sum_k r_k \odot x_{n_k}\Big] \oslash \sum_k r_k , \qquad
    \mathbb{E}\,\hat x = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1 = D(z).

The mean is the answer whatever ties the draws of different estimators together. How far patches
agree where they overlap is up to that tie. Independent draws disagree, and what is averaged is
blurred: the more estimators see a pixel, the nearer the sample is to the mean. Here all share one
noise (Gumbel's, one number for each source image):

.. math:: n_k = \operatorname{argmax}_n\, (\ell_{kn} + g_n), \qquad g_n \sim -\log(-\log U(0, 1)) .

Each :math:`n_k` still has the distribution :math:`w_k`, and estimators with the same posterior
draw the same image. It is not a draw from a posterior over images: no such posterior has these as
its marginals in general, and where neighbours draw from different images their mean is in neither.

Source: Gumbel (1954), in the form of Maddison, Tarlow and Minka (2014), "A* Sampling".
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpmc.checks import as_images, as_whole_number, kind
from fpmc.collection import FPMC, check_coverage
from fpmc.seeds import own_stream

__all__ = ["composite"]

MOST = 2**22
"""Weights at a time, if one image has no more."""


def composite(
    collection: FPMC,
    z: Float[Tensor, "b c h w"],
    sigma: float,
    n: int = 1,
    seed: int | torch.Generator | None = None,
    *,
    generator: torch.Generator | None = None,
    shared: bool = True,
) -> Float[Tensor, "m b c h w"]:
    r"""Samples of whole images from a collection's filtered posteriors, with the answer as mean.

    For K = 1 they are draws from the posterior, images of the source. As the sampler of
    :func:`fpmc.distributional.sample`::

        def network(z, sigma, generator):
            return composite(collection, z, sigma, generator=generator)[0]

        sample(network, z, sigmas, draw=lambda z, generator: generator)

    All weights of an image are computed at once, (k, N) of them, and the dense rows of R.

    Args:
        collection: Whose posteriors.
        z: Noisy images, shape (b, c, h, w).
        sigma: The noise level σ > 0, one for all.
        n: Samples for each, at least 1.
        seed: A seed, 0 if left out, or a generator.
        generator: A generator, in the seed's place.
        shared: Whether estimators share their noise. Otherwise their draws are independent, and
            overlaps are blurred.

    Returns:
        Shape (n, b, c, h, w), of z's type.

    Raises:
        TypeError: If the collection is none, n is not a whole number, or the seed neither seed
            nor generator; and as a call of the collection.
        ValueError: If n or the seed is out of range, or seed and generator are both given; and as a
            call of the collection.
    """
    m, noise = as_whole_number(n, "n", 1), own_stream("composite", seed, generator)
    if not isinstance(collection, FPMC):
        raise TypeError(f"collection: got {kind(collection)}, wanted an fpmc.FPMC")
    z = as_images(z, "z", collection.shape)
    c, responses = z.shape[1], collection.operators(sigma)[1]
    check_coverage(responses)
    responses = responses.dense().to(z)
    if responses.ndim == 3:
        responses = responses[:, None].expand(-1, c, -1, -1)  # (k, c, h, w)
    rows = responses / responses.sum(0)
    found = z.new_empty(m, *z.shape)
    part = max(1, MOST // (len(rows) * len(collection.source)))
    for start in range(0, len(z), part):
        log_weights = collection.posterior(z[start : start + part], sigma).weights().log()
        for i, each in enumerate(log_weights, start):
            for j in range(m):
                index = _draw(each, noise, shared)
                found[j, i] = (rows * collection.source[index].to(z)).sum(0)
    return found


def _draw(
    log_weights: Float[Tensor, "k n"], generator: torch.Generator, shared: bool
) -> Int64[Tensor, " k"]:
    """A source image for each estimator, by Gumbel noise that they share or not."""
    k, n = log_weights.shape
    uniform = torch.rand(
        1 if shared else k, n, generator=generator, dtype=torch.float64, device=generator.device
    )
    gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    return (log_weights.double() + gumbel.to(log_weights.device)).argmax(-1)
