r"""The first two moments of a source, and its principal axes, summed in float64.

With the deviations :math:`A = \operatorname{diag}(s)^{1/2} (X - 1\mu^\top)`, an image a row, the
covariance is :math:`\Sigma = A^\top A`, of shape (d, d). The Gram matrix :math:`A A^\top` has shape
(n, n) and the same eigenvalues but for zeros. So the smaller of the two is decomposed.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, resolve, too_small
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["moments", "principal_axes"]


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
    budget = resolve(budget)
    d = math.prod(source.shape)
    once, per_x = d * (d + 2) * FLOAT64, (4 * d + 2) * FLOAT64
    if budget < once + per_x:
        what = f"the covariance of images of shape {source.shape}"
        raise too_small(budget, once + per_x, what)
    n = max(1, min(budget - once, CACHE_FRIENDLY) // per_x)

    mean = _mean(source, n)
    covariance = mean.new_zeros(d, d)
    for _, s, x in _chunks(source, n):
        centred = x - mean
        covariance.addmm_(centred.T * s, centred)
    return mean, covariance


@without_autograd
def principal_axes(
    source: Source, budget: int | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, " r"], Float[Tensor, "d r"]]:
    r"""The directions in which S varies, from the Gram matrix of its images.

    .. math:: A A^\top v_j = \lambda_j v_j, \qquad u_j = A^\top v_j / \|A^\top v_j\|, \qquad
              \Sigma = \sum_j \|A^\top v_j\|^2 u_j u_j^\top

    The sum is Σ whatever the rounding of the v, as they are orthogonal. What is left out of it are
    eigenvalues that the Gram matrix's rounding does not tell from zero, below n · 2⁻⁵² of the
    largest. The cost is of the order of n² (n + d), where that of Σ and its axes is d² (n + d).

    Args:
        source: S, with weights s_n that sum to 1.
        budget: Bytes of working memory for the Gram matrix, which it includes; 1 GiB if left out.
            The less it is, the more often the source is read. The decomposition takes about three
            more matrices of shape (n, n), and the axes are one of shape (d, r).

    Returns:
        μ, shape (d,); λ > 0, rising, shape (r,) with r < n the rank of Σ; and U, a column for each,
        shape (d, r), float64, where the source lies.

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If it is too small for the Gram matrix and two images.

    Source: Sirovich (1987), "Turbulence and the dynamics of coherent structures", part I, of
    snapshots.
    """
    budget = resolve(budget)
    n, d = len(source), math.prod(source.shape)
    once, per_x = (n * n + d) * FLOAT64, (7 * d + n + 2) * FLOAT64
    if budget < once + per_x:
        what = f"the Gram matrix of {n:,} images of shape {source.shape}"
        raise too_small(budget, once + per_x, what)
    m = min(n, (budget - once) // per_x)

    mean = _mean(source, m)
    gram = mean.new_zeros(n, n)  # its lower half, which is what is decomposed
    for i, rows in _deviations(source, mean, m):
        gram[i, i] = rows @ rows.T
        for j, others in _deviations(source, mean, m, i.start):
            gram[i, j] = rows @ others.T
    values, vectors = torch.linalg.eigh(gram)
    del gram
    vectors = vectors[:, values > n * torch.finfo(values.dtype).eps * values[-1]]
    axes = mean.new_zeros(d, vectors.shape[1])
    for i, rows in _deviations(source, mean, m):
        axes.addmm_(rows.T, vectors[i])
    lengths = axes.norm(dim=0)
    return mean, lengths.square(), axes.div_(lengths)


def _mean(source: Source, m: int) -> Float[Tensor, " d"]:
    return sum(s @ x for _, s, x in _chunks(source, m))


def _deviations(
    source: Source, mean: Float[Tensor, " d"], m: int, stop: int | None = None
) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """Rows of A, m at a time, and which they are; the first ``stop`` of them if it is given."""
    for index, s, x in _chunks(source, m, stop):
        yield index, (x - mean).mul_(s.sqrt().unsqueeze(1))


def _chunks(
    source: Source, m: int, stop: int | None = None
) -> Iterator[tuple[slice, Float[Tensor, " m"], Float[Tensor, "m d"]]]:
    """Which images, their weights, and themselves, m at a time."""
    n = len(source)
    for start in range(0, n if stop is None else stop, m):
        index = slice(start, min(start + m, n))
        x = source.read(index, torch.float64).flatten(1)
        if source.log_weights is None:
            s = x.new_full((len(x),), 1 / n)
        else:
            s = source.log_weights[index].to(x).exp()
        yield index, s, x
