r"""Gaussian data: its optimal denoiser, the Wiener filter, and its sampler, in closed form.

Under :math:`x \sim N(\mu, \Sigma)` and :math:`z = x + \sigma\varepsilon` the posterior mean is
linear in z. In the eigenvectors of :math:`\Sigma = U \Lambda U^\top` every direction has a formula
of its own: for the denoiser a factor, for the probability-flow ODE a solution.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_images, as_noise_level, kind
from fpmc.denoiser import DropIn
from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, resolve, too_small
from fpmc.modes import lasting, without_autograd
from fpmc.source import Source, as_source

__all__ = ["Gaussian", "moments"]


class Gaussian(DropIn):
    r"""The Wiener filter of a mean and a covariance, called as ``denoiser(z, sigma)``.

    .. math:: D(z, \sigma) = \mu + \Sigma (\Sigma + \sigma^2 I)^{-1} (z - \mu)

    It is the best linear denoiser of any data with these moments, and the best of all if the data
    are Gaussian. Answers are computed in float64, and are differentiable in z, by ``torch.func``
    too.

    Args:
        mean: μ, shape (c, h, w).
        covariance: Σ, shape (d, d) with d = c·h·w: symmetric, no negative eigenvalues. It is
            decomposed once; every noise level is answered from that.

    Attributes:
        mean: μ, shape (c, h, w), float64.
        eigenvalues: λ ≥ 0, rising, shape (d,), float64.
        eigenvectors: U, a column per eigenvalue, shape (d, d), float64.

    Raises:
        TypeError: If either is not a floating-point tensor.
        ValueError: If a shape is wrong, a value NaN or infinite, or the covariance none.

    Source: Wiener (1949); Niedoba et al. (2026), section 6 and equation (71).
    """

    _transformed = True

    def __init__(self, mean: Float[Tensor, "c h w"], covariance: Float[Tensor, "d d"]):
        for name, value in (("mean", mean), ("covariance", covariance)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name}: got {kind(value)}, wanted a floating-point tensor")
            if not value.isfinite().all():
                raise ValueError(f"{name}: got NaN or infinite values, wanted finite ones")
        if mean.ndim != 3 or 0 in mean.shape:
            raise ValueError(f"mean: got shape {tuple(mean.shape)}, wanted (c, h, w)")
        d = mean.numel()
        if tuple(covariance.shape) != (d, d):
            raise ValueError(f"covariance: got shape {tuple(covariance.shape)}, wanted ({d}, {d})")
        with lasting():
            self._decompose(mean, covariance)

    def _decompose(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean.to(torch.float64, copy=True)
        covariance = covariance.double()
        rounding = 1e-6 * covariance.abs().max()
        if (covariance - covariance.T).abs().max() > rounding:
            raise ValueError("covariance: got a matrix that is not symmetric, wanted Σ = Σᵀ")
        eigenvalues, self.eigenvectors = torch.linalg.eigh(covariance)
        if eigenvalues[0] < -rounding:
            raise ValueError(
                f"covariance: got an eigenvalue of {eigenvalues[0].item():.3g}, wanted none below 0"
            )
        self.eigenvalues = eigenvalues.clamp(min=0)

    @classmethod
    def of_source(cls, source: Source, budget: int | None = None) -> "Gaussian":
        """The Gaussian with a source's mean and covariance, which are summed in float64.

        Args:
            source: S.
            budget: Bytes of working memory for the sums over the source; 1 GiB if left out. The
                decomposition that follows takes about three more matrices of shape (d, d).

        Raises:
            TypeError: If the source is not an :class:`fpmc.Source`.
            ValueError: If the budget is too small for the covariance.
        """
        mean, covariance = moments(as_source(source), budget)
        return cls(mean.view(source.shape), covariance)

    def __repr__(self) -> str:
        c, h, w = self.mean.shape
        return f"Gaussian({c} × {h} × {w})"

    @property
    def variance(self) -> Float[Tensor, "c h w"]:
        """The diagonal of Σ: shape (c, h, w), float64."""
        return (self.eigenvectors.square() @ self.eigenvalues).view(self.mean.shape)

    def matrix(self, sigma: float) -> Float[Tensor, "d d"]:
        r"""The filter itself, :math:`W = \Sigma (\Sigma + \sigma^2 I)^{-1}`.

        Row d holds the weights with which z makes dimension d. Shape (d, d), float64.

        Raises:
            TypeError: If sigma is not a number.
            ValueError: If it is not positive.
        """
        return self.eigenvectors * self._gain(as_noise_level(sigma)) @ self.eigenvectors.T

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return tuple(self.mean.shape)

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        return self._scale(z, self._gain(sigma))

    def _move(self, device: torch.device) -> None:
        for name in ("mean", "eigenvalues", "eigenvectors"):
            setattr(self, name, getattr(self, name).to(device))

    def sample(
        self, z: Float[Tensor, "b c h w"], sigma_max: float, sigma: float = 0.0
    ) -> Float[Tensor, "b c h w"]:
        r"""The exact solution of this denoiser's probability-flow ODE, from σ_max down to σ.

        Along eigenvector j, :math:`dz_j/d\sigma = \sigma (z_j - \mu_j) / (\lambda_j + \sigma^2)`:

        .. math:: z_j(\sigma) = \mu_j + \Big(
                  \frac{\lambda_j + \sigma^2}{\lambda_j + \sigma_\max^2}\Big)^{1/2}
                  (z_j(\sigma_\max) - \mu_j) .

        Args:
            z: Noisy images at σ_max, shape (b, c, h, w): see :func:`fpmc.diffusion.initial_noise`.
            sigma_max: Where to start, σ_max > 0.
            sigma: Where to end, 0 ≤ σ ≤ σ_max. At 0 the answers are the samples.

        Returns:
            z(σ) with z's shape, type and device; differentiable in z.

        Raises:
            TypeError: If z is not a floating-point tensor, or a noise level not a number.
            ValueError: If z's shape is not the mean's, it holds NaN, or a noise level lies outside
                its range.

        Source: Song et al. (2021), equation (13), solved for a Gaussian; Wang and Vastola (2024).
        """
        start = as_noise_level(sigma_max, "sigma_max")
        end = 0.0 if sigma == 0 else as_noise_level(sigma)
        if end > start:
            raise ValueError(f"sigma: got {sigma}, wanted at most sigma_max = {sigma_max}")
        z = as_images(z, "z", self.mean.shape)
        ratio = (self.eigenvalues + end**2) / (self.eigenvalues + start**2)
        return self._scale(z, ratio.sqrt())

    def _gain(self, sigma: float) -> Float[Tensor, " d"]:
        return self.eigenvalues / (self.eigenvalues + sigma**2)

    def _scale(self, z: Tensor, factors: Float[Tensor, " d"]) -> Tensor:
        """μ + U diag(factors) Uᵀ (z − μ)."""
        u, factors, mean = (a.to(z.device) for a in (self.eigenvectors, factors, self.mean))
        centred = (z.double() - mean).flatten(1)
        return (mean + (centred @ u * factors @ u.T).view(z.shape)).to(z.dtype)


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
