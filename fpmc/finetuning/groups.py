"""Estimators that see alike, side by side: what carries weight for one does for the others."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["SMALLEST", "grouped"]

SMALLEST = 64
"""Estimators of a group at least, so that its products are not too narrow to be fast."""

ROUNDS = 8
"""Of the power iteration, which need not be exact: any grouping gives the same sums."""


def grouped(q: Float[Tensor, "k p"]) -> tuple[Int[Tensor, " k"], list[slice]]:
    """Cut a collection in halves, these again, and so on, each at the median of its longest axis.

    Args:
        q: The queries, a row for each estimator.

    Returns:
        An order of the estimators, and where the groups lie in it.
    """
    parts = [torch.arange(len(q), device=q.device)]
    while min(map(len, parts)) >= 2 * SMALLEST:
        parts = [half for part in parts for half in _halves(q, part)]
    ends = torch.tensor([0, *map(len, parts)]).cumsum(0).tolist()
    return torch.cat(parts), [slice(a, b) for a, b in pairwise(ends)]


def _halves(q: Float[Tensor, "k p"], part: Int[Tensor, " m"]) -> tuple[Tensor, Tensor]:
    """The estimators on both sides of the median, along the principal axis of their queries."""
    rows = q[part] - q[part].mean(0)
    axis = rows[rows.square().sum(1).argmax()]
    for _ in range(ROUNDS):
        axis = torch.nn.functional.normalize(rows.T @ (rows @ axis), dim=0)
    ordered = part[(rows @ axis).argsort(stable=True)]
    return ordered[: len(part) // 2], ordered[len(part) // 2 :]
