"""Schedules for other data: at each noise level the value whose answers are nearest a network's."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc.checks import (
    as_answer,
    as_fraction,
    as_generator,
    as_images,
    as_noise_level,
    as_whole_number,
)
from fpmc.diffusion import Denoiser, add_noise
from fpmc.methods.schedules import SMALLEST_PATCH
from fpmc.metrics import Estimate, mse
from fpmc.source import Source, as_source

__all__ = ["Search", "errors_around", "search_patch_sizes", "search_thresholds"]

Method = Callable[[Source, Any], Denoiser]
"""A function from a source and a value to a denoiser, such as :func:`fpmc.methods.ls`."""


class Search(NamedTuple):
    """What a search found.

    Attributes:
        best: {σ: value}, a schedule that the methods take; the first given of equally good ones.
        errors: {σ: {value: error}}, the mean squared error to the network of every value tried,
            with its standard error.
    """

    best: dict[float, float]
    errors: dict[float, dict[float, Estimate]]


def search_patch_sizes(
    source: Source,
    network: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Iterable[float] | Tensor,
    method: Method,
    sizes: Iterable[int] | None = None,
    *,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Search:
    r"""The patch size p(σ) with the lowest error to a network, on noisy held-out images.

    .. math:: p(\sigma) = \arg\min_p \frac{1}{b} \sum_{i=1}^{b}
              \frac1D \|D_p(z_i, \sigma) - D_\theta(z_i, \sigma)\|^2

    with :math:`z_i \sim N(x_i, \sigma^2 I)`, the same for every p. The paper takes 1,000 images,
    from the test set or from the network.

    Args:
        source: S.
        network: D_θ, any function from (z, sigma) to images.
        x: Clean images that are not in the source, in [-1, 1], shape (b, c, h, w).
        sigmas: The noise levels, each positive.
        method: A function from a source and a patch size to a denoiser D_p, such as
            :func:`fpmc.methods.ls`.
        sizes: The sides to try, from 1 to the image's shorter side; every odd one from 3 if left
            out.
        seed: A seed or a generator, for z; 0 if neither is given.
        generator: A generator, in the seed's place.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: If an argument is of another type, or a denoiser's answer no tensor.
        ValueError: If x has another shape or NaN, there are no noise levels or no sizes, or one
            lies outside its range, or a denoiser answers in another shape, or both seed and
            generator are given.

    Source: Niedoba et al. (2026), section C.1.
    """
    side = min(as_source(source).shape[1:])
    sizes = range(min(SMALLEST_PATCH, side), side + 1, 2) if sizes is None else sizes
    sizes = [as_whole_number(p, "sizes", 1, side) for p in _listed(sizes, "sizes")]
    draws = as_generator(seed, generator, otherwise=0)
    return _search(source, network, x, sigmas, method, sizes, "sizes", draws, progress)


def search_thresholds(
    source: Source,
    network: Denoiser,
    x: Float[Tensor, "b c h w"],
    sigmas: Iterable[float] | Tensor,
    method: Method,
    thresholds: Iterable[float],
    *,
    seed: int | torch.Generator | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Search:
    """The threshold τ(σ) with the lowest error to a network, found as patch sizes are.

    Args:
        source: S.
        network: D_θ, as in :func:`search_patch_sizes`, like x, sigmas, seed, generator and
            progress.
        x: Clean images that are not in the source, in [-1, 1], shape (b, c, h, w).
        sigmas: The noise levels, each positive.
        method: A function from a source and a threshold to a denoiser, such as
            ``lambda source, tau: fpmc.methods.pspc_flex(source, maps, tau)``, or
            ``partial(fpmc.methods.lukoianov, gaussian=fpmc.methods.wiener(source))``, with the
            covariance decomposed once.
        thresholds: The values to try, from 0 to 1.
        seed: A seed or a generator, for z; 0 if neither is given.
        generator: A generator, in the seed's place.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: As :func:`search_patch_sizes` does.
        ValueError: As :func:`search_patch_sizes` does.
    """
    values = [as_fraction(tau, "thresholds") for tau in _listed(thresholds, "thresholds")]
    draws = as_generator(seed, generator, otherwise=0)
    return _search(source, network, x, sigmas, method, values, "thresholds", draws, progress)


def errors_around(
    values: Sequence[float], middle: float, measure: Callable[[float], float]
) -> dict[float, float]:
    """{value: error} around the middle, on until the lowest error has both its neighbours.

    Args:
        values: What can be tried, rising.
        middle: Where to begin: at the nearest of them.
        measure: The error of a value.
    """
    start = min(range(len(values)), key=lambda place: abs(values[place] - middle))
    low, high = max(start - 1, 0), min(start + 1, len(values) - 1)
    errors = {value: measure(value) for value in values[low : high + 1]}
    while True:
        best = min(sorted(errors), key=errors.get)
        if best == values[low] and low > 0:
            low -= 1
            errors[values[low]] = measure(values[low])
        elif best == values[high] and high < len(values) - 1:
            high += 1
            errors[values[high]] = measure(values[high])
        else:
            return errors


@torch.no_grad()
def _search(source, network, x, sigmas, method, values, name, generator, progress) -> Search:
    x = as_images(x, "x", as_source(source).shape)
    levels = [as_noise_level(sigma, "sigmas") for sigma in _listed(sigmas, "sigmas")]
    for argument, function in (("network", network), ("method", method)):
        if not callable(function):
            raise TypeError(f"{argument}: got {type(function).__name__}, wanted a function")
    values, errors = list(dict.fromkeys(values)), {sigma: {} for sigma in levels}

    def answer(denoiser: Denoiser, called: str, z: Tensor, sigma: float) -> Tensor:
        return as_answer(denoiser(z, sigma), z, called)

    questions = []
    for sigma in levels:
        z = add_noise(x, sigma, generator)
        questions.append((sigma, z, answer(network, "network", z, sigma)))
    with tqdm(total=len(levels) * len(values), desc=name, disable=not progress) as bar:
        for value in values:
            denoiser = method(source, value)
            for sigma, z, target in questions:
                errors[sigma][value] = mse(answer(denoiser, "method", z, sigma), target)
                bar.update()
            del denoiser  # before the next one: each may hold large matrices
    return Search({sigma: min(row, key=row.get) for sigma, row in errors.items()}, errors)


def _listed(values: Any, name: str) -> list:
    """The values as a list that is not empty."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}, wanted a sequence of numbers")
    values = list(values)
    if not values:
        raise ValueError(f"{name}: got an empty sequence, wanted at least one number")
    return values
