r"""Other kernels than the Gaussian: queries whose distances are bent before the softmax.

.. math:: \ell_{kn} = -\varphi\Big(\frac{(Q \delta_n)_k}{2\sigma^2}\Big) + \log S(x_n)

With :math:`\varphi(u) = u` the kernel is the Gaussian. One that grows more slowly forgives a source
image that is far away in a few pixels. Such queries are no matrix, so a collection of them has
answers and posteriors, and no gradients.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fpmc.checks import as_positive, kind
from fpmc.operators import Operator

__all__ = ["Bent", "laplace", "student"]


class Bent(Operator):
    r"""Queries followed by a kernel, :math:`\delta \mapsto 2\sigma^2 \varphi(Q\delta / 2\sigma^2)`.

    Args:
        queries: Q.
        sigma: The noise level σ > 0.
        phi: φ, elementwise, rising from φ(0) = 0.
    """

    def __init__(self, queries: Operator, sigma: float, phi: Callable[[Tensor], Tensor]):
        if not isinstance(queries, Operator):
            raise TypeError(f"queries: got {kind(queries)}, wanted an operator at sigma = {sigma}")
        self.shape, self.k = queries.shape, queries.k
        self.queries, self.scale, self.phi = queries, 2 * sigma**2, phi

    def to(self, like: Tensor) -> "Bent":
        ready = copy(self)
        ready.queries = self.queries.to(like)
        return ready

    def _apply(self, a: Tensor) -> Tensor:
        return self.phi(self.queries.apply(a) / self.scale) * self.scale

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        raise ValueError("queries: got a kernel other than the Gaussian, wanted a matrix")

    def coverage(self) -> Tensor:
        """Infinite: no path in float32, whose sums are products with a matrix, will hold it."""
        return torch.full(self.shape, torch.inf, dtype=torch.float64)

    def _transpose(self, b: Tensor) -> Tensor:
        raise NotImplementedError("a kernel other than the Gaussian has no gradients")


def student(queries: Callable[[float], Operator], nu: float) -> Callable[[float], Operator]:
    r"""The kernel of Student's t, :math:`\varphi(u) = \nu \log(1 + u / \nu)`: a power of distance.

    Args:
        queries: Q as a function of σ.
        nu: ν > 0. The larger it is, the nearer is the Gaussian.

    Returns:
        What :class:`fpmc.FPMC` takes for its queries.

    Raises:
        TypeError: If the queries are no function, or ν no number.
        ValueError: If ν is not positive.
    """
    return partial(_bent, _as_function(queries), partial(_student, as_positive(nu, "nu")))


def laplace(queries: Callable[[float], Operator], scale: float) -> Callable[[float], Operator]:
    r"""The kernel of Laplace, :math:`\varphi(u) = s \sqrt{2u}`: s distances in noise levels.

    Arguments and errors as in :func:`student`, with s > 0 for ν.
    """
    return partial(_bent, _as_function(queries), partial(_laplace, as_positive(scale, "scale")))


def _as_function(queries: Any) -> Callable[[float], Operator]:
    if not callable(queries):
        raise TypeError(
            f"queries: got {kind(queries)}, wanted a function from sigma to an operator"
        )
    return queries


def _bent(queries: Callable, phi: Callable, sigma: float) -> Bent:
    return Bent(queries(sigma), sigma, phi)


def _student(nu: float, u: Tensor) -> Tensor:
    return nu * torch.log1p(u / nu)


def _laplace(scale: float, u: Tensor) -> Tensor:
    return scale * (2 * u.clamp(min=0)).sqrt()
