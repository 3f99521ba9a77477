r"""Keys and values: a collection that compares in features and averages in pixels.

A query precision is a diagonal matrix. With a linear map Φ and
:math:`\delta_n = (\Phi z - \Phi x_n)^2` per feature, Q acts on features, and

.. math::
    (Q \delta_n)_k = (z - x_n)^\top \Phi^\top \operatorname{diag}(q_k)\, \Phi\, (z - x_n)

is a distance with any precision matrix that is not negative. Responses stay in pixels, as what is
averaged does: :math:`\Phi x_n` is the key of a source image, and :math:`x_n` its value.

:func:`dct` makes features of nothing but the images' shape; those that know a source's statistics
are :meth:`fpmc.gaussian.Gaussian.principal` and :meth:`fpmc.gaussian.Gaussian.whitening`.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import EXTREME, FLOATS, as_shape, kind

__all__ = ["Features", "as_features", "dct"]


class Features:
    """A linear map Φ from images to features.

    Args:
        matrix: Φ, a row per feature: floating-point, shape (f, d) with d = c·h·w.
        images: The images' (c, h, w).
        shape: How features lie, (c', h', w') with c'·h'·w' = f: what Q takes them for. That of the
            images if left out.

    Raises:
        TypeError: If the matrix is not a dense floating-point tensor, or a side no whole number.
        ValueError: If a shape is none or does not fit, or an entry is NaN or beyond 1e100.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "f d"],
        images: tuple[int, int, int],
        shape: tuple[int, int, int] | None = None,
    ):
        if not isinstance(matrix, Tensor) or matrix.dtype not in FLOATS:
            raise TypeError(f"matrix: got {kind(matrix)}, wanted a floating-point tensor")
        if matrix.layout != torch.strided:
            raise TypeError(f"matrix: got {matrix.layout}, wanted a dense tensor")
        self.images = as_shape(images, "images")
        self.shape = self.images if shape is None else as_shape(shape, "shape")
        wanted = math.prod(self.shape), math.prod(self.images)
        if tuple(matrix.shape) != wanted:
            raise ValueError(
                f"matrix: got shape {tuple(matrix.shape)} for features of shape {self.shape} of "
                f"images of shape {self.images}, wanted {wanted}"
            )
        if not (matrix.double().abs() <= EXTREME).all():
            raise ValueError("matrix: got NaN or entries beyond 1e100, wanted smaller ones")
        self.matrix = matrix.detach()

    def __repr__(self) -> str:
        return f"Features({self.images} to {self.shape})"

    def apply(self, a: Float[Tensor, "c h w *rest"]) -> Float[Tensor, "c2 h2 w2 *rest"]:
        """Φ a, of arrays whose first axes are the images'."""
        return self._product(self.matrix, a, self.shape)

    def transpose(self, b: Float[Tensor, "c2 h2 w2 *rest"]) -> Float[Tensor, "c h w *rest"]:
        """Φᵀ b, of arrays whose first axes are the features'."""
        return self._product(self.matrix.T, b, self.images)

    def _product(self, matrix: Tensor, a: Tensor, shape: tuple[int, ...]) -> Tensor:
        flat = a.reshape(matrix.shape[1], -1)
        return (matrix.to(flat) @ flat).view(*shape, *a.shape[3:])


def dct(images: tuple[int, int, int]) -> Features:
    r"""The orthonormal discrete cosine transform of each channel, frequencies where pixels were.

    .. math:: \Phi_{uv,ij} = a_u a_v \cos\frac{\pi (2i+1) u}{2h} \cos\frac{\pi (2j+1) v}{2w}

    with :math:`a_0 = \sqrt{1/h}` and :math:`a_u = \sqrt{2/h}`, and so for w. Φ keeps distances: one
    estimator with q = 1 is the optimal denoiser, as it is in pixels.

    Args:
        images: The images' (c, h, w).

    Raises:
        TypeError: If a side is no whole number.
        ValueError: If it is below 1, or there are not three.

    Source: Ahmed, Natarajan and Rao (1974).
    """
    c, h, w = as_shape(images, "images")
    plane = torch.kron(_cosines(h), _cosines(w))
    return Features(torch.kron(torch.eye(c, dtype=plane.dtype), plane), (c, h, w))


def _cosines(n: int) -> Float[Tensor, "n n"]:
    """The transform of one axis."""
    places = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi / n * (places + 0.5) * places[:, None]) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def as_features(features: Any, images: tuple[int, int, int]) -> Features:
    """Return the features.

    Raises:
        ValueError: If they are none, or of other images.
    """
    if not isinstance(features, Features):
        raise ValueError(f"features: got {kind(features)}, wanted fpmc.features.Features")
    if features.images != tuple(images):
        raise ValueError(f"features: got {features!r}, wanted them of images {tuple(images)}")
    return features
