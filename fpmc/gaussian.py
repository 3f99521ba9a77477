r"""Gaussian data: its optimal denoiser, the Wiener filter, and its sampler, in closed form.

Under :math:`x \sim N(\mu, \Sigma)` and :math:`z = x + \sigma\varepsilon` the posterior mean is
linear in z. In the eigenvectors of :math:`\Sigma = U \Lambda U^\top` every direction has a formula
of its own: for the denoiser a factor, for the probability-flow ODE a solution.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_images, as_noise_level, as_positive, as_whole_number, kind
from fpmc.denoiser import DropIn, question_of_one_level
from fpmc.features import Features
from fpmc.levels import Latest
from fpmc.modes import lasting
from fpmc.moments import moments, principal_axes
from fpmc.seeds import own_stream
from fpmc.source import Source, as_source

__all__ = ["Gaussian"]


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
        eigenvalues: λ ≥ 0, rising, shape (r,), float64: all d, or of a source of n < d images
            the r < n that are not zero.
        eigenvectors: U, a column per eigenvalue, shape (d, r), float64.

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

        The eigenvectors are those of the covariance, or of fewer images than dimensions the
        :func:`fpmc.moments.principal_axes`; the filter is the same but for the rounding of Σ.

        Args:
            source: S.
            budget: Bytes of working memory for the sums over the source; 1 GiB if left out. The
                decomposition that follows takes about three more matrices of shape (m, m), with m
                the lesser of n and d.

        Raises:
            TypeError: If the source is not an :class:`fpmc.Source`.
            ValueError: If the budget is too small for the matrix that is decomposed.
        """
        source = as_source(source)
        if len(source) >= math.prod(source.shape):
            mean, covariance = moments(source, budget)
            return cls(mean.view(source.shape), covariance)
        gaussian = cls.__new__(cls)
        with lasting():
            mean, gaussian.eigenvalues, gaussian.eigenvectors = principal_axes(source, budget)
            gaussian.mean = mean.view(source.shape)
        return gaussian

    def __repr__(self) -> str:
        c, h, w = self.mean.shape
        return f"Gaussian({c} × {h} × {w})"

    @property
    def variance(self) -> Float[Tensor, "c h w"]:
        """The diagonal of Σ, shape (c, h, w), float64."""
        return (self.eigenvectors.square() @ self.eigenvalues).view(self.mean.shape)

    def matrix(self, sigma: float, rows: slice = slice(None)) -> Float[Tensor, "m d"]:
        r"""The filter itself, :math:`W = \Sigma (\Sigma + \sigma^2 I)^{-1}`, or some of its rows.

        Row d holds the weights with which z makes dimension d.

        Args:
            sigma: The noise level σ > 0.
            rows: Which rows; all d of them if left out.

        Returns:
            Shape (m, d), float64, with m the number of rows.

        Raises:
            TypeError: If sigma is not a number, or rows no slice.
            ValueError: If sigma is not positive.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"rows: got {kind(rows)}, wanted a slice")
        gain = self._gain(as_noise_level(sigma))
        return self.eigenvectors[rows] * gain @ self.eigenvectors.T

    def spectral(self, function: Callable[[Tensor], Tensor]) -> Float[Tensor, "d d"]:
        r"""A function of Σ, :math:`U f(\Lambda) U^\top`, float64.

        Args:
            function: f, from eigenvalues λ ≥ 0 to as many values. Directions in which the source
                does not vary have λ = 0, whether or not they are among the eigenvectors.
        """
        u = self.eigenvectors
        if len(u) == len(self.eigenvalues):
            return u * function(self.eigenvalues) @ u.T
        rest = function(self.eigenvalues.new_zeros(1))
        scaled = u * (function(self.eigenvalues) - rest) @ u.T
        return scaled.diagonal_scatter(scaled.diagonal() + rest)

    def principal(self, r: int) -> Features:
        """Features: the r principal components of largest variance, falling, shape (1, 1, r).

        A distance in them is one of low rank, and each component that is left out makes it cheaper.

        Args:
            r: How many, from 1 to as many as there are eigenvectors.

        Raises:
            TypeError: If r is no whole number.
            ValueError: If it is out of range.
        """
        r = as_whole_number(r, "r", 1, len(self.eigenvalues))
        return Features(self.eigenvectors[:, -r:].flip(1).T, self.shape, (1, 1, r))

    def whitening(self, share: float = 1.0) -> Callable[[float], Features]:
        r"""Features in which a share t of the covariance and the noise together are white.

        .. math:: \Phi = \sigma\, (t \Sigma + \sigma^2 I)^{-1/2}

        The root is the symmetric one, so that a feature is a pixel less what the others say of it.

        Args:
            share: t > 0.

        Returns:
            A function from σ to Φ, as :class:`fpmc.FPMC` takes it.

        Raises:
            TypeError: If the share is no number.
            ValueError: If it is not positive.
        """
        return Latest(partial(self._whitening, as_positive(share, "share")))

    def _whitening(self, share: float, sigma: float) -> Features:
        ratio = share / sigma**2
        return Features(self.spectral(lambda values: (1 + ratio * values).rsqrt()), self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return tuple(self.mean.shape)

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        return self._scale(z, self._gain(sigma))

    def _move(self, device: torch.device) -> None:
        for name in ("mean", "eigenvalues", "eigenvectors"):
            setattr(self, name, getattr(self, name).to(device))

    def draws(
        self,
        z: Float[Tensor, "b c h w"],
        sigma: float,
        n: int = 1,
        seed: int | torch.Generator | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "m b c h w"]:
        r"""Draws from p(x | z), which is Gaussian, too.

        .. math:: x \mid z \sim N\big(D(z, \sigma),\ \sigma^2 \Sigma (\Sigma + \sigma^2 I)^{-1}\big)

        Args:
            z: Noisy images, shape (b, c, h, w).
            sigma: The noise level σ > 0, one for all.
            n: Draws for each, at least 1.
            seed: A seed, 0 if left out, or a generator.
            generator: A generator, in the seed's place.

        Returns:
            Shape (n, b, c, h, w), of z's type.

        Raises:
            TypeError: If z is not a floating-point tensor, sigma not a number, n not a whole one,
                or the seed neither seed nor generator.
            ValueError: If z's shape is not the mean's, it holds NaN, a number is out of range, or
                seed and generator are both given.
        """
        m, noise = as_whole_number(n, "n", 1), own_stream("gaussian", seed, generator)
        z, level = question_of_one_level(z, sigma, self.shape)
        u = self.eigenvectors.to(z.device)
        spread = level * self._gain(level).sqrt().to(z.device)
        xi = torch.randn(
            m, len(z), len(spread), generator=noise, dtype=torch.float64, device=noise.device
        )
        return self._answer(z, level) + ((xi.to(z.device) * spread) @ u.T).view(m, *z.shape).to(z)

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
        return self._scale(z, ratio.sqrt(), end / start)

    def _gain(self, sigma: float) -> Float[Tensor, " d"]:
        return self.eigenvalues / (self.eigenvalues + sigma**2)

    def _scale(self, z: Tensor, factors: Float[Tensor, " r"], others: float = 0.0) -> Tensor:
        """μ + U diag(factors) Uᵀ (z − μ), and what is orthogonal to U times another factor."""
        u, factors, mean = (a.to(z.device) for a in (self.eigenvectors, factors, self.mean))
        centred = (z.double() - mean).flatten(1)
        scaled = centred @ u * (factors - others) @ u.T + others * centred
        return (mean + scaled.view(z.shape)).to(z.dtype)
