"""Patch set posterior composites: denoise every patch on its own, average where they overlap."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import kind
from fpmc.collection import FPMC
from fpmc.levels import Constant, Latest, nearest_level
from fpmc.methods.schedules import ScheduledBox, own, patch_schedule, threshold_schedule
from fpmc.operators import Dense, Ones, Operator
from fpmc.source import Source, as_source

__all__ = ["pspc_flex", "pspc_square"]


def pspc_square(
    source: Source,
    patch_sizes: int | Mapping[float, int] | str | None = None,
    *,
    budget: int | None = None,
) -> FPMC:
    r"""PSPC-Square: q_k is the square of side p(σ) centred at k, where that fits, and r_k = q_k.

    Each p × p patch of z is replaced by its posterior mean over the training patches at the same
    place, and overlapping patches are averaged. With p the side of the image it is the optimal
    denoiser.

    Args:
        source: S.
        patch_sizes: p, from 1 to the image's shorter side: a number, a {sigma: p} mapping, or a
            schedule's name, published ("cifar10", ...) or found ("digits", "photos"): see
            :func:`fpmc.methods.schedules.patch_schedule`. The schedule of the source's dataset if
            left out.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, or a patch size not a whole number.
        ValueError: If a patch size lies outside its range, no schedule has that name, or it is left
            out and the source's dataset has none.

    Source: Niedoba et al. (2025); Niedoba et al. (2026), equations (35) to (38).
    """
    shape = as_source(source).shape[1:]
    patch_sizes = own(patch_sizes, source, "pspc_square", "patch_sizes")
    squares = ScheduledBox(shape, patch_schedule(patch_sizes, "pspc_square", min(shape)))
    return FPMC(squares, squares, source, budget=budget)


def pspc_flex(
    source: Source,
    sensitivity: Float[Tensor, "k h w"] | Mapping[float, Float[Tensor, "k h w"]],
    thresholds: float | Mapping[float, float] | str | None = None,
    *,
    budget: int | None = None,
) -> FPMC:
    r"""PSPC-Flex: q_k is the smallest set of pixels with the share τ(σ) of k's sensitivity.

    Pixel k's map says how much a network's output at k depends on every input pixel. Its pixels
    are taken in falling order (of equal ones, the first in row order first) until their sum reaches
    τ, and r_k = q_k. With τ = 1 it is the optimal denoiser, by one estimator over the whole image.
    A pixel that no set holds, where the composite divides by zero, is answered by its own
    estimator.

    Args:
        source: S.
        sensitivity: The maps, a row per output pixel, row by row: floating-point, shape
            (h·w, h, w), non-negative, each with a sum of 1 (within a thousandth; the rest is
            scaled away). Or a {sigma: maps} mapping, of which the nearest sigma on a logarithmic
            scale wins.
        thresholds: τ, above 0 and up to 1: a number, a {sigma: τ} mapping, or a schedule's name,
            published ("cifar10", ...) or found ("digits", "photos"): see
            :mod:`fpmc.methods.schedules`. The schedule of the source's dataset if left out.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, the maps are no floating-point
            tensor, or a threshold is no number.
        ValueError: If the maps have another shape, negative or non-finite values or another sum, a
            threshold lies outside its range, no schedule has that name, or it is left out and the
            source's dataset has none.

    Source: Niedoba et al. (2025); Niedoba et al. (2026), equations (39) to (42).
    """
    h, w = as_source(source).shape[1:]
    thresholds = own(thresholds, source, "pspc_flex", "thresholds")
    tau = threshold_schedule(thresholds, "pspc_flex", "thresholds", zero=False)
    if isinstance(sensitivity, Mapping):
        checked = {sigma: _as_maps(maps, h, w) for sigma, maps in sensitivity.items()}
        maps = nearest_level(checked, "sensitivity")
    else:
        maps = Constant(_as_maps(sensitivity, h, w))
    level = Latest(partial(_level, maps, tau))
    return FPMC(partial(_of, 0, level), partial(_of, 1, level), source, budget=budget)


def _level(
    maps: Callable[[float], Tensor], tau: Callable[[float], float], sigma: float
) -> tuple[Operator, Operator]:
    """Q and R of PSPC-Flex."""
    if tau(sigma) == 1:
        everything = Ones(maps(sigma).shape[1:])
        return everything, everything
    masks = _smallest_sets(maps(sigma), tau(sigma))
    return Dense(masks), Dense(_covering(masks))


def _of(index: int, level: Callable[[float], tuple[Operator, Operator]], sigma: float) -> Operator:
    return level(sigma)[index]


def _as_maps(maps: Any, h: int, w: int) -> Float[Tensor, "k h w"]:
    """Check sensitivity maps."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"sensitivity: got {kind(maps)}, wanted a floating-point tensor")
    if tuple(maps.shape) != (h * w, h, w):
        raise ValueError(
            f"sensitivity: got shape {tuple(maps.shape)}, wanted ({h * w}, {h}, {w}), a map per "
            "pixel"
        )
    if not maps.isfinite().all() or (maps < 0).any():
        raise ValueError("sensitivity: got negative or non-finite values, wanted values ≥ 0")
    sums = maps.detach().double().sum((1, 2))
    if (sums - 1).abs().max() > 1e-3:
        raise ValueError(
            f"sensitivity: got maps with sums from {sums.min():.4g} to {sums.max():.4g}, wanted "
            "every map to sum to 1"
        )
    return maps.detach()


def _smallest_sets(maps: Float[Tensor, "k h w"], tau: float) -> Float[Tensor, "k h w"]:
    """Zeros and ones: the fewest pixels whose sum reaches τ > 0, but for rounding."""
    flat = maps.double().flatten(1)
    falling, order = (flat / flat.sum(1, keepdim=True)).sort(dim=1, descending=True, stable=True)
    before = torch.zeros_like(falling)
    before[:, 1:] = falling.cumsum(1)[:, :-1]
    taken = before < tau * (1 - math.sqrt(torch.finfo(falling.dtype).eps))
    return torch.zeros_like(flat).scatter_(1, order, taken.double()).view(maps.shape)


def _covering(masks: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    """The masks, and each pixel that none of them holds in its own."""
    bare = (masks.sum(0) == 0).flatten()
    return masks + torch.diag(bare.double()).view(masks.shape) if bare.any() else masks
