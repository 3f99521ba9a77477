"""The kernel for translated squares: attention of patches of z to patches of the source.

Rows are patches of z, columns are patches of source images at all places of a boundary class, and
what is mixed are the pixels at these places. A tile of products becomes log-weights and weights in
registers and is gone: no array of all pairs of patches is made. The products are as those of
:mod:`fpmc.engine.streaming.translations`. Programs: a block of rows, a split of the columns.
"""

import triton.language as tl

from fpmc.engine.cuda.kernels import as_operand, exp, kernel

__all__ = ["mean"]


@kernel
def mean(
    z, x, bias, values, peak, total, rows, count, d, span, scale,
    channels: tl.constexpr, pad_values: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_d: tl.constexpr,
    dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Maxima, masses and weighted sums over a split of the source's patches.

    Arrays and numbers, with their shapes:
        z: Patches, (rows, d), as x (count, d).
        bias: What a log-weight has without z, (count,).
        values: Pixels at the places of x, (count, channels).
        scale: σ⁻²: one number, in the kernel's type, which an argument would not be.
        peak: (splits, rows).
        total: (splits, channels + 1, rows): weighted sums of the values, and the mass.
        pad_values: The power of two that holds them.
    """
    split = tl.program_id(1)
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    some = m < rows
    z += m[:, None].to(tl.int64) * d
    value = tl.arange(0, pad_values)[:, None]
    top = tl.full((block_m,), float("-inf"), dtype)
    sums = tl.zeros((pad_values, block_m), dtype)
    first = split * span
    last = tl.minimum(first + span, count)
    factor = tl.load(scale)
    for start in range(first, last, block_n):
        n = (start + tl.arange(0, block_n)).to(tl.int64)
        there = n < last
        product = tl.zeros((block_m, block_n), dtype)
        for begin in range(0, d, block_d):
            p = begin + tl.arange(0, block_d)
            inside = p < d
            z_tile = tl.load(z + p[None, :], some[:, None] & inside[None, :], other=0)
            x_at = x + n[None, :] * d + p[:, None]
            x_tile = tl.load(x_at, there[None, :] & inside[:, None], other=0)
            z_tile = as_operand(z_tile, operand, rounding)
            x_tile = as_operand(x_tile, operand, rounding)
            product = tl.dot(z_tile, x_tile, acc=product, out_dtype=dtype, input_precision=rounding)
        ell = factor * product + tl.load(bias + n, there, other=0)[None, :]
        ell = tl.where(there[None, :], ell, float("-inf"))
        higher = tl.maximum(top, tl.max(ell, 1))
        weights = exp(ell - higher[:, None])
        sums = sums * tl.exp(top - higher)[None]
        sums += tl.where(value == channels, tl.sum(weights, 1)[None], 0)
        top = higher
        for v in tl.static_range(channels):
            own = tl.load(values + n * channels + v, there, other=0)
            sums += tl.where(value == v, tl.sum(weights * own[None, :], 1)[None], 0)
    row = split.to(tl.int64) * rows + m
    tl.store(peak + row, top, some)
    at = (split.to(tl.int64) * (channels + 1) + value) * rows + m[None, :]
    tl.store(total + at, sums, (value <= channels) & some[None, :])
