r"""Queries and responses as functions of free parameters: from θ in R to [0, ∞), and back.

A map f takes θ to :math:`q = f(\theta) \ge 0`, and its inverse takes a binary collection to where
tuning starts. Zeros have no inverse: they start at

.. math:: \epsilon_k = \zeta \min\big(\max_p q_{kp},\ \tfrac{1}{Z_k} \textstyle\sum_p q_{kp}\big),

where row k has :math:`Z_k` of them: at a share ζ of the row's peak, or so that together they are
that share of the row's sum, whichever is less. Without the second a one-hot row of 768 dimensions
would start with seven times as much weight outside as inside.

Source: Niedoba et al. (2026), sections 4.1, 4.2 and C.3.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fpmc.checks import as_fraction
from fpmc.operators import Dense, Identity, Operator

__all__ = ["MAPS", "ZEROS", "Map", "as_map", "expanded", "start"]

ZEROS = 0.01
"""ζ, unless the caller says otherwise."""


class Map(NamedTuple):
    """A way to keep a number above 0.

    Attributes:
        value: f, from any real number to one above 0, elementwise.
        inverse: Its inverse, on numbers above 0.
    """

    value: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def _inverse_softplus(q: Tensor) -> Tensor:
    return q + torch.log(-torch.expm1(-q))


MAPS = {
    "exponential": Map(torch.exp, torch.log),
    "softplus": Map(functional.softplus, _inverse_softplus),
}
"""The maps by name: :math:`e^\\theta` and :math:`\\ln(1 + e^\\theta)`."""


def as_map(name: Any) -> Map:
    """Return a map of :data:`MAPS`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in MAPS:
        raise ValueError(f"mapping: got {name!r}, wanted one of {', '.join(MAPS)}")
    return MAPS[name]


def expanded(queries: Operator, responses: Operator) -> tuple[Operator, Operator]:
    """The same collection with estimators that tuning can tell apart.

    One estimator alone answers for all pixels, whatever its response weights. Here it becomes one
    per pixel (or dimension, if responses tell channels apart), all with its query, each answering
    for its own.

    Args:
        queries: Q, with K estimators.
        responses: R, with the same K.
    """
    if queries.k > 1 or math.prod(responses.shape) == 1:
        return queries, responses
    own = Identity(responses.shape)
    return Dense(queries.dense().expand(own.k, *queries.shape).clone()), own


def start(
    matrix: Float[Tensor, "k ..."], mapping: Map, zeros: float = ZEROS
) -> Float[Tensor, "k ..."]:
    """θ, float32, at which the map gives the matrix, and ε_k where that is zero.

    Args:
        matrix: Q or R, shape (k, *shape), entries ≥ 0.
        mapping: f.
        zeros: ζ, above 0 and up to 1.

    Raises:
        TypeError: If ζ is no number.
        ValueError: If ζ lies outside its range, or the matrix is all zeros.
    """
    zeros = as_fraction(zeros, "zeros", zero=False)
    flat = matrix.detach().double().flatten(1)
    if not flat.any():
        raise ValueError("matrix: got zeros alone, wanted some entries above 0 to start from")
    peak, total = flat.amax(1), flat.sum(1)
    empty = peak == 0
    peak[empty], total[empty] = flat.max(), flat.sum() / (~empty).sum()
    mean = total / (flat == 0).sum(1).clamp(min=1)
    raised = (zeros * torch.minimum(peak, mean)).unsqueeze(1)
    return mapping.inverse(torch.where(flat > 0, flat, raised)).float().view(matrix.shape)
