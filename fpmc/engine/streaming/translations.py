r"""Sums over the source and over translations of its images, without making them.

A translation set turns the source of an estimator k into
:math:`S_k = \{T x_n : T \in \mathcal{T}_k\}`. An estimator sees a patch of z, and a patch of
:math:`T x_n` is another patch of :math:`x_n`: so the posterior runs over the patches at several
places, and a region's estimators share them. For all of a region's patches at once, the distances
are one matrix product,

.. math:: -\frac{\|z_k - x_{nk'}\|^2}{2\sigma^2} = \frac{z_k^\top x_{nk'} - \|x_{nk'}\|^2 / 2}
          {\sigma^2} + \text{const}(k),

with :math:`z_k` the patch of z at k and :math:`x_{nk'}` that of :math:`x_n` at k', flattened. All
of it is float64; the expansion cancels no more than it does in
:mod:`fpmc.engine.streaming.backend`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, resolve, too_small
from fpmc.engine.problem import Problem, log_weights
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.streaming.posterior import mean_and_evidence
from fpmc.modes import without_autograd
from fpmc.operators import Ones
from fpmc.source import Source

__all__ = ["Region", "Span", "denoise_cyclic", "denoise_region"]


class Span(NamedTuple):
    """The places along one axis that share their source patches.

    Attributes:
        seen: The pixels their patches cover.
        side: The side of a patch.
        centres: The pixels they answer, as many as there are patches of that side.
    """

    seen: slice
    side: int
    centres: slice

    @property
    def count(self) -> int:
        """The number of places."""
        return self.centres.stop - self.centres.start


class Region(NamedTuple):
    """Places in an image whose estimators share the source patches of all of them."""

    rows: Span
    columns: Span

    @property
    def places(self) -> int:
        """The number of places."""
        return self.rows.count * self.columns.count

    @property
    def centres(self) -> tuple[slice, slice]:
        """The pixels they answer."""
        return self.rows.centres, self.columns.centres

    def patches(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "m d"]:
        """Every patch of the region, flattened, image by image and row by row."""
        seen = x[..., self.rows.seen, self.columns.seen]
        windows = seen.unfold(2, self.rows.side, 1).unfold(3, self.columns.side, 1)
        return windows.movedim(1, 3).flatten(0, 2).flatten(1)


@without_autograd
def denoise_region(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    region: Region,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b c m m2"]:
    """The posterior means of a region's pixels, over all source patches of the region.

    For a noisy and a source image it takes the square of the number of places times the number of
    values of a patch multiplications, and the square of the number of places exponentials.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        region: The places.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.

    Returns:
        The means with z's type, for the rows and columns of the region's pixels. Not
        differentiable.

    Raises:
        ValueError: If the budget is too small for a patch against one source image's.
    """
    size = _sizes(z, region, source, resolve(budget))
    answer = z.new_empty(*z.shape[:2], region.rows.count, region.columns.count)
    for start in range(0, len(z), size.b):
        part = slice(start, start + size.b)
        wanted = region.patches(z[part].double()).split(size.rows)
        softmaxes = [OnlineSoftmax() for _ in wanted]
        for values, patches, bias in _tiles(sigma, region, source, size.n, z.device):
            for rows, softmax in zip(wanted, softmaxes, strict=True):
                ell = torch.addmm(bias, rows, patches.T, alpha=sigma**-2)
                softmax.add(softmax.weigh(softmax.take(ell)) @ values)
        found = torch.cat([softmax.mean() for softmax in softmaxes])
        answer[part] = found.view(-1, *answer.shape[2:], z.shape[1]).movedim(-1, 1)
    return answer


@without_autograd
def denoise_cyclic(
    z: Float[Tensor, "b c h w"], sigma: float, source: Source, budget: int | None = None
) -> Float[Tensor, "b c h w"]:
    r"""The optimal denoiser over all cyclic translations T of the source images.

    Translating :math:`x_n` is translating z back, so the answer mixes those of the optimal denoiser
    to the translations of z, each weighted with how likely the source makes it:

    .. math:: \hat{x} = \sum_T \pi_T\, T D^*(T^{-1} z), \qquad
              \pi_T \propto \sum_n S(x_n) \exp\big(-\|T^{-1} z - x_n\|^2 / 2\sigma^2\big) .

    It takes h w times as long as the optimal denoiser.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.

    Returns:
        x̂ with z's shape, type and device. Not differentiable.

    Raises:
        ValueError: If the budget is too small for one translation against one source image.
    """
    h, w = z.shape[2:]
    everything, answer = Ones((h, w)), torch.empty_like(z)
    problem = Problem(everything, everything, source, sigma, budget)
    per_z = (4 * w + 4) * z[0].numel() * FLOAT64  # its translations, and their answers
    b = max(1, min(len(z), problem.budget // 2 // per_z))
    for start in range(0, len(z), b):
        part = z[start : start + b].double()
        softmax = OnlineSoftmax()
        for down in range(h):
            back = torch.cat([part.roll((-down, -right), (2, 3)) for right in range(w)])
            means, evidence = mean_and_evidence(back, problem, held=b * per_z)
            means = [x.roll((down, right), (2, 3)) for right, x in enumerate(means.chunk(w))]
            weights = softmax.weigh(softmax.take(evidence.view(w, -1).T.contiguous()))
            softmax.add(torch.einsum("bm,bmd->bd", weights, torch.stack(means, 1).flatten(2)))
        answer[start : start + b] = softmax.mean().view_as(part)
    return answer


def _tiles(
    sigma: float, region: Region, source: Source, n: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "m c"], Float[Tensor, "m d"], Float[Tensor, " m"]]]:
    """For each tile of the source: the pixels at the patches' places, the patches, and what ℓ has
    without z.
    """
    prior = log_weights(source, torch.empty(0, dtype=torch.float64, device=device))
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = source.read(index, torch.float64, device)
        patches = region.patches(x)
        bias = patches.square().sum(1).mul_(-0.5 / sigma**2)
        if prior is not None:
            bias += prior[index].repeat_interleave(region.places)
        values = x[(..., *region.centres)]
        yield values.movedim(1, -1).flatten(0, 2), patches, bias


class _Sizes(NamedTuple):
    """b noisy images at a time; of those, so many patches against all patches of n images."""

    b: int
    rows: int
    n: int


def _sizes(z: Tensor, region: Region, source: Source, budget: int) -> _Sizes:
    """Sizes that keep :func:`denoise_region` under its budget, and on a CPU its arrays in cache."""
    places, c = region.places, source.shape[0]
    dimensions, d = math.prod(source.shape), c * region.rows.side * region.columns.side
    per_z = (2 * dimensions + places * (2 * d + 6 * c + 8)) * FLOAT64
    per_x = (5 * dimensions + places * (3 * d + 3 * c + 6)) * FLOAT64
    per_pair = places * FLOAT64  # one patch of z against an image's
    least = per_z + per_x + per_pair
    if budget < least:
        raise too_small(budget, least, f"{places} patches of an image of shape {source.shape}")
    cached = CACHE_FRIENDLY // 8 if z.device.type == "cpu" else budget
    b = max(1, min(len(z), budget // 4 // per_z))
    room = budget - b * per_z
    most = max(1, min(len(source), min(room // 2, cached) // per_x))
    pairs = max(1, min(room - most * per_x, cached) // per_pair)
    n = min(most, max(math.isqrt(pairs // places), pairs // (b * places), 1))
    return _Sizes(b, min(b * places, pairs // n), n)
