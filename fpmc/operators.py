r"""Q and R: non-negative linear operators from pixels to estimators, stored by their structure.

An operator is a matrix :math:`A` with a row per estimator k and a column per pixel p (or per
dimension d). It maps an image-shaped array to one number per estimator, and its transpose maps
back:

.. math:: (A a)_k = \sum_p A_{kp} a_p, \qquad (A^\top b)_p = \sum_k A_{kp} b_k .

Like a matrix, an operator acts on the first axes and carries the others along: with shape
(h, w), :meth:`Operator.apply` takes (h, w, *) to (k, *). A shape (h, w) means one value per
pixel, shared by its channels; (c, h, w) one value per dimension.
"""

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import FLOATS, as_whole_number, kind
from fpmc.features import Features, as_features
from fpmc.windows import padded, window_sum

__all__ = ["Box", "Dense", "Identity", "Ones", "Operator", "as_pair"]

LARGEST = 1e30
"""Of an entry, and of a pixel's sum of response weights and its inverse: float32 holds products."""


class Operator(ABC):
    """A non-negative linear operator from pixels (or dimensions) to estimators.

    One of your own sets ``shape`` and ``k`` and defines ``_apply`` and ``_transpose``: the matrix
    and its transpose, times any array whose first axes are theirs, of the array's type, on its
    device. Entries must not be negative, which only :class:`Dense` checks. Parameters of its own
    get no gradients: for those, give :class:`Dense` a matrix made of them.

    Attributes:
        shape: (h, w), or (c, h, w) if it tells channels apart.
        k: The number of estimators K.
        partition: Whether every pixel belongs to exactly one estimator, with weight 1.
    """

    shape: tuple[int, ...]
    k: int
    partition: bool = False

    def apply(self, a: Float[Tensor, "..."]) -> Float[Tensor, "k *rest"]:
        """A a: from (*shape, *) to (k, *).

        Raises:
            ValueError: If the first axes are others.
        """
        if tuple(a.shape[: len(self.shape)]) != self.shape:
            raise ValueError(f"a: got shape {tuple(a.shape)}, wanted {self.shape} first")
        return self._apply(a)

    def transpose(self, b: Float[Tensor, "k *rest"]) -> Float[Tensor, "..."]:
        """Aᵀ b: from (k, *) to (*shape, *).

        Raises:
            ValueError: If the first axis is another.
        """
        if tuple(b.shape[:1]) != (self.k,):
            raise ValueError(f"b: got shape {tuple(b.shape)}, wanted ({self.k},) first")
        return self._transpose(b)

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether it works on images of this (c, h, w)."""
        return self.shape == tuple(shape[-len(self.shape) :])

    def to(self, like: Tensor) -> "Operator":
        """The same operator, ready to act on arrays of this type, on this device."""
        return self

    def coverage(self) -> Float[Tensor, "..."]:
        """Aᵀ1, the sum of the rows: shape (*shape)."""
        return self.transpose(torch.ones(self.k, dtype=torch.float64))

    @abstractmethod
    def _apply(self, a: Tensor) -> Tensor:
        """A a, for a of shape (*shape, *rest): shape (k, *rest)."""

    @abstractmethod
    def _transpose(self, b: Tensor) -> Tensor:
        """Aᵀ b, for b of shape (k, *rest): shape (*shape, *rest)."""

    def dense(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "k ..."]:
        """The matrix itself, with shape (k, *shape): row k is the k-th q or r vector."""
        eye = torch.eye(math.prod(self.shape), dtype=dtype)
        return self.apply(eye.view(*self.shape, -1)).view(self.k, *self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, k={self.k})"


class Ones(Operator):
    """One estimator that sees every pixel: q = 1, or r = 1.

    Args:
        shape: (h, w) or (c, h, w).
    """

    k = 1
    partition = True

    def __init__(self, shape: tuple[int, ...]):
        self.shape = _as_shape(shape)

    def _apply(self, a: Tensor) -> Tensor:
        return a.sum(dim=tuple(range(len(self.shape)))).unsqueeze(0)

    def _transpose(self, b: Tensor) -> Tensor:
        return b[0].expand(*self.shape, *b.shape[1:])


class Identity(Operator):
    """One estimator per pixel (or dimension), which sees nothing else: one-hot rows.

    Args:
        shape: (h, w) or (c, h, w); K is their product.
    """

    partition = True
    before = 0

    def __init__(self, shape: tuple[int, ...]):
        self.shape = _as_shape(shape)
        self.k = math.prod(self.shape)

    def _apply(self, a: Tensor) -> Tensor:
        return a.reshape(self.k, *a.shape[len(self.shape) :])

    def _transpose(self, b: Tensor) -> Tensor:
        return b.reshape(*self.shape, *b.shape[1:])


class Box(Operator):
    r"""Squares of side p: the row of centre (i, j) is 1 where −⌊p/2⌋ ≤ Δ ≤ ⌈p/2⌉ − 1 on both axes.

    Both directions are window sums, made from :math:`\log_2 p` shifted additions: no
    cancellation, and a cost that hardly depends on p.

    Args:
        shape: (h, w).
        p: The side of the square, 1 ≤ p ≤ min(h, w).
        border: ``"valid"`` keeps the (h − p + 1)(w − p + 1) centres whose square fits, row by
            row; ``"clip"`` keeps all h·w centres and cuts their squares off at the border.

    Attributes:
        before: Pixels of a square above and left of the pixel that stands for it.

    Raises:
        TypeError: If p is not a whole number.
        ValueError: If p or the border is none of these.

    Source: Niedoba et al. (2026), equations (36) and (37).
    """

    def __init__(self, shape: tuple[int, int], p: int, border: str = "valid"):
        self.shape = _as_shape(shape)
        if len(self.shape) != 2:
            raise ValueError(f"shape: got {shape}, wanted (h, w)")
        self.p = as_whole_number(p, "p", 1, min(self.shape))
        if border not in ("valid", "clip"):
            raise ValueError(f'border: got {border!r}, wanted "valid" or "clip"')
        self.border = border
        fitting = tuple(side - self.p + 1 for side in self.shape)
        self.grid = self.shape if border == "clip" else fitting
        self.k = math.prod(self.grid)
        self.before = self.p // 2 if border == "clip" else 0

    def _apply(self, a: Tensor) -> Tensor:
        before, after = (0, 0) if self.border == "valid" else (self.p // 2, (self.p - 1) // 2)
        for axis in (0, 1):
            a = window_sum(padded(a, axis, before, after), axis, self.p)
        return a.reshape(self.k, *a.shape[2:])

    def _transpose(self, b: Tensor) -> Tensor:
        b = b.reshape(*self.grid, *b.shape[1:])
        fits = self.border == "valid"
        before, after = (self.p - 1,) * 2 if fits else ((self.p - 1) // 2, self.p // 2)
        for axis in (0, 1):
            b = window_sum(padded(b, axis, before, after), axis, self.p)
        return b

    def __repr__(self) -> str:
        return f"Box(shape={self.shape}, p={self.p}, border={self.border!r}, k={self.k})"


class Dense(Operator):
    """Any non-negative matrix, given as such.

    Args:
        matrix: Row k is the k-th q or r vector as an image: shape (k, h, w) for one value per
            pixel, (k, c, h, w) for one per dimension. May require gradients.

    Raises:
        TypeError: If it is not a dense floating-point tensor.
        ValueError: If its shape is another, or an entry is negative, NaN or beyond 1e30.
    """

    def __init__(self, matrix: Float[Tensor, "k ..."]):
        if not isinstance(matrix, Tensor) or matrix.dtype not in FLOATS:
            raise TypeError(f"matrix: got {kind(matrix)}, wanted a floating-point tensor")
        if matrix.layout != torch.strided or matrix.is_meta:
            raise TypeError("matrix: got no dense tensor with values, wanted one")
        if matrix.ndim not in (3, 4) or 0 in matrix.shape:
            raise ValueError(
                f"matrix: got shape {tuple(matrix.shape)}, wanted (k, h, w) or (k, c, h, w)"
            )
        self.matrix = matrix
        self.k, *shape = matrix.shape
        self.shape = tuple(shape)
        self.check("matrix")

    def check(self, name: str) -> None:
        """See that the entries are what they must be: they may have been changed since.

        Args:
            name: What the error calls the matrix.

        Raises:
            ValueError: If one is negative, NaN or beyond 1e30.
        """
        least, most = (value.item() for value in self.matrix.detach().aminmax())
        if not (least >= 0 and most < math.inf):
            raise ValueError(f"{name}: got negative or non-finite entries, wanted entries ≥ 0")
        if most > LARGEST:
            raise ValueError(f"{name}: got {most:.3g}, wanted entries up to {LARGEST:g}")

    def _apply(self, a: Tensor) -> Tensor:
        flat = a.reshape(math.prod(self.shape), -1)
        return (self._rows(flat) @ flat).view(self.k, *a.shape[len(self.shape) :])

    def _transpose(self, b: Tensor) -> Tensor:
        flat = b.reshape(self.k, -1)
        return (self._rows(flat).T @ flat).view(*self.shape, *b.shape[1:])

    def dense(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "k ..."]:
        return self.matrix.to(dtype)

    def to(self, like: Tensor) -> "Dense":
        ready = copy(self)
        ready.matrix = self.matrix.detach().to(like)
        return ready

    def coverage(self) -> Float[Tensor, "..."]:
        return self.matrix.detach().sum(0)

    def _rows(self, like: Tensor) -> Float[Tensor, "k p"]:
        return self.matrix.reshape(self.k, -1).to(like)


def as_pair(
    queries: Any, responses: Any, shape: tuple[int, int, int], features: Features | None = None
) -> tuple[Operator, Operator]:
    """Return Q and R.

    Raises:
        ValueError: If one is no operator on images of this (c, h, w), queries on features if there
            are any, or they differ in their number of estimators.
    """
    keys = shape if features is None else as_features(features, shape).shape
    for name, op, on in (("queries", queries, keys), ("responses", responses, shape)):
        wanted = f"wanted an operator on {'images' if on == shape else 'features'} of shape {on}"
        if not isinstance(op, Operator):
            raise ValueError(f"{name}: got {kind(op)}, {wanted}, such as Dense(matrix)")
        if not op.fits(on):
            raise ValueError(f"{name}: got {op!r}, {wanted}")
    if (k := responses.k) != (wanted := queries.k):
        raise ValueError(f"responses: got {k} estimators, wanted {wanted}, as many as queries")
    return queries, responses


def _as_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) not in (2, 3):
        raise ValueError(f"shape: got {shape!r}, wanted (h, w) or (c, h, w)")
    return tuple(as_whole_number(side, "shape", 1) for side in shape)
