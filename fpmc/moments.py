"""Mean and covariance of a source, a chunk of images at a time."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.engine.memory import CACHE_FRIENDLY, DEFAULT_BUDGET, FLOAT64
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["moments"]


@without_autograd
def moments(
    source: Source, budget: int | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    r"""The first two moments of S, over the D = c·h·w dimensions of its images.

    .. math:: \mu = \sum_n s_n x_n, \qquad \Sigma = \sum_n s_n (x_n - \mu)(x_n - \mu)^\top

    Two passes over the source, in float64: the second one subtracts the mean before it multiplies.

    Args:
        source: S, with weights s_n that sum to 1.
        budget: Bytes of working memory, result included; 1 GiB if left out.

    Returns:
        μ, shape (d,), and Σ, shape (d, d), float64, where the source lies.

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If it is too small for Σ and one image.
    """
    budget = DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    d = math.prod(source.shape)
    once, per_x = d * (d + 2) * FLOAT64, (4 * d + 2) * FLOAT64
    if budget < once + per_x:
        raise ValueError(
            f"budget: got {budget:,} bytes, wanted at least {once + per_x:,} for the covariance of "
            f"images of shape {source.shape}"
        )
    n = max(1, min(budget - once, CACHE_FRIENDLY) // per_x)

    mean = sum(s @ x for s, x in _chunks(source, n))
    covariance = mean.new_zeros(d, d)
    for s, x in _chunks(source, n):
        centred = x - mean
        covariance.addmm_(centred.T * s, centred)
    return mean, covariance


def _chunks(source: Source, n: int) -> Iterator[tuple[Float[Tensor, " m"], Float[Tensor, "m d"]]]:
    """Weights and images, n at a time."""
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = source.read(index, torch.float64).flatten(1)
        if source.log_weights is None:
            s = x.new_full((len(x),), 1 / len(source))
        else:
            s = source.log_weights[index].to(x).exp()
        yield s, x
