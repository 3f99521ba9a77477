"""Squares on a CUDA device: one pass with one-hot responses, two with squares as responses."""

from functools import reduce

from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cuda import squares_kernels
from fpmc.engine.cuda.inputs import Inputs
from fpmc.engine.cuda.kernels import power_of_two, types
from fpmc.engine.cuda.precisions import Precision
from fpmc.engine.cuda.sizes import ROWS, span
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.operators import Box, Identity

__all__ = ["mean"]

SMALLEST = 16
"""The least side of a product's tiles."""


def mean(
    inputs: list[Inputs],
    queries: Box,
    responses: Box | Identity,
    splits: int,
    precision: Precision,
) -> Float[Tensor, "b c h w"]:
    """The posterior mean in stored units.

    Args:
        inputs: z and the source, for each of its parts.
        queries: Q.
        responses: R.
        splits: Parts of the source that are summed side by side.
        precision: How the products are computed.
    """
    one_hot = isinstance(responses, Identity)
    softmaxes = (_softmax(part, queries, splits, precision, one_hot=one_hot) for part in inputs)
    softmax = reduce(OnlineSoftmax.merge, softmaxes)
    if one_hot:
        return softmax.mean()
    log_norm = softmax.mass.log_().add_(softmax.peak)
    totals = (_mix(part, log_norm, queries, responses, splits, precision) for part in inputs)
    total = reduce(Tensor.add_, totals)
    return total.div_(responses.coverage().to(total)).add_(inputs[0].mid_range)


def _softmax(inputs, queries, splits, precision, *, one_hot) -> OnlineSoftmax:
    """Each estimator's maximum and mass (b, *grid), and its pixel's weighted sums (b, c, h, w)."""
    n, c, h, w = inputs.x.shape
    b, (grid_h, grid_w) = len(inputs.z), queries.grid
    size = span(n, splits, 1)
    splits = -(-n // size)
    peak, mass = (inputs.z.new_empty(splits, b, grid_h, grid_w) for _ in range(2))
    total = inputs.z.new_empty(splits, b, c, h, w) if one_hot else None
    rows = min(ROWS, _padded(grid_h))
    squares_kernels.mean[-(-grid_h // rows), b, splits](
        inputs.z, inputs.offset, inputs.x, inputs.log_weights, peak, mass, total,
        n, size, inputs.scale, h, w, grid_h, grid_w, queries.before, queries.p,
        channels=c, values=power_of_two(c) if one_hot else 0, rows=rows,
        pad_h=_padded(h), pad_w=_padded(w), pad_grid_w=_padded(grid_w),
        num_warps=_warps(h, w), **types(precision),
    )  # fmt: skip
    return OnlineSoftmax.of_splits(peak, mass, total)


def _mix(inputs, log_norm, queries, responses, splits, precision) -> Float[Tensor, "b c h w"]:
    """Σ_n (Rᵀ w_n) ⊙ (x_n − mid_range)."""
    n, c, h, w = inputs.x.shape
    b, (grid_h, grid_w) = len(inputs.z), queries.grid
    size = span(n, splits, 1)
    splits = -(-n // size)
    total = inputs.z.new_empty(splits, b, c, h, w)
    rows = min(ROWS, _padded(h))
    squares_kernels.mix[-(-h // rows), b, splits](
        inputs.z, inputs.offset, inputs.x, inputs.log_weights, log_norm, total,
        n, size, inputs.scale, inputs.mid_range, h, w, grid_h, grid_w, queries.before, queries.p,
        responses.before, responses.p, channels=c, values=power_of_two(c), rows=rows,
        pad_h=_padded(h), pad_w=_padded(w), pad_grid_h=_padded(grid_h), pad_grid_w=_padded(grid_w),
        num_warps=_warps(h, w), **types(precision),
    )  # fmt: skip
    return total.sum(0)


def _padded(side: int) -> int:
    return max(SMALLEST, power_of_two(side))


def _warps(h: int, w: int) -> int:
    """Groups of 32 threads for an image's tile: few enough registers each."""
    return 4 if max(h, w) <= 16 else 8 if max(h, w) <= 32 else 16
