r"""Gaussians in place of points: the posterior mean of a mixture, on patches that overlap.

A source puts a point on every image. With a covariance around each point, or around the mean of
many, a patch :math:`x \sim \sum_m \pi_m N(\mu_m, \Sigma_m)` seen as
:math:`z = x + \sigma\varepsilon` has a posterior mean in closed form:

.. math::
    D(z, \sigma)
    &= \sum_m w_m \big[\mu_m + \Sigma_m (\Sigma_m + \sigma^2 I)^{-1} (z - \mu_m)\big], \\
    w_m &\propto \pi_m\, N(z; \mu_m, \Sigma_m + \sigma^2 I) .

Every patch is answered so, and overlapping patches are averaged as PSPC-Square does. With patches
as large as the image, points (Σ = 0) are the optimal denoiser, and one component is the Wiener
filter.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import fold, one_hot

from fpmc.checks import as_positive, as_shape, as_whole_number, kind
from fpmc.denoiser import DropIn
from fpmc.modes import without_autograd
from fpmc.seeds import own_stream
from fpmc.source import Source, as_source

__all__ = ["Mixture", "fit"]

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

    def __repr__(self) -> str:
        return f"Mixture({len(self.means)} of patches of side {self.p})"

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
        along = (patches - mean) @ u
        log_weight = self.weights[i].log() - (along.square() / noisy + noisy.log()).sum(1) / 2
        return log_weight, mean + (along * (values / noisy)) @ u.T

    def _move(self, device: torch.device) -> None:
        for name in ("weights", "means", "eigenvalues", "eigenvectors"):
            setattr(self, name, getattr(self, name).to(device))


@without_autograd
def fit(
    source: Source,
    p: int,
    m: int,
    *,
    patches: int = 20_000,
    steps: int = 10,
    floor: float = 1e-3,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
) -> Mixture:
    r"""A mixture of m Gaussians on a source's patches, by expectation and maximisation.

    .. math:: \pi_m = \overline{w_m}, \qquad \mu_m = \overline{w_m x} / \pi_m, \qquad
              \Sigma_m = \overline{w_m (x - \mu_m)(x - \mu_m)^\top} / \pi_m + \varepsilon I

    Means are over patches, drawn from all images and places with the source's weights. The start
    puts each of them to the nearest of m patches. One component and all patches are the source's
    mean and covariance.

    Args:
        source: S.
        p: The side of a patch, from 1 to the image's shorter side.
        m: How many components.
        patches: How many patches are drawn; if there are fewer in the source, all are taken.
        steps: How often both steps are done.
        floor: ε > 0, the least variance.
        seed: A seed or a generator, for the patches and the start; 0 if left out.
        generator: A generator, in the seed's place.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If one is out of range, or seed and generator are both given.

    Source: Dempster, Laird and Rubin (1977); Zoran and Weiss (2011), of patches.
    """
    _c, h, w = as_source(source).shape
    p, m = as_whole_number(p, "p", 1, min(h, w)), as_whole_number(m, "m", 1)
    floor, noise = as_positive(floor, "floor"), own_stream("mixture", seed, generator)
    x = _drawn(source, p, as_whole_number(patches, "patches", m), noise)
    start = x[torch.randperm(len(x), generator=noise)[:m]]
    nearest = torch.cat([torch.cdist(part, start).argmin(1) for part in x.split(CHUNK)])
    mixture = _maximised(x, one_hot(nearest, m).double(), source.shape, p, floor)
    for _ in range(as_whole_number(steps, "steps", 0)):
        parts = (mixture.log_weights(part, 0.0).softmax(1) for part in x.split(CHUNK))
        mixture = _maximised(x, torch.cat(list(parts)), source.shape, p, floor)
    return mixture


def _maximised(
    x: Float[Tensor, "n d"],
    weights: Float[Tensor, "n m"],
    shape: tuple[int, int, int],
    p: int,
    floor: float,
) -> Mixture:
    """The mixture of these parts of the patches; a component that has hardly any is left out."""
    total = weights.sum(0)
    weights, total = weights[:, total >= 1], total[total >= 1]
    means = weights.T @ x / total.unsqueeze(1)
    covariances = []
    for w, mean, mass in zip(weights.T, means, total, strict=True):
        use = w > 1e-6
        away = x[use] - mean
        covariances.append((away.T * w[use]) @ away / mass)
    noise = floor * torch.eye(x.shape[1], dtype=x.dtype)
    means = means.view(-1, shape[0], p, p)
    return Mixture(shape, total, means, torch.stack(covariances) + noise)


def _drawn(source: Source, p: int, n: int, noise: torch.Generator) -> Float[Tensor, "n d"]:
    """Patches of a source, float64: all of them, or n drawn."""
    places = math.prod(side - p + 1 for side in source.shape[1:])
    if len(source) * places <= n and source.log_weights is None:
        return all_patches(source.read(slice(None), torch.float64), p).flatten(0, 1)
    chances = torch.ones(len(source)) if source.log_weights is None else source.log_weights.exp()
    images = chances.cpu().multinomial(n, replacement=True, generator=noise).sort()[0]
    where = torch.randint(places, (n,), generator=noise)
    parts = zip(images.split(CHUNK), where.split(CHUNK), strict=True)
    return torch.cat([_at(source.read(i, torch.float64), p, place) for i, place in parts])


def _at(x: Float[Tensor, "n c h w"], p: int, where: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """One patch of each image; no other is copied."""
    where, wide = where.to(x.device), x.shape[3] - p + 1
    windows = x.unfold(2, p, 1).unfold(3, p, 1)
    return windows[torch.arange(len(x)), :, where // wide, where % wide].flatten(1)


def all_patches(x: Float[Tensor, "b c h w"], p: int) -> Float[Tensor, "b l d"]:
    """Every patch of side p of every image, flattened, place by place."""
    windows = x.unfold(2, p, 1).unfold(3, p, 1)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, x.shape[1] * p * p)
