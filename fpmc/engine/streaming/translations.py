r"""Sums over the source and over translations of its images, without making them.

A translation set turns the source of an estimator k into
:math:`S_k = \{T x_n : T \in \mathcal{T}_k\}`. An estimator sees a patch of z, and a patch of
:math:`T x_n` is another patch of :math:`x_n`: so the posterior runs over the patches at several
places, and a place's estimators share them. For all of a region's patches at once, the distances
are one matrix product,

.. math:: -\frac{\|z_k - x_{nk'}\|^2}{2\sigma^2} = \frac{z_k^\top x_{nk'} - \|x_{nk'}\|^2 / 2}
          {\sigma^2} + \text{const}(k),

with :math:`z_k` the patch of z at k and :math:`x_{nk'}` that of :math:`x_n` at k', flattened. The
softmax runs with a running maximum over the source, as in :mod:`fpmc.engine.streaming`, and all of
it is float64; the expansion cancels no more than it does there.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.engine.memory import CACHE_FRIENDLY, DEFAULT_BUDGET, FLOAT64
from fpmc.engine.streaming import backend as streaming
from fpmc.engine.streaming.backend import Streaming
from fpmc.modes import without_autograd
from fpmc.operators import Box, Identity, Ones
from fpmc.source import Source

__all__ = ["denoise_cyclic", "denoise_patches"]


@without_autograd
def denoise_patches(
    z: Float[Tensor, "b c h w"], sigma: float, p: int, source: Source, budget: int | None = None
) -> Float[Tensor, "b c h w"]:
    r"""Each pixel's posterior mean over all source patches of its boundary class.

    Along an axis, a pixel whose square of side p fits may move to every other such pixel; one whose
    square crosses the border, and is clipped there, stays. So a pixel in the middle shares its
    source patches with the whole middle, one at a vertical border with its column, one at a
    horizontal border with its row, and one in a corner with none.

    With m = h − p + 1 and m' = w − p + 1 places along the axes, the middle takes
    (m m')² c p² multiplications and (m m')² exponentials for a noisy image and a source image, the
    borders (p − 1)(m² + m'²) c p² at most, the corners c h w log p.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        p: The side of the square, 1 ≤ p ≤ min(h, w), centred as in :class:`fpmc.operators.Box`.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.

    Returns:
        x̂ with z's shape, type and device. Not differentiable.

    Raises:
        ValueError: If the budget is too small for a patch against one source image's.
    """
    h, w = z.shape[2:]
    still = (Box((h, w), p, "clip"), Identity((h, w)))  # no translations, as in the corners
    answer = Streaming(sigma, *still, source, budget).answer(z)
    for region in _regions(h, w, p):
        shared = _shared(z, sigma, region, source, budget)
        answer[..., region.rows.centres, region.columns.centres] = shared
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

    Arguments, result and errors as in :func:`denoise_patches`.
    """
    h, w = z.shape[2:]
    whole, answer = Ones((h, w)), torch.empty_like(z)
    budget = DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    per_z = (4 * w + 4) * z[0].numel() * FLOAT64  # its translations, and their answers
    b = max(1, min(len(z), budget // 2 // per_z))
    for start in range(0, len(z), b):
        part = z[start : start + b].double()
        mean = _RunningMean(len(part), part[0].numel(), part)
        for down in range(h):
            back = torch.cat([part.roll((-down, -right), (2, 3)) for right in range(w)])
            means, evidence = streaming.mean_and_evidence(
                back, sigma, whole, whole, source, budget, held=b * per_z
            )
            means = [x.roll((down, right), (2, 3)) for right, x in enumerate(means.chunk(w))]
            mean.add(evidence.view(w, -1).T, torch.stack(means, 1).flatten(2))
        answer[start : start + b] = mean.value().view_as(part)
    return answer


class _Span(NamedTuple):
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
        return self.centres.stop - self.centres.start


class _Region(NamedTuple):
    """A boundary class: every pixel of it shares the source patches of all of them."""

    rows: _Span
    columns: _Span


def _regions(h: int, w: int, p: int) -> Iterator[_Region]:
    """The classes with more than one pixel: the middle, each column and each row at a border."""
    (rows, *border_rows), (columns, *border_columns) = _spans(h, p), _spans(w, p)
    if rows.count * columns.count > 1:
        yield _Region(rows, columns)
    if rows.count > 1:
        yield from (_Region(rows, column) for column in border_columns)
    if columns.count > 1:
        yield from (_Region(row, columns) for row in border_rows)


def _spans(side: int, p: int) -> list[_Span]:
    """Along an axis: the middle, where the square fits, then each pixel at a border."""
    before, after = p // 2, (p + 1) // 2
    spans = [_Span(slice(0, side), p, slice(before, side - after + 1))]
    for centre in (*range(before), *range(side - after + 1, side)):
        start, stop = max(0, centre - before), min(side, centre + after)
        spans.append(_Span(slice(start, stop), stop - start, slice(centre, centre + 1)))
    return spans


def _shared(
    z: Tensor, sigma: float, region: _Region, source: Source, budget: int | None
) -> Float[Tensor, "b c m m2"]:
    """The posterior means of a region's pixels, over all source patches of the region."""
    size = _tile(z, region, source, budget)
    answer = z.new_empty(*z.shape[:2], region.rows.count, region.columns.count)
    for start in range(0, len(z), size.b):
        part = slice(start, start + size.b)
        wanted = _patches(z[part].double(), region).split(size.rows)
        means = [_RunningMean(len(rows), z.shape[1], rows) for rows in wanted]
        for centres, patches, bias in _tiles(sigma, region, source, size.n, z.device):
            for rows, mean in zip(wanted, means, strict=True):
                mean.add(torch.addmm(bias, rows, patches.T, alpha=sigma**-2), centres)
        found = torch.cat([mean.value() for mean in means])
        answer[part] = found.view(-1, *answer.shape[2:], z.shape[1]).movedim(-1, 1)
    return answer


def _tiles(
    sigma: float, region: _Region, source: Source, n: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "m c"], Float[Tensor, "m d"], Float[Tensor, " m"]]]:
    """For each tile of the source: the patches' centres, the patches, and what ℓ has without z."""
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = source.read(index, torch.float64, device)
        patches = _patches(x, region)
        bias = patches.square().sum(1).mul_(-0.5 / sigma**2)
        if source.log_weights is not None:
            log_weights = source.log_weights[index].to(bias)
            bias += log_weights.repeat_interleave(len(bias) // len(x))
        centres = x[..., region.rows.centres, region.columns.centres]
        yield centres.movedim(1, -1).flatten(0, 2), patches, bias


def _patches(x: Float[Tensor, "n c h w"], region: _Region) -> Float[Tensor, "m d"]:
    """Every patch of a region, flattened, image by image and row by row."""
    seen = x[..., region.rows.seen, region.columns.seen]
    windows = seen.unfold(2, region.rows.side, 1).unfold(3, region.columns.side, 1)
    return windows.movedim(1, 3).flatten(0, 2).flatten(1)


class _RunningMean:
    """Softmax-weighted means, a row each, of values that come a tile at a time."""

    def __init__(self, rows: int, width: int, like: Tensor):
        self.peak = like.new_full((rows, 1), -math.inf)
        self.mass = like.new_zeros(rows, 1)
        self.total = like.new_zeros(rows, width)

    def add(self, ell: Float[Tensor, "rows m"], values: Float[Tensor, "*rows m width"]) -> None:
        """Take m values in, the same or others for every row; ℓ is overwritten with weights."""
        top = torch.maximum(self.peak, ell.amax(1, keepdim=True))
        weights, shrink = ell.sub_(top).exp_(), self.peak.sub_(top).exp_()
        self.mass.mul_(shrink).add_(weights.sum(1, keepdim=True))
        self.total.mul_(shrink).add_((weights.unsqueeze(1) @ values).squeeze(1))
        self.peak = top

    def value(self) -> Float[Tensor, "rows width"]:
        return self.total / self.mass


class _Size(NamedTuple):
    """b noisy images at a time; of those, so many patches against all patches of n images."""

    b: int
    rows: int
    n: int


def _tile(z: Tensor, region: _Region, source: Source, budget: int | None) -> _Size:
    """Sizes that keep :func:`_shared` under its budget, and on a CPU what is large in cache."""
    budget = DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    places, c = region.rows.count * region.columns.count, source.shape[0]
    dimensions, d = math.prod(source.shape), c * region.rows.side * region.columns.side
    per_z = (2 * dimensions + places * (2 * d + 6 * c + 8)) * FLOAT64
    per_x = (5 * dimensions + places * (3 * d + 3 * c + 6)) * FLOAT64
    per_pair = places * FLOAT64  # one patch of z against an image's
    if budget < per_z + per_x + per_pair:
        raise ValueError(
            f"budget: got {budget:,} bytes, wanted at least {per_z + per_x + per_pair:,} for "
            f"{places} patches of an image of shape {source.shape}"
        )
    cached = CACHE_FRIENDLY // 8 if z.device.type == "cpu" else budget
    b = max(1, min(len(z), budget // 4 // per_z))
    room = budget - b * per_z
    most = max(1, min(len(source), min(room // 2, cached) // per_x))
    pairs = max(1, min(room - most * per_x, cached) // per_pair)
    n = min(most, max(math.isqrt(pairs // places), pairs // (b * places), 1))
    return _Size(b, min(b * places, pairs // n), n)
