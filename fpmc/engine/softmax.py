r"""The online softmax: weights relative to the largest log-weight so far.

Log-weights come a part at a time. What was summed before shrinks when a larger one comes:

.. math::
    m' = \max(m, \max_n \ell_n), \qquad
    M' = M e^{m - m'} + \sum_n e^{\ell_n - m'}, \qquad
    T' = T e^{m - m'} + \sum_n e^{\ell_n - m'} v_n .

Parts that were summed apart merge by the same rule. At the end :math:`T / M` is the mean of the
values v and :math:`m + \log M` the log-normaliser. A log-weight of −∞ is an image without weight;
where all of them are, M is 0. Source: Milakov and Gimelshein (2018).
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.ranks import Ranks

__all__ = ["CUTOFF", "OnlineSoftmax", "exp"]

CUTOFF = 80.0
"""Weights below e⁻⁸⁰, 1.8e-35, of their estimator's largest are left out."""

LOG2_E = 1 / math.log(2)


class OnlineSoftmax:
    """A softmax over the source for each of many rows, say noisy images times estimators.

    Args:
        peak: The largest log-weight so far, shape (*rows); None before the first.
        mass: The sum of weights relative to that of the peak, shape (*rows).
        total: The sum of weights times values, likewise, with the rows as its last axes and the
            first of the rows first: shape (b, *values, *grid) for rows (b, *grid). None where
            there are no values, or where the caller keeps them.

    Attributes:
        shrink: What the last rise of the peak made of earlier weights; None at the first.
    """

    def __init__(
        self, peak: Tensor | None = None, mass: Tensor | None = None, total: Tensor | None = None
    ):
        self.peak, self.mass, self.total = peak, mass, total
        self.shrink: Tensor | None = None

    @classmethod
    def empty(
        cls,
        rows: tuple[int, ...],
        values: tuple[int, ...] | None = None,
        device: torch.device | None = None,
    ) -> "OnlineSoftmax":
        """Sums of nothing yet, float64, that compiled code can fill: shapes of rows and total."""
        peak = torch.full(rows, -torch.inf, dtype=torch.float64, device=device)
        total = None if values is None else peak.new_zeros(values)
        return cls(peak, torch.zeros_like(peak), total)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The memory of the peak, the mass, and the total if there is one, for compiled code."""
        parts = (self.peak, self.mass, self.total)
        return tuple(part.numpy() for part in parts if part is not None)

    @classmethod
    def of_splits(cls, peak: Tensor, mass: Tensor, total: Tensor | None = None) -> "OnlineSoftmax":
        """Sums of parts of the source side by side along a first axis, put together in that order.

        All three are overwritten. No answer depends on which part ended first.
        """
        top = _finite(peak.amax(0))
        shrink = peak.sub_(top).exp_()
        mass = mass.mul_(shrink).sum(0)
        if total is not None:
            for part, rows in zip(total, shrink, strict=True):
                part.mul_(_between(rows, part.ndim))
            total = total.sum(0)
        return cls(top, mass, total)

    def take(
        self, ell: Float[Tensor, "*rows n"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "*rows n"]:
        """Raise the peak, and take it off the log-weights, which are overwritten.

        Args:
            ell: Log-weights of more images.
            dtype: The type of what comes back; that of the log-weights if left out.
        """
        top = ell.amax(-1)
        if self.peak is not None:
            top = torch.maximum(top, self.peak)
            self.shrink = (self.peak - top).double().exp_()
        self.peak = top = _finite(top)
        return ell.sub_(top.unsqueeze(-1)).to(dtype or ell.dtype)

    def weigh(self, t: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """The weights, of what :meth:`take` gave, which is overwritten; they join the mass."""
        weights = exp(t)
        part = weights.sum(-1, dtype=torch.float64)
        self.mass = part if self.mass is None else part.addcmul_(self.mass, self.shrink)
        return weights

    def add(self, part: Tensor) -> None:
        """Weighted sums of values of the images taken last join the total."""
        if self.total is not None and self.shrink is not None:
            part = part + self.total * _between(self.shrink, self.total.ndim)
        self.total = part

    def merge(self, other: "OnlineSoftmax") -> "OnlineSoftmax":
        """Take the sums of another part in; both are overwritten."""
        top = _finite(torch.maximum(self.peak, other.peak))
        for part in (self, other):
            shrink = part.peak.sub_(top).exp_()
            part.mass.mul_(shrink)
            if part.total is not None:
                part.total.mul_(_between(shrink, part.total.ndim))
        self.peak = top
        self.mass += other.mass
        if self.total is not None:
            self.total += other.total
        return self

    def join(self, ranks: Ranks) -> None:
        """The sums of all ranks' parts of the source take the place of this one's.

        As in :meth:`take` the peak rises, and ``shrink`` is what that made of this part's weights.
        """
        top = _finite(ranks.largest(self.peak.double().clone()))
        self.shrink = (self.peak - top).exp_()
        self.peak = top
        self.mass = ranks.sum(self.mass * self.shrink)
        if self.total is not None:
            self.total = ranks.sum(self.total * _between(self.shrink, self.total.ndim))

    def mean(self) -> Tensor:
        """The weighted mean of the values; the total is overwritten."""
        return self.total.div_(_between(self.mass, self.total.ndim))

    def log_norm(self) -> Float[Tensor, "*rows"]:
        """The logarithm of the sum of all weights, float64."""
        return self.peak.double() + self.mass.log()


def _finite(peak: Tensor) -> Tensor:
    """The peak, or for −∞ the lowest number, from which −∞ differs by −∞ and not by NaN."""
    return peak.clamp_(min=torch.finfo(peak.dtype).min)


def exp(t: Tensor) -> Tensor:
    """The exponential, in place: as a power of 2, which does not slow down where it underflows."""
    return t.mul_(LOG2_E).exp2_()


def _between(row: Tensor, ndim: int) -> Tensor:
    """Axes of length one after the first, up to so many in all."""
    first, *grid = row.shape
    return row.view(first, *(1,) * (ndim - row.ndim), *grid)
