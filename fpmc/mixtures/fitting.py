"""Fitting a mixture to a source's patches, by expectation and maximisation."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from fpmc.checks import as_positive, as_whole_number
from fpmc.mixtures.mixture import CHUNK, Mixture, all_patches
from fpmc.modes import without_autograd
from fpmc.seeds import own_stream
from fpmc.source import Source, as_source

__all__ = ["fit"]

DELAY = 5
"""Seconds before a bar is shown."""


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
    progress: bool = False,
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
        progress: Whether to show a bar, where the fit takes more than a few seconds.

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
    rounds = range(as_whole_number(steps, "steps", 0))
    for _ in tqdm(rounds, desc="fitting a mixture", disable=not progress, delay=DELAY):
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
    noise = floor * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
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
