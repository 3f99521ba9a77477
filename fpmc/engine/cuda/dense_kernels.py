r"""Kernels for dense matrices: a product whose left operand is made on the way.

Rows are pairs of a noisy and a source image, several noisy ones against the same source ones;
columns are estimators, and what is summed over are pixels. The differences
:math:`\delta_{np} - c_p` of a tile are made in registers from a tile of z and one of x and go
straight into the product with a tile of Q; the softmax over the source runs on the sums. No array
of all pairs and pixels is made, nor one of all pairs and estimators, unless log-weights are to be
kept. Responses are the same product the other way: weights times R, times x, summed over n.

x has the shape (n, channels, pixels), z (b, channels, pixels): if Q tells channels apart there is
one channel, of c h w pixels.

Tiles of a matrix that are zero throughout can be left out: the kernels then read where the others
of their columns begin.
"""

import triton.language as tl

from fpmc.engine.cuda.kernels import as_operand, exp, kernel

__all__ = ["mean", "mix"]


@kernel
def mean(
    z, offset, x, log_weights, q, starts, counts, kept, peak, total,
    b, k, pixels, begin, end, span, scale,
    channels: tl.constexpr, values: tl.constexpr, pad_values: tl.constexpr,
    block_b: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, block_p: tl.constexpr,
    dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Maxima, masses and weighted sums over a split of begin … end; log-weights, if to be kept.

    Arrays and numbers, with their shapes:
        z: (b, channels, pixels); offset (b, pixels) or None; x (n, channels, pixels).
        log_weights: (n,) or None.
        scale: One number, in the kernel's type, which an argument would not be.
        q: (k, pixels), as operands.
        starts: (blocks of k, blocks of pixels): the first pixels of the tiles of q that are not
            zero, of which counts (blocks of k,) says how many there are; None to read all.
        kept: Log-weights, (b, end − begin, k), or None.
        peak: (splits, b, k).
        total: (splits, b, values + 1, k): weighted sums of x seen as (n, values, k), and the mass.
        values: Values that an estimator answers for; 0 if no sums are wanted.
        pad_values: The power of two that holds them and the mass.
    """
    split = tl.program_id(2)
    column = tl.program_id(0) * block_k + tl.arange(0, block_k)
    m = tl.program_id(1) * block_b + tl.arange(0, block_b)
    some, wanted = m < b, column < k
    top = tl.full((block_b, block_k), float("-inf"), dtype)
    value = tl.arange(0, pad_values)[:, None, None]
    sums = tl.zeros((pad_values, block_b, block_k), dtype)
    first = begin + split * span
    last = tl.minimum(first + span, end)
    factor = tl.load(scale)
    tiles = tl.cdiv(pixels, block_p)
    if starts is not None:
        starts += tl.program_id(0) * tiles
        tiles = tl.load(counts + tl.program_id(0))
    for start in range(first, last, block_n):
        n = (start + tl.arange(0, block_n)).to(tl.int64)
        there = n < last
        distance = tl.zeros((block_b * block_n, block_k), dtype)
        for tile in range(0, tiles):
            p_start = tile * block_p
            if starts is not None:
                p_start = tl.multiple_of(tl.load(starts + tile), block_p)
            p = p_start + tl.arange(0, block_p)
            inside = p < pixels
            delta = tl.zeros((block_b, block_n, block_p), dtype)
            for channel in tl.static_range(channels):
                z_at = z + (m[:, None] * channels + channel) * pixels + p[None, :]
                x_at = x + (n[:, None] * channels + channel) * pixels + p[None, :]
                z_c = tl.load(z_at, some[:, None] & inside[None, :], other=0)
                x_c = tl.load(x_at, there[:, None] & inside[None, :], other=0).to(dtype)
                difference = z_c[:, None, :] - x_c[None, :, :]
                delta += difference * difference
            if offset is not None:
                c_at = offset + m[:, None] * pixels + p[None, :]
                c = tl.load(c_at, some[:, None] & inside[None, :], other=0)
                delta -= c[:, None, :]
            q_at = q + column[None, :] * pixels + p[:, None]
            q_tile = tl.load(q_at, wanted[None, :] & inside[:, None], other=0)
            rows = tl.reshape(as_operand(delta, operand, rounding), (block_b * block_n, block_p))
            distance = tl.dot(rows, q_tile, acc=distance, out_dtype=dtype, input_precision=rounding)
        ell = factor * tl.reshape(distance, (block_b, block_n, block_k))
        if log_weights is not None:
            ell += tl.load(log_weights + n, there, other=0)[None, :, None]
        if kept is not None:
            pair = m[:, None].to(tl.int64) * (end - begin) + (n - begin)[None, :]
            full = (some[:, None] & there[None, :])[:, :, None] & wanted[None, None, :]
            tl.store(kept + pair[:, :, None] * k + column[None, None, :], ell, full)
        ell = tl.where(there[None, :, None], ell, float("-inf"))
        higher = tl.maximum(top, tl.max(ell, 1))
        weights = exp(ell - higher[:, None, :])
        part = tl.sum(weights, 1)
        sums = sums * tl.exp(top - higher)[None] + tl.where(value == values, part[None], 0)
        top = higher
        for v in tl.static_range(values):
            own_at = x + (n[:, None] * values + v) * k + column[None, :]
            own = tl.load(own_at, there[:, None] & wanted[None, :], other=0).to(dtype)
            part = tl.sum(weights * own[None, :, :], 1)
            sums += tl.where(value == v, part[None], 0)
    row = split.to(tl.int64) * b + m
    full = some[:, None] & wanted[None, :]
    tl.store(peak + row[:, None] * k + column[None, :], top, full)
    at = (row[None, :, None] * (values + 1) + value) * k + column[None, None, :]
    tl.store(total + at, sums, (value <= values) & full[None])


@kernel
def mix(
    weights, r, starts, counts, x, total, b, k, pixels, begin, end, span, mid_range,
    channels: tl.constexpr, pad_channels: tl.constexpr,
    block_b: tl.constexpr, block_n: tl.constexpr, block_p: tl.constexpr, block_k: tl.constexpr,
    dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Σ_n (Rᵀ w_n) ⊙ (x_n − mid_range) over a split of begin … end.

    Arrays and numbers, with their shapes:
        weights: w, (b, end − begin, k).
        r: Rᵀ, (pixels, k), as operands.
        starts: (blocks of pixels, blocks of k): the first estimators of the tiles of r that are
            not zero, of which counts (blocks of pixels,) says how many there are; None for all.
        x: (n, channels, pixels).
        total: (splits, b, channels, pixels).
        pad_channels: The power of two that holds the channels.
    """
    split = tl.program_id(2)
    p = tl.program_id(0) * block_p + tl.arange(0, block_p)
    m = tl.program_id(1) * block_b + tl.arange(0, block_b)
    pair = tl.arange(0, block_b * block_n)
    pair_m = tl.program_id(1) * block_b + pair // block_n
    inside, value = p < pixels, tl.arange(0, pad_channels)[:, None, None]
    sums = tl.zeros((pad_channels, block_b, block_p), dtype)
    first = begin + split * span
    last = tl.minimum(first + span, end)
    tiles = tl.cdiv(k, block_k)
    if starts is not None:
        starts += tl.program_id(0) * tiles
        tiles = tl.load(counts + tl.program_id(0))
    for start in range(first, last, block_n):
        pair_n = start + pair % block_n
        present = (pair_m < b) & (pair_n < last)
        w_row = weights + (pair_m.to(tl.int64) * (end - begin) + (pair_n - begin)) * k
        spread = tl.zeros((block_b * block_n, block_p), dtype)
        for tile in range(0, tiles):
            k_start = tile * block_k
            if starts is not None:
                k_start = tl.multiple_of(tl.load(starts + tile), block_k)
            row = k_start + tl.arange(0, block_k)
            w_mask = present[:, None] & (row < k)[None, :]
            w_tile = tl.load(w_row[:, None] + row[None, :], w_mask, other=0)
            w_tile = as_operand(w_tile, operand, rounding)
            r_at = r + p[None, :] * k + row[:, None]
            r_tile = tl.load(r_at, inside[None, :] & (row < k)[:, None], other=0)
            spread = tl.dot(w_tile, r_tile, acc=spread, out_dtype=dtype, input_precision=rounding)
        n = (start + tl.arange(0, block_n)).to(tl.int64)
        mixed = tl.reshape(spread, (block_b, block_n, block_p))
        for channel in tl.static_range(channels):
            x_at = x + (n[:, None] * channels + channel) * pixels + p[None, :]
            x_c = tl.load(x_at, (n < last)[:, None] & inside[None, :], other=0).to(dtype)
            part = tl.sum(mixed * (x_c - mid_range)[None, :, :], 1)
            sums += tl.where(value == channel, part[None], 0)
    out = ((split.to(tl.int64) * b + m)[None, :, None] * channels + value) * pixels
    full = (value < channels) & (m < b)[None, :, None] & inside[None, None, :]
    tl.store(total + out + p[None, None, :], sums, full)
