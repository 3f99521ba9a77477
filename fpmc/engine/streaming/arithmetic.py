r"""The arithmetic of one tile: noisy images against a few source images.

Arrays have the pixels first and the source last, (*pixels, b, n): operators act on the first
axes, and every elementwise step runs along n, contiguously.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.problem import Problem, log_weights
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.operators import Ones, Operator
from fpmc.source import Source

__all__ = [
    "EXACT", "FLOAT32", "FLOAT64", "Dtypes", "coverage", "differences", "dtypes", "mix",
    "pixels_first", "read", "start", "tiles",
]  # fmt: skip


class Dtypes(NamedTuple):
    """Which floating-point types a sum over the source runs in.

    Attributes:
        log_weights: Type of differences, distances and log-weights.
        weights: Type of the weights and of what they are multiplied with; sums over tiles are
            float64.
    """

    log_weights: torch.dtype
    weights: torch.dtype


EXACT = Dtypes(torch.float64, torch.float32)
"""For float32 answers: a log-weight is rounded to float32 after its running maximum is off it."""

FLOAT64 = Dtypes(torch.float64, torch.float64)
"""For float64 answers."""

FLOAT32 = Dtypes(torch.float32, torch.float32)
"""Faster, and less exact."""


def dtypes(z: Tensor, *, exact: bool = True) -> Dtypes:
    """The types that keep the digits of z's, or the fast ones."""
    if not exact:
        return FLOAT32
    return FLOAT64 if z.dtype == torch.float64 else EXACT


def tiles(
    z_t: Float[Tensor, "c h w b"], problem: Problem, n: int, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[Float[Tensor, "c h w n"], Float[Tensor, "k b n"]]]:
    r"""For each tile of the source, its images x and the log-weights ℓ.

    In float32, :math:`\delta - c\sigma^2` takes the place of δ, where c is the number of values per
    pixel. Any constant would do: it moves all of an estimator's log-weights by as much. This one is
    what δ is on average where an image fits, so that what is summed stays small.

    Args:
        z_t: Noisy images, pixels first, float64.
        problem: What is asked, Q ready to act on arrays of the type.
        n: Source images of a tile.
        dtype: Type of x and ℓ.
    """
    queries, source, sigma = problem.queries, problem.source, problem.sigma
    if isinstance(queries, Ones):
        dtype = torch.float64  # its expanded distance needs the digits, and takes one product
    z_t = z_t.to(dtype)
    prior, keys = log_weights(source, z_t), problem.keys(z_t)
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = read(source, index, z_t)
        ell = _distances(keys, sigma, problem.keys(x), queries).mul_(-1 / (2 * sigma**2))
        if prior is not None:
            ell += prior[index]
        yield x, ell


def start(z_t: Tensor, problem: Problem, *, values: bool = False) -> OnlineSoftmax:
    """The softmax before the first tile; of one of several ranks, whose part may have none, empty.

    Args:
        z_t: Noisy images, pixels first.
        problem: What is asked.
        values: Whether it has a number to sum for each row and source image.
    """
    if problem.ranks is None:
        return OnlineSoftmax()
    rows = problem.queries.k, z_t.shape[-1]
    return OnlineSoftmax.empty(rows, rows if values else None, z_t.device)


def read(source: Source, index: slice, like: Tensor) -> Float[Tensor, "c h w n"]:
    """Images of the source, pixels first."""
    return source.read(index, like.dtype, like.device).permute(1, 2, 3, 0).contiguous()


def differences(z_t: Tensor, x: Tensor, queries: Operator) -> Float[Tensor, "*pixels b n"]:
    """δ, per pixel or per dimension, as Q wants it."""
    z, x = z_t.unsqueeze(-1), x.unsqueeze(-2)
    if len(queries.shape) == 3:
        return (z - x).square_()
    total = None
    for z_c, x_c in zip(z, x, strict=True):
        difference = z_c - x_c
        if total is None:
            total = difference.square_()
        else:
            total.addcmul_(difference, difference)
    return total


def mix(weights: Float[Tensor, "k b n"], x: Tensor, op: Operator) -> Float[Tensor, "c h w b"]:
    """Σ_n (Aᵀ w_n) ⊙ x_n."""
    if isinstance(op, Ones):
        return (x.flatten(0, 2) @ weights[0].T).view(*x.shape[:3], -1)
    mixed = op.transpose(weights)
    if len(op.shape) == 3:
        return torch.einsum("chwbn,chwn->chwb", mixed, x)
    return torch.einsum("hwbn,chwn->chwb", mixed, x)


def coverage(responses: Operator, z_t: Float[Tensor, "c h w b"]) -> Float[Tensor, "..."]:
    """Rᵀ1, ready to divide what has z_t's shape."""
    return responses.transpose(z_t.new_ones(responses.k)).unsqueeze(-1)


def pixels_first(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "c h w b"]:
    """A float64 copy, the batch last."""
    return z.detach().double().movedim(0, -1).contiguous()


def _distances(z_t: Tensor, sigma: float, x: Tensor, queries: Operator) -> Float[Tensor, "k b n"]:
    """Q δ, in float32 but for a constant per estimator."""
    if isinstance(queries, Ones):
        z, x = z_t.flatten(0, 2), x.flatten(0, 2)
        expanded = z.square().sum(0).unsqueeze(-1) + x.square().sum(0)
        return expanded.addmm_(z.T, x, alpha=-2).unsqueeze(0)
    delta = differences(z_t, x, queries)
    if delta.dtype == torch.float32:
        delta -= sigma**2 * (1 if len(queries.shape) == 3 else len(z_t))
    return queries.apply(delta)
