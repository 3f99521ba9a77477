"""Locality from data statistics: each dimension's posterior sees what its Wiener filter reads."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import kind
from fpmc.collection import FPMC
from fpmc.gaussian import Gaussian
from fpmc.levels import Latest
from fpmc.methods.schedules import own, threshold_schedule
from fpmc.operators import Dense, Identity
from fpmc.source import Source, as_source

__all__ = ["lukoianov"]

ROWS = 256
"""Rows of the filter that are held at a time."""


def lukoianov(
    source: Source,
    thresholds: float | Mapping[float, float] | str | None = None,
    *,
    gaussian: Gaussian | None = None,
    budget: int | None = None,
) -> FPMC:
    r"""An estimator per dimension d, whose query is row d of the Wiener filter, made binary.

    .. math:: q_d = 1\big[\,|W_{d\cdot}| \ge \tau W_{dd}\,\big], \qquad r_d = \text{one-hot at } d,
              \qquad W = \Sigma (\Sigma + \sigma^2 I)^{-1}

    With τ = 0 every q is 1, and it is the optimal denoiser. Where the data never vary,
    :math:`W_{d\cdot} = 0` has no peak to compare with: such a dimension sees itself alone, and
    answers with its constant, as it would under any q. A call takes N D² multiplications an image.

    Args:
        source: S.
        thresholds: τ, from 0 to 1: a number, a {sigma: τ} mapping (the nearest sigma on a
            logarithmic scale wins), or a schedule's name, published ("cifar10", ...) or found
            ("digits", "photos"): see :mod:`fpmc.methods.schedules`. The schedule of the source's
            dataset if left out.
        gaussian: The mean and covariance that the filter is made from; the source's own if left
            out. Give one to decompose it once for several denoisers.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`, the Gaussian none, or a threshold
            not a number.
        ValueError: If a threshold lies outside its range, no schedule has that name, it is left out
            and the source's dataset has none, or the Gaussian is one of other images.

    Source: Lukoianov et al. (2025); Niedoba et al. (2026), equations (69) to (73) and (89) to (91).
    """
    thresholds = own(thresholds, as_source(source), "lukoianov", "thresholds")
    tau = threshold_schedule(thresholds, "lukoianov", "thresholds")
    if gaussian is None:
        gaussian = Gaussian.of_source(source, budget)
    elif not isinstance(gaussian, Gaussian):
        raise TypeError(f"gaussian: got {kind(gaussian)}, wanted an fpmc.gaussian.Gaussian")
    elif tuple(gaussian.mean.shape) != source.shape:
        raise ValueError(f"gaussian: got {gaussian!r}, wanted one of images {source.shape}")
    queries = Latest(partial(_queries, gaussian, tau))
    return FPMC(queries, Identity(source.shape), source, budget=budget)


def _queries(gaussian: Gaussian, tau: Callable[[float], float], sigma: float) -> Dense:
    return Dense(_masks(gaussian, sigma, tau(sigma)))


def _masks(gaussian: Gaussian, sigma: float, tau: float) -> Float[Tensor, "d c h w"]:
    """Row d is q_d, of zeros and ones, in two bytes each; some rows of W are held at a time."""
    variance = gaussian.variance.flatten()
    d = len(variance)
    constant = variance <= d * torch.finfo(variance.dtype).eps * variance.max()
    masks = torch.empty(d, d, dtype=torch.float16, device=variance.device)
    for start in range(0, d, ROWS):
        part = slice(start, start + ROWS)
        rows = gaussian.matrix(sigma, part)
        peaks = rows.diagonal(start).unsqueeze(1)
        masks[part] = rows.abs() >= tau * peaks
    if tau > 0:
        masks[constant] = 0
        masks.diagonal()[constant] = 1
    return masks.view(-1, *gaussian.mean.shape)
