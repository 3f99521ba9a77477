"""The posterior mean of a mixture of Gaussians on patches that overlap."""

from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import fold

from fpmc.checks import as_shape, as_whole_number, kind
from fpmc.denoiser import DropIn

__all__ = ["CHUNK", "Mixture", "all_patches"]

CHUNK = 8192
"""Patches at a time."""


class Mixture(DropIn):
    """The posterior mean of a mixture of Gaussians on patches, called as ``denoiser(z, sigma)``.

    Answers are computed in float64; they are differentiable in z.

    Args:
        shape: The images' (c, h, w).
        weights: π > 0, shape (m,), scaled to sum to 1.
        means: μ, shape (m, c, p, p): patches of side p, the same at all places of the image.
        covariances: Σ, shape (m, d, d) with d = c·p²: symmetric, no negative eigenvalues; or
            (1, d, d), one for all.

    Raises:
        TypeError: If the weights, means or covariances are no floating-point tensor, or a side no
            whole number.
        ValueError: If a shape does not fit, a value is NaN or infinite, a weight is not positive or
            a covariance none.

    Source: Zoran and Weiss (2011), section 4; Karras et al. (2022), appendix B.3, for points.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        weights: Float[Tensor, " m"],
        means: Float[Tensor, "m c p p"],
        covariances: Float[Tensor, "l d d"],
    ):
        self._shape = shape = as_shape(shape, "shape")
        for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name}: got {kind(value)}, wanted a floating-point tensor")
            if not value.isfinite().all():
                raise ValueError(f"{name}: got NaN or infinite values, wanted finite ones")
        m, *patch = means.shape
        c, p, square = patch if len(patch) == 3 and m else (0, 0, 0)
        d = c * p * p
        if c != shape[0] or p != square or not 0 < p <= min(shape[1:]):
            raise ValueError(
                f"means: got shape {tuple(means.shape)}, wanted (m, {shape[0]}, p, p) with p up to "
                f"{min(shape[1:])}"
            )
        if tuple(covariances.shape) not in ((m, d, d), (1, d, d)):
            raise ValueError(
                f"covariances: got shape {tuple(covariances.shape)}, wanted ({m}, {d}, {d}) or "
                f"(1, {d}, {d})"
            )
        if tuple(weights.shape) != (m,) or (weights <= 0).any():
            raise ValueError(f"weights: got {weights}, wanted {m} positive ones")
        self.weights = weights.detach().double() / weights.detach().double().sum()
        self.means, covariances = means.detach().double(), covariances.detach().double()
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(covariances)
        least = -1e-6 * covariances.abs().max()
        if (covariances - covariances.mT).abs().max() > -least or (self.eigenvalues < least).any():
            raise ValueError("covariances: got a matrix that is none, wanted Σ = Σᵀ ≥ 0")
        self.eigenvalues = self.eigenvalues.clamp(min=0)
        self.rest = self.eigenvalues.new_zeros(len(self.eigenvalues))

    def __repr__(self) -> str:
        return f"Mixture({len(self.means)} of patches of side {self.p})"

    @classmethod
    def of_directions(
        cls,
        shape: tuple[int, int, int],
        weights: Float[Tensor, " m"],
        means: Float[Tensor, "m c p p"],
        values: Float[Tensor, "l r"],
        vectors: Float[Tensor, "l d r"],
        rest: Float[Tensor, " l"],
    ) -> "Mixture":
        r"""A mixture by its covariances' directions.

        .. math:: \Sigma = U \Lambda U^\top + s\, (I - U U^\top)

        Args:
            shape: The images' (c, h, w).
            weights: π, as above.
            means: μ, as above.
            values: Λ ≥ 0, of each covariance or, with l = 1, of one for all.
            vectors: U. Columns that are orthonormal but for rounding are made so.
            rest: s ≥ 0, the variance in all other directions.

        Raises:
            TypeError: As above.
            ValueError: As above.
        """
        n, d, r = vectors.shape
        if values.shape != (n, r) or rest.shape != (n,) or r > d or n not in (1, len(means)):
            raise ValueError(
                f"values: got shape {tuple(values.shape)}, and {tuple(rest.shape)} of rest and "
                f"{(n, d, r)} of vectors, wanted (l, r), (l,) and (l, d, r)"
            )
        for name, value in (("values", values), ("rest", rest)):
            if not ((value >= 0) & value.isfinite()).all():
                raise ValueError(f"{name}: got negative, NaN or infinite ones, wanted variances")
        if not vectors.isfinite().all():
            raise ValueError("vectors: got NaN or infinite values, wanted finite ones")
        u, upper = torch.linalg.qr(vectors.detach().double())
        made = cls(shape, weights, means, torch.zeros(1, d, d, dtype=u.dtype))
        made.eigenvalues, made.rest = values.detach().double(), rest.detach().double()
        made.eigenvectors = u * upper.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
        return made

    @property
    def rank(self) -> int:
        """How many directions of each covariance have a variance of their own."""
        return self.eigenvalues.shape[1]

    def of_rank(self, r: int) -> "Mixture":
        """The same with r directions of each covariance, and their mean variance in all others.

        An answer costs in proportion to r.

        Args:
            r: How many, those of largest variance: from 1 to the :attr:`rank`.

        Raises:
            TypeError: If r is no whole number.
            ValueError: If it is out of range.

        Source: Tipping and Bishop (1999), mixtures of probabilistic principal components.
        """
        r, d, other = as_whole_number(r, "r", 1, self.rank), self.means[0].numel(), copy(self)
        left = self.eigenvalues[:, :-r].sum(1) + (d - self.rank) * self.rest
        other.eigenvalues, other.eigenvectors = (
            a[..., -r:] for a in (self.eigenvalues, self.eigenvectors)
        )
        other.rest = left / max(d - r, 1)
        return other

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self._shape

    @property
    def p(self) -> int:
        """The side of a patch."""
        return self.means.shape[-1]

    def log_weights(self, patches: Float[Tensor, "n d"], sigma: float) -> Float[Tensor, "n m"]:
        """Log π_m N(z; μ_m, Σ_m + σ²I) but for a constant: of each patch, for each component."""
        return torch.stack([self._term(patches, sigma, i)[0] for i in range(len(self.means))], 1)

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        patches = all_patches(z.double(), self.p)
        b, places, d = patches.shape
        parts = [self._mean(part, sigma) for part in patches.view(-1, d).split(CHUNK)]
        columns = torch.cat(parts).view(b, places, d).mT
        counts = fold(torch.ones_like(columns[:1]), z.shape[2:], self.p)
        return (fold(columns, z.shape[2:], self.p) / counts).to(z.dtype)

    def _mean(self, patches: Float[Tensor, "n d"], sigma: float) -> Float[Tensor, "n d"]:
        peak, mass, total = patches.new_full((len(patches), 1), -torch.inf), 0, 0
        for i in range(len(self.means)):
            ell, answer = self._term(patches, sigma, i)
            top = torch.maximum(peak, ell.unsqueeze(1))
            shrink, weight = (peak - top).exp(), (ell.unsqueeze(1) - top).exp()
            mass, total = mass * shrink + weight, total * shrink + weight * answer
            peak = top
        return total / mass

    def _term(self, patches: Tensor, sigma: float, i: int) -> tuple[Tensor, Tensor]:
        """A component's log-weight of each patch, and its answer."""
        j = i if len(self.eigenvalues) > 1 else 0
        values, u, mean = self.eigenvalues[j], self.eigenvectors[j], self.means[i].flatten()
        noisy = values + sigma**2
        away = patches - mean
        along = away @ u
        log_weight = self.weights[i].log() - (along.square() / noisy + noisy.log()).sum(1) / 2
        others = u.shape[0] - u.shape[1]
        if not others:
            return log_weight, mean + (along * (values / noisy)) @ u.T
        rest = self.rest[j] + sigma**2
        beside = (away.square().sum(1) - along.square().sum(1)).clamp(min=0)
        gain = self.rest[j] / rest
        answer = mean + gain * away + (along * (values / noisy - gain)) @ u.T
        return log_weight - (beside / rest + others * rest.log()) / 2, answer

    def _move(self, device: torch.device) -> None:
        for name in ("weights", "means", "eigenvalues", "eigenvectors", "rest"):
            setattr(self, name, getattr(self, name).to(device))


def all_patches(x: Float[Tensor, "b c h w"], p: int) -> Float[Tensor, "b l d"]:
    """Every patch of side p of every image, flattened, place by place."""
    windows = x.unfold(2, p, 1).unfold(3, p, 1)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, x.shape[1] * p * p)
