"""How near two sets of images are: errors, nearest neighbours, distances between distributions."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.checks import EXTREME, as_images, as_positive, kind
from fpmc.engine.streaming import posterior
from fpmc.operators import Ones, Operator
from fpmc.source import Source, as_source

__all__ = ["Estimate", "energy_distance", "frechet", "mse", "nearest", "r2"]


class Estimate(float):
    """A mean over samples that carries its standard error; otherwise a float.

    Attributes:
        standard_error: s / √n with the sample standard deviation s; NaN for a single sample.
        n: The number of samples.
    """

    standard_error: float
    n: int

    def __new__(cls, mean: float, standard_error: float, n: int) -> "Estimate":
        estimate = super().__new__(cls, mean)
        estimate.standard_error, estimate.n = standard_error, n
        return estimate

    def __getnewargs__(self) -> tuple[float, float, int]:
        return float(self), self.standard_error, self.n

    @classmethod
    def of_samples(cls, samples: Float[Tensor, " n"]) -> "Estimate":
        """The mean of n samples, shape (n,), n ≥ 1, with its standard error."""
        samples, n = samples.double(), len(samples)
        error = samples.std().item() / math.sqrt(n) if n > 1 else math.nan
        return cls(samples.mean().item(), error, n)

    def __str__(self) -> str:
        """The mean with its standard error, both to the error's second digit."""
        error = self.standard_error
        if not 1e-7 < error < math.inf:
            return f"{float(self):.4g} ± {error:.2g}"
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{float(self):.{digits}f} ± {error:.{digits}f}"


def mse(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Estimate:
    r"""Mean squared error per dimension, :math:`\frac1D \|a - b\|^2`, averaged over the batch.

    Args:
        a: Images, shape (b, c, h, w).
        b: Images, the same shape.

    Raises:
        TypeError: If either is not a floating-point tensor.
        ValueError: If their shapes differ, or they hold NaN.
    """
    a, b = _as_pair(a, "a", b, "b")
    return Estimate.of_samples((a - b).square().flatten(1).mean(1))


def r2(samples: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Estimate:
    r"""Coefficient of determination of each sample, averaged over the batch.

    .. math:: r^2 = 1 - \frac{\|x - y\|^2}{\|y - \bar y\|^2}

    with y the reference image and ȳ the mean of its D values.

    Args:
        samples: x, shape (b, c, h, w).
        reference: y, the same shape.

    Raises:
        TypeError: If either is not a floating-point tensor.
        ValueError: If their shapes differ, they hold NaN, or a reference image is constant.

    Source: Niedoba et al. (2026), table 2.
    """
    x, y = _as_pair(samples, "samples", reference, "reference")
    spread = (y - y.mean((1, 2, 3), keepdim=True)).square().flatten(1).sum(1)
    if (y.amax((1, 2, 3)) == y.amin((1, 2, 3))).any():
        raise ValueError("reference: got a constant image, for which r² is not defined")
    return Estimate.of_samples(1 - (x - y).square().flatten(1).sum(1) / spread)


def nearest(
    images: Float[Tensor, "b c h w"],
    source: Source,
    patches: Operator | None = None,
    budget: int | None = None,
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    r"""Each image's nearest source image, or each patch's nearest source patch at the same place.

    The distance is the root of the mean squared difference over a patch's dimensions, so that
    patches of different sizes compare: :math:`\sqrt{(Q\delta_n)_k / (Q 1)_k}`.

    Args:
        images: Images in [-1, 1], shape (b, c, h, w).
        source: Where to look.
        patches: Q, the patches to compare, for instance ``Box((h, w), p)``; the whole image (k = 1)
            if left out.
        budget: Bytes of working memory; 1 GiB if left out.

    Returns:
        The distance to the nearest, shape (b, k), and its position in the source, shape (b, k).

    Raises:
        TypeError: If the images are not a floating-point tensor, or the source no source.
        ValueError: If their shape is not the source's, they hold NaN, or the patches are for other
            images or empty.
    """
    images = as_images(images, "images", as_source(source).shape)
    patches = Ones(source.shape[1:]) if patches is None else patches
    if not (isinstance(patches, Operator) and patches.fits(source.shape)):
        raise ValueError(
            f"patches: got {patches!r}, wanted an operator on images of shape {source.shape}"
        )
    size = patches.apply(torch.ones(patches.shape, dtype=torch.float64))
    if (size <= 0).any():
        raise ValueError("patches: got an empty one, wanted a positive sum in every row")
    squared, position = posterior.nearest(images, patches, source, budget)
    channels = source.shape[0] if len(patches.shape) == 2 else 1
    return (squared / (size * channels).to(squared)).sqrt(), position


def energy_distance(
    a: Float[Tensor, "n *shape"], b: Float[Tensor, "m *shape"], beta: float = 1.0
) -> float:
    r"""The energy distance between the distributions that two sets were drawn from, without bias.

    .. math:: 2\, \mathbb{E} \|x - y\|^\beta - \mathbb{E} \|x - x'\|^\beta
        - \mathbb{E} \|y - y'\|^\beta

    The last two are means over pairs of different images. So the estimate is 0 in expectation if
    the distributions are the same, and below 0 about half of the time then. The norm is Euclidean
    over all dimensions.

    Args:
        a: x, two or more, shape (n, *shape).
        b: y, two or more, shape (m, *shape).
        beta: β, above 0 and below 2.

    Raises:
        TypeError: If either is not a floating-point tensor.
        ValueError: If their shapes do not fit, they hold NaN or infinities, or β is out of range.

    Source: Székely and Rizzo (2013), equation (2.3).
    """
    x, y = _as_sets(a, b)
    beta = as_positive(beta, "beta")
    if beta >= 2:
        raise ValueError(f"beta: got {beta:g}, wanted a number above 0 and below 2")

    def mean(u: Tensor, v: Tensor, pairs: int) -> Tensor:
        exact = "donot_use_mm_for_euclid_dist"  # an image is 0 away from itself
        return torch.cdist(u, v, compute_mode=exact).pow(beta).sum() / pairs

    n, m = len(x), len(y)
    own = mean(x, x, n * (n - 1)) + mean(y, y, m * (m - 1))
    return (2 * mean(x, y, n * m) - own).item()


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    r"""The Fréchet distance between the Gaussians with the moments of two sets of features.

    .. math:: \|\mu_a - \mu_b\|^2 + \operatorname{tr}\big(\Sigma_a + \Sigma_b
        - 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}\big)

    Of few samples it is too large; compare only sets of the same size.

    Args:
        a: Features, two or more, shape (n, d).
        b: Features, two or more, shape (m, d).

    Raises:
        TypeError: If either is not a floating-point tensor.
        ValueError: If their shapes do not fit, or they hold NaN or infinities.

    Source: Dowson and Landau (1982); Heusel et al. (2017).
    """
    x, y = _as_sets(a, b)
    first, second = x.T.cov().reshape(x.shape[1], -1), y.T.cov().reshape(x.shape[1], -1)
    values, axes = torch.linalg.eigh(first)
    root = axes * values.clamp(min=0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return max(0.0, (apart + first.trace() + second.trace() - 2 * cross).item())


def _as_sets(a: Tensor, b: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Two sets as rows, in float64."""
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: got {kind(value)}, wanted a floating-point tensor")
        if value.ndim < 2 or len(value) < 2 or 0 in value.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, wanted two or more rows")
        if not (value.double().abs() <= EXTREME).all():
            raise ValueError(f"{name}: got NaN or infinite values, wanted finite ones")
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"b: got shape {tuple(b.shape)}, wanted (m, ...) for {tuple(a.shape)}")
    return a.double().flatten(1), b.double().flatten(1)


def _as_pair(a: Tensor, name_a: str, b: Tensor, name_b: str) -> tuple[Tensor, Tensor]:
    a = as_images(a, name_a)
    b = as_images(b, name_b)
    if a.shape != b.shape:
        raise ValueError(f"{name_b}: got shape {tuple(b.shape)}, wanted {tuple(a.shape)}")
    return a.double(), b.double()
