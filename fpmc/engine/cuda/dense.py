"""Dense matrices on a CUDA device: one product with one-hot responses, two or three without."""

import math
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cuda import dense_kernels
from fpmc.engine.cuda.inputs import Inputs
from fpmc.engine.cuda.kernels import power_of_two, types
from fpmc.engine.cuda.precisions import NOISY, Precision, Tiles
from fpmc.engine.cuda.sizes import Sizes, span
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.sparsity import tile_lists
from fpmc.operators import Dense, Identity

__all__ = ["Matrices", "mean"]


class Matrices:
    """Q and R as the kernels read them.

    Args:
        queries: Q.
        responses: R.
        device: Where the sum runs.
        precision: How the products are computed.

    Attributes:
        k: The number of estimators.
        q: Shape (k, pixels), as operands.
        q_pixels: The pixels of Q, or dimensions.
        r: Rᵀ, shape (pixels, k), as operands; None if R is one-hot.
        coverage: Rᵀ1 of those, shape (pixels,), float64.
        q_tiles: Where q is not zero, two tensors or two times None: see
            :func:`fpmc.engine.sparsity.tile_lists`.
        r_tiles: The same of r; two times None if there is none.
    """

    def __init__(
        self,
        queries: Dense,
        responses: Dense | Identity,
        device: torch.device,
        precision: Precision,
    ):
        self.q = precision.rounded(queries.matrix.detach().flatten(1).to(device)).contiguous()
        self.k, self.q_pixels = self.q.shape
        tiles = precision.tiles.columns, precision.tiles.inner
        self.q_tiles = tile_lists(self.q, *tiles)
        self.r = self.coverage = None
        self.r_tiles = None, None
        if isinstance(responses, Dense):
            r = responses.matrix.detach().flatten(1).to(device)
            self.r = precision.rounded(r.T.contiguous())
            del r  # it may be a copy on the device
            self.r_tiles = tile_lists(self.r, *tiles)
            self.coverage = self.r.sum(1, dtype=torch.float64)


def mean(
    inputs: list[Inputs], matrices: Matrices, sizes: Sizes, precision: Precision
) -> Float[Tensor, "b d"]:
    """The posterior mean in stored units, of d dimensions.

    Args:
        inputs: z and the source, for each of its parts.
        matrices: Q and R.
        sizes: How much is held at a time.
        precision: How the products are computed.
    """
    z, d = inputs[0].z, math.prod(inputs[0].x.shape[1:])
    values = d // matrices.k if matrices.r is None else 0
    n = sum(len(part.x) for part in inputs)
    keeps_all = values == 0 and sizes.n >= n
    kept = None if values else z.new_empty(len(z) * min(sizes.n, n) * matrices.k)
    rooms = [None] * len(inputs)
    if keeps_all:
        rooms = kept.split([len(z) * len(part.x) * matrices.k for part in inputs])
    softmaxes = (
        _softmax(part, matrices, sizes, precision, 0, len(part.x), values=values, kept=room)
        for part, room in zip(inputs, rooms, strict=True)
    )
    softmax = reduce(OnlineSoftmax.merge, softmaxes)
    if values:
        return softmax.mean().flatten(1)

    log_norm = softmax.mass.log_().add_(softmax.peak).unsqueeze(1)
    total = torch.zeros(len(z), d, dtype=torch.float64, device=z.device)
    for part, room in zip(inputs, rooms, strict=True):
        for begin in range(0, len(part.x), sizes.n):
            end = min(begin + sizes.n, len(part.x))
            if not keeps_all:
                room = kept[: len(z) * (end - begin) * matrices.k]
                _softmax(part, matrices, sizes, precision, begin, end, kept=room)
            weights = room.view(len(z), end - begin, matrices.k)
            weights.sub_(log_norm).exp_()
            total += _mix(part, weights, matrices, sizes, precision, begin, end)
    total = total.unflatten(1, (-1, len(matrices.coverage))).div_(matrices.coverage)
    return total.flatten(1).add_(inputs[0].mid_range)


def _softmax(
    inputs, matrices, sizes, precision, begin, end, *, values=0, kept=None
) -> OnlineSoftmax:
    """Each estimator's maximum and mass (b, k), and weighted sums of its values (b, values, k).

    With ``kept`` the log-weights are written there, (b, end − begin, k).
    """
    b, k, tiles = len(inputs.z), matrices.k, precision.tiles
    block_b, block_n = _rows(b, tiles.pairs)
    size = span(end - begin, sizes.splits, block_n)
    splits = -(-(end - begin) // size)
    peak = inputs.z.new_empty(splits, b, k)
    total = inputs.z.new_empty(splits, b, values + 1, k)
    dense_kernels.mean[-(-k // tiles.columns), -(-b // block_b), splits](
        inputs.z, inputs.offset, inputs.x, inputs.log_weights, matrices.q, *matrices.q_tiles,
        kept, peak, total, b, k, matrices.q_pixels, begin, end, size, inputs.scale,
        channels=math.prod(inputs.x.shape[1:]) // matrices.q_pixels, values=values,
        pad_values=power_of_two(values + 1), block_b=block_b, block_n=block_n,
        block_k=tiles.columns, block_p=tiles.inner, num_warps=tiles.warps,
        num_stages=_stages(matrices.q_tiles, tiles), **types(precision),
    )  # fmt: skip
    return OnlineSoftmax.of_splits(peak, total[:, :, values], total[:, :, :values])


def _mix(inputs, weights, matrices, sizes, precision, begin, end) -> Float[Tensor, "b d"]:
    """Σ_n (Rᵀ w_n) ⊙ (x_n − mid_range) over begin … end."""
    b, d, tiles = len(inputs.z), math.prod(inputs.x.shape[1:]), precision.tiles
    pixels = len(matrices.r)
    channels = d // pixels
    block_b, block_n = _rows(b, tiles.pairs)
    size = span(end - begin, sizes.splits, block_n)
    splits = -(-(end - begin) // size)
    total = inputs.z.new_empty(splits, b, d)
    dense_kernels.mix[-(-pixels // tiles.columns), -(-b // block_b), splits](
        weights, matrices.r, *matrices.r_tiles, inputs.x, total, b, matrices.k, pixels, begin, end,
        size, inputs.mid_range, channels=channels, pad_channels=power_of_two(channels),
        block_b=block_b, block_n=block_n, block_p=tiles.columns, block_k=tiles.inner,
        num_warps=tiles.warps, num_stages=_stages(matrices.r_tiles, tiles), **types(precision),
    )  # fmt: skip
    return total.sum(0)


def _stages(listed: tuple[Tensor | None, Tensor | None], tiles: Tiles) -> int:
    """Stages of the compiler's pipeline: where a tile begins has to be read before the tile."""
    return tiles.stages if listed[0] is None else 2 * tiles.stages - 1


def _rows(b: int, pairs: int) -> tuple[int, int]:
    """Noisy and source images whose pairs are a tile's rows."""
    block_b = min(NOISY, power_of_two(b))
    return block_b, pairs // block_b
