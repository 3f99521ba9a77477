r"""When a collection memorises: what an estimator sees of an image, against log N.

Let q be zeros and ones. Then an estimator sees :math:`y = x + \sigma\varepsilon` where q is 1, and
of that it infers which source image x is. The information density of an image and what is seen of
it, and its mean, the mutual information, are

.. math::
    i(x; y) = \log \frac{p(y \mid x)}{p(y)}, \qquad
    p(y) = \mathbb{E}_{x' \sim p}\, p(y \mid x'), \qquad I = \mathbb{E}\, i(x; y) .

With N images of p in the source, x one of them, the others add up to about (N − 1) p(y), so that x
has the weight

.. math:: w \approx \frac{1}{1 + (N - 1)\, e^{-i}} ,

which passes one half where i passes log N: there the estimator memorises. (On average over the
others w is at least that, as 1 / (1 + s) is convex in s.)

What is measured with a source is an estimate of I from one side or the other:

- The posterior's information over S, averaged over source images x and noise, is the mutual
  information of y and the image's *number*. It is at most log N, and over draws of the source it is
  on average I less what y tells about the source, so at most I.
- The density with the source's :math:`p_S(y)` in the place of p(y) has the same mean where x is in
  the source. Where x is another draw of p it is above I on average, as the logarithm is concave,
  and without bound. The two enclose I.
- A Gaussian of the same covariance has more information than anything else, see
  :func:`gaussian_information`.

With other q than zeros and ones, the same numbers say what the posterior believes to know.

Source: Hunt, Kamb and Ganguli (2026); of whole images Biroli et al. (2024); both bounds Poole et
al. (2019).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc import metrics
from fpmc.checks import as_images, as_noise_level, as_whole_number, kind
from fpmc.collection import FPMC
from fpmc.denoiser import question_of_one_level
from fpmc.engine.problem import Problem
from fpmc.engine.streaming import posterior
from fpmc.gaussian import Gaussian
from fpmc.modes import without_autograd
from fpmc.operators import Dense, Operator

__all__ = ["Knowledge", "distance", "gaussian_information", "knowledge", "own_weight"]


class Knowledge(NamedTuple):
    r"""What estimators know of noisy images; shapes (b, k), float64.

    Attributes:
        information: What the posterior knows over the source, in nats, from 0: log N less its
            entropy, where all source images weigh the same.
        effective: The effective number of images, the exponential of the posterior's entropy: from
            1 to N.
        density: :math:`\log p(y \mid x) / p_S(y)` of the images that z was made of, in nats.
    """

    information: Float[Tensor, "b k"]
    effective: Float[Tensor, "b k"]
    density: Float[Tensor, "b k"]


@without_autograd
def knowledge(
    collection: FPMC,
    x: Float[Tensor, "b c h w"],
    z: Float[Tensor, "b c h w"],
    sigma: float,
    *,
    estimators: Sequence[int] | None = None,
) -> Knowledge:
    """What a collection's estimators know of noisy images, in one pass over the source.

    Args:
        collection: The collection, whose source is S.
        x: Clean images, shape (b, c, h, w). Images of the source make the density's mean a lower
            bound of the information I, other draws of the same distribution an upper one.
        z: The same with noise, x + σ ε.
        sigma: The noise level σ > 0.
        estimators: The positions of those that are asked; all if left out.

    Raises:
        TypeError: If the collection is no :class:`fpmc.FPMC`, x or z no floating-point tensor, or a
            position no whole number.
        ValueError: If a shape is wrong, x and z are not as many, they hold NaN, σ is not positive,
            there is no such estimator, or the collection's budget is too small.

    Source: Hunt, Kamb and Ganguli (2026).
    """
    queries = _asked(_queries(collection, sigma), estimators)
    z, sigma = question_of_one_level(z, sigma, collection.shape)
    x = as_images(x, "x", collection.shape)
    if len(x) != len(z):
        raise ValueError(f"x: got {len(x)} images, wanted {len(z)}, one for each of z")
    features = collection.features(sigma)
    problem = Problem(
        queries, queries, collection.source, sigma, collection.budget, features=features
    )
    told = posterior.knowledge(z.double(), problem)
    a, b = (problem.keys(images.double().movedim(0, -1)) for images in (z, x))
    apart = (a - b).square()  # (c, h, w, b)
    squared = queries.apply(apart if len(queries.shape) == 3 else apart.sum(0)).T
    density = -squared / (2 * sigma**2) - told.evidence
    return Knowledge(told.information, told.entropy.exp(), density)


@without_autograd
def distance(
    collection: FPMC,
    z: Float[Tensor, "b c h w"],
    sigma: float,
    *,
    estimators: Sequence[int] | None = None,
) -> Float[Tensor, "b k"]:
    """How far an answer is from the nearest source image, as far as each estimator sees.

    The distance is the root of the mean squared difference, of z's type, weighted with the query
    precisions: 0 where an answer copies.

    Args:
        collection: The collection.
        z: Noisy images, shape (b, c, h, w).
        sigma: The noise level σ > 0.
        estimators: The positions of those that are asked; all if left out.

    Returns:
        Shape (b, k).

    Raises:
        TypeError: As :func:`knowledge`.
        ValueError: As :func:`knowledge`, and if the collection compares in features.
    """
    queries = _asked(_queries(collection, sigma), estimators)
    if collection.features(sigma) is not None:
        raise ValueError("collection: got one that compares in features, wanted one in pixels")
    answer = collection(z, sigma)
    return metrics.nearest(answer, collection.source, queries, collection.budget)[0]


def own_weight(density: Float[Tensor, "..."], n: int) -> Float[Tensor, "..."]:
    r"""The weight that an image has in a source of N, by theory: :math:`1/(1 + (N - 1) e^{-i})`.

    With the exact i it is the least that the mean over sources can be, and what it tends to where
    many of the others count.

    Args:
        density: i, in nats, of any shape.
        n: N, at least 1.

    Raises:
        TypeError: If the density is no floating-point tensor, or n no whole number.
        ValueError: If n is below 1.
    """
    if not isinstance(density, Tensor) or not density.is_floating_point():
        raise TypeError(f"density: got {kind(density)}, wanted a floating-point tensor")
    n = as_whole_number(n, "n", 1)
    return torch.sigmoid(density - math.log(n - 1)) if n > 1 else torch.ones_like(density)


@without_autograd
def gaussian_information(
    gaussian: Gaussian,
    queries: Operator,
    sigma: float,
    *,
    estimators: Sequence[int] | None = None,
) -> Float[Tensor, " k"]:
    r"""The information in closed form, if the images are Gaussian: in nats, shape (k,), float64.

    .. math:: I_k = \tfrac12 \log\det\big( I + Q_k^{1/2} \Sigma\, Q_k^{1/2} / \sigma^2 \big),
              \qquad Q_k = \operatorname{diag}(q_k)

    Of all distributions with covariance Σ the Gaussian has the largest entropy, with noise on it,
    too. So for any images this is an upper bound of the information, with the source's own Σ also
    of that about an image's number.

    Args:
        gaussian: Σ.
        queries: Q, whose rows are q_k, on images of Σ's shape.
        sigma: The noise level σ > 0.
        estimators: The positions of those that are asked; all if left out.

    Raises:
        TypeError: If the Gaussian or the queries are none, or a position no whole number.
        ValueError: If the queries are for other images, σ is not positive, or there is no such
            estimator.

    Source: Cover and Thomas (2006), sections 8.6 and 9.4.
    """
    if not isinstance(gaussian, Gaussian):
        raise TypeError(f"gaussian: got {kind(gaussian)}, wanted an fpmc.gaussian.Gaussian")
    if not isinstance(queries, Operator):
        raise TypeError(f"queries: got {kind(queries)}, wanted an fpmc.operators.Operator")
    if not queries.fits(gaussian.shape):
        raise ValueError(f"queries: got {queries!r}, wanted one on images of {gaussian.shape}")
    sigma, rows = as_noise_level(sigma), _asked(queries, estimators).dense()
    rows = rows.unsqueeze(1) if rows.ndim == 3 else rows  # (k, 1, h, w) or (k, c, h, w)
    q = rows.expand(-1, *gaussian.shape).flatten(1)  # (k, d)
    u = gaussian.eigenvectors
    result = u.new_empty(len(q))
    for k, one in enumerate(q.to(u)):
        seen = one > 0
        half = u[seen] * one[seen, None].sqrt() * (gaussian.eigenvalues.sqrt() / sigma)
        inner = half.T @ half if half.shape[1] < len(half) else half @ half.T
        result[k] = (torch.eye(len(inner)).to(inner) + inner).logdet() / 2
    return result


def _queries(collection: FPMC, sigma: float) -> Operator:
    """Q at a noise level."""
    if not isinstance(collection, FPMC):
        raise TypeError(f"collection: got {kind(collection)}, wanted an fpmc.FPMC")
    return collection.operators(as_noise_level(sigma))[0]


def _asked(queries: Operator, estimators: Sequence[int] | None) -> Operator:
    """Some rows of Q."""
    if estimators is None:
        return queries
    rows = [as_whole_number(k, "estimators", 0, queries.k - 1) for k in estimators]
    if not rows:
        raise ValueError("estimators: got none, wanted one or more positions")
    return queries if queries.k == 1 else Dense(queries.dense()[rows])
