r"""A weighted sum of denoisers, and the weights that bring it nearest to a network.

.. math:: D(z, \sigma) = \sum_m a_m(\sigma)\, D_m(z, \sigma), \qquad a_m(\sigma) \ge 0 .

Denoisers that err in different ways err less together. At each noise level the weights are those of
least squares on the network's answers to noisy images.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion
from fpmc.checks import as_answer, as_fraction, as_noise_level, as_whole_number, kind
from fpmc.denoiser import DropIn
from fpmc.levels import nearest_level
from fpmc.modes import without_autograd
from fpmc.seeds import own_stream
from fpmc.source import Source

__all__ = ["Blend", "fit", "nonnegative"]


class Blend(DropIn):
    r"""A weighted sum of denoisers, called as ``denoiser(z, sigma)``.

    A denoiser whose weight is 0 at a noise level is not asked there. Answers are differentiable
    where those of the denoisers are.

    Args:
        denoisers: {name: D_m}, of images of one shape, each with ``.shape`` as all of this package
            have it.
        weights: {σ: {name: a_m}}, finite; a name that is left out has weight 0. The noise level
            nearest on a logarithmic scale answers.

    Raises:
        TypeError: If denoisers or weights are no mappings, a denoiser cannot be called or has no
            shape, or a weight is no number.
        ValueError: If there is no denoiser or no level, their shapes differ, a name is of none of
            them, a weight is NaN or infinite, or all of a level are 0.
    """

    def __init__(
        self,
        denoisers: Mapping[str, diffusion.Denoiser],
        weights: Mapping[float, Mapping[str, float]],
    ):
        _check(denoisers)
        _refuse_others(weights, "weights", "{sigma: {name: number}}")
        shapes = {name: tuple(one.shape) for name, one in denoisers.items()}
        self._shape, *others = set(shapes.values())
        if others:
            raise ValueError(f"denoisers: got images of shapes {shapes}, wanted one for all")
        self.denoisers = dict(denoisers)
        self.weights = {
            as_noise_level(sigma, "weights, a key"): self._checked(level, sigma)
            for sigma, level in weights.items()
        }
        self._at = nearest_level(self.weights, "weights")

    def _checked(self, weights: Mapping[str, float], sigma: float) -> dict[str, float]:
        """The weights of a level that are not 0, in the denoisers' order."""
        told = f"weights at sigma = {float(sigma):.6g}"
        _refuse_others(weights, told, "{name: number}")
        if unknown := [name for name in weights if name not in self.denoisers]:
            known = ", ".join(map(repr, self.denoisers))
            raise ValueError(f"{told}: got one of {unknown[0]!r}, wanted those of {known}")
        for name, value in weights.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{told}: got {kind(value)} for {name!r}, wanted a number")
            if not math.isfinite(value):
                raise ValueError(f"{told}: got {value} for {name!r}, wanted a finite number")
        found = {name: float(weights[name]) for name in self.denoisers if weights.get(name)}
        if not found:
            raise ValueError(f"{told}: got zeros alone, wanted one that is not")
        return found

    def __repr__(self) -> str:
        return f"Blend({', '.join(self.denoisers)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self._shape

    def at(self, sigma: float) -> dict[str, float]:
        """The weights at a noise level σ > 0, without those that are 0."""
        return dict(self._at(as_noise_level(sigma)))

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        parts = (a * self.denoisers[name](z, sigma) for name, a in self._at(sigma).items())
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def _move(self, device: torch.device) -> None:
        self.denoisers = {name: one.to(device) for name, one in self.denoisers.items()}


def _refuse_others(value: Mapping, name: str, wanted: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: got {kind(value)}, wanted {wanted}")


def _check(denoisers: Mapping[str, diffusion.Denoiser]) -> None:
    _refuse_others(denoisers, "denoisers", "{name: denoiser}")
    if not denoisers:
        raise ValueError("denoisers: got none, wanted at least one")
    for name, one in denoisers.items():
        if not callable(one) or not hasattr(one, "shape"):
            raise TypeError(
                f"denoisers: got {kind(one)} as {name!r}, wanted a denoiser with a shape"
            )


@without_autograd
def fit(
    denoisers: Mapping[str, diffusion.Denoiser],
    network: diffusion.Denoiser,
    images: Tensor,
    sigmas: Sequence[float],
    *,
    least: float = 0.0,
    batch: int = 32,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Blend:
    r"""The blend that is nearest to a network on noisy images.

    .. math:: a(\sigma) = \arg\min_{a \ge 0} \sum_i \Big\| \sum_m a_m D_m(x_i + \sigma\varepsilon_i,
              \sigma) - D(x_i + \sigma\varepsilon_i, \sigma) \Big\|^2

    Args:
        denoisers: {name: D_m}, as :class:`Blend` takes them.
        network: D, whose answers are to be met.
        images: Clean images, uint8 or float in [-1, 1], shape (n, c, h, w); such that no denoiser
            has them in its source.
        sigmas: The noise levels.
        least: A share of the largest weight: denoisers with less are left out of a level, and the
            others' weights found again.
        batch: Images at a time.
        seed: A seed or a generator, for the noise; 0 if left out.
        generator: A generator, in the seed's place.
        progress: Whether to show a bar.

    Raises:
        TypeError: As :class:`Blend`; if the network cannot be called, or the levels are no
            sequence of numbers.
        ValueError: As :class:`Blend`; if there are no images or levels, a share is none, the images
            have another shape, or an answer has, or is not finite.
    """
    noise, least = own_stream("blend", seed, generator), as_fraction(least, "least")
    x = Source(images).read(slice(None), torch.float32)
    batch = as_whole_number(batch, "batch", 1)
    _check(denoisers)
    if not callable(network):
        raise TypeError(f"network: got {kind(network)}, wanted a denoiser")
    shape = tuple(next(iter(denoisers.values())).shape)
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"images: got shape {tuple(x.shape)}, wanted (n, {', '.join(map(str, shape))})"
        )
    weights = {}
    for sigma in tqdm(_levels(sigmas), desc="blend", disable=not progress):
        z = diffusion.add_noise(x, sigma, noise)
        *columns, target = (
            torch.cat([_finite(one, part, sigma, name) for part in z.split(batch)]).flatten()
            for name, one in (*denoisers.items(), ("network", network))
        )
        found = nonnegative(torch.stack(columns, 1), target, least)
        weights[sigma] = dict(zip(denoisers, found.tolist(), strict=True))
    return Blend(denoisers, weights)


def _levels(sigmas: Sequence[float]) -> list[float]:
    try:
        levels = [as_noise_level(sigma, "sigmas") for sigma in sigmas]
    except TypeError as error:
        raise TypeError(f"sigmas: got {sigmas!r}, wanted a sequence of noise levels") from error
    if not levels:
        raise ValueError("sigmas: got none, wanted at least one")
    return levels


def _finite(one: diffusion.Denoiser, z: Tensor, sigma: float, name: str) -> Tensor:
    answer = as_answer(one(z, sigma), z, name)
    if not answer.isfinite().all():
        raise ValueError(f"{name}: gave NaN or infinite values at sigma = {sigma:.6g}")
    return answer


def nonnegative(
    columns: Float[Tensor, "n m"], target: Float[Tensor, " n"], least: float = 0.0
) -> Float[Tensor, " m"]:
    """The weights a ≥ 0 of least squares, argmin ‖columns · a − target‖², float64.

    Args:
        columns: What is summed, a column each.
        target: What is to be met.
        least: Columns with less than this share of the largest weight are left out, and the others'
            weights found again.

    Source: Lawson and Hanson (1974).
    """
    from sklearn.linear_model import LinearRegression  # which takes as long as torch

    columns, target = columns.double().cpu().numpy(), target.double().cpu().numpy()

    def solved(use: list[int]) -> Tensor:
        model = LinearRegression(fit_intercept=False, positive=True)
        weights = torch.zeros(columns.shape[1], dtype=torch.float64)
        weights[use] = torch.from_numpy(model.fit(columns[:, use], target).coef_)
        return weights

    weights = solved(list(range(columns.shape[1])))
    if least and weights.max() > 0:
        weights = solved((weights >= least * weights.max()).nonzero().flatten().tolist())
    return weights
