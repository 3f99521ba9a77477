r"""Kernels for squares: an image's distances are two products with matrices of zeros and ones.

Sums over squares are separable, :math:`Q\delta = A \delta B^\top` with
:math:`A_{ir} = 1` where row r is in a square of row centre i, and B likewise for columns. For one
noisy and one source image δ is a tile in registers, padded with zeros to powers of two; nothing is
cancelled, and the side of the squares costs nothing. Every step of the softmax over n is
elementwise. Programs: a block of rows, a noisy image, a split of the source.
"""

import triton.language as tl

from fpmc.engine.cuda.kernels import as_operand, exp, kernel

__all__ = ["CUTOFF", "mean", "mix"]

CUTOFF = tl.constexpr(-80.0)
"""Weights below e⁻⁸⁰ of their estimator's sum are left out where an image has no other."""


@kernel
def band(centres, pixels, before, p, dtype: tl.constexpr):
    """The matrix (centres, pixels) with 1 where a square of side p holds the pixel."""
    first = (centres - before)[:, None]
    return ((pixels[None, :] >= first) & (pixels[None, :] < first + p)).to(dtype)


@kernel
def multiply(a, b, dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr):
    """The product of two tiles."""
    a, b = as_operand(a, operand, rounding), as_operand(b, operand, rounding)
    return tl.dot(a, b, out_dtype=dtype, input_precision=rounding)


@kernel
def differences(z, x, c, at, here, channels: tl.constexpr, area, dtype: tl.constexpr):
    """δ − c of a noisy and a source image, a tile: z, x and c point to the images."""
    delta = tl.zeros(at.shape, dtype)
    for channel in tl.static_range(channels):
        z_c = tl.load(z + channel * area + at, here, other=0)
        x_c = tl.load(x + channel * area + at, here, other=0).to(dtype)
        delta += (z_c - x_c) * (z_c - x_c)
    if c is not None:
        delta -= tl.load(c + at, here, other=0)
    return delta


@kernel
def mean(
    z, offset, x, log_weights, peak, mass, total, size, span, scale,
    h, w, grid_h, grid_w, before, p, channels: tl.constexpr, values: tl.constexpr,
    rows: tl.constexpr, pad_h: tl.constexpr, pad_w: tl.constexpr, pad_grid_w: tl.constexpr,
    dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Each estimator's maximum and mass over a split, and if wanted its pixel's weighted sums.

    Arrays and numbers, with their shapes:
        z: (b, channels, h, w); offset (b, h, w) or None; x (size, channels, h, w).
        log_weights: (size,) or None.
        scale: One number, in the kernel's type, which an argument would not be.
        peak: (splits, b, grid_h, grid_w), as mass; total (splits, b, channels, h, w).
        values: The power of two that holds the channels; 0 if no sums are wanted.
    """
    block, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    area = h * w
    i, j = block * rows + tl.arange(0, rows), tl.arange(0, pad_grid_w)
    r, s = tl.arange(0, pad_h), tl.arange(0, pad_w)
    at, here = r[:, None] * w + s[None, :], (r[:, None] < h) & (s[None, :] < w)
    a_rows = band(i, r, before, p, dtype)
    a_columns = tl.trans(band(j, s, before, p, dtype))
    z += b * channels * area
    if offset is not None:
        offset += b * area
    top = tl.full((rows, pad_grid_w), float("-inf"), dtype)
    total_mass = tl.zeros((rows, pad_grid_w), dtype)
    if values > 0:
        channel = tl.arange(0, values)[:, None, None]
        own = channel * area + (i[:, None] * w + j[None, :])[None]
        there = (channel < channels) & ((i[:, None] < h) & (j[None, :] < w))[None]
        sums = tl.zeros((values, rows, pad_grid_w), dtype)
    first = split * span
    x_n = x + first.to(tl.int64) * channels * area
    factor = tl.load(scale)
    for n in range(first, tl.minimum(first + span, size)):
        delta = differences(z, x_n, offset, at, here, channels, area, dtype)
        delta = multiply(a_rows, delta, dtype, operand, rounding)
        ell = factor * multiply(delta, a_columns, dtype, operand, rounding)
        if log_weights is not None:
            ell += tl.load(log_weights + n)
        higher = tl.maximum(top, ell)
        shrink, weights = tl.exp(top - higher), exp(ell - higher)
        total_mass = total_mass * shrink + weights
        if values > 0:
            x_own = tl.load(x_n + own, there, other=0).to(dtype)
            sums = sums * shrink[None] + weights[None] * x_own
        top = higher
        x_n += channels * area
    part = (split * tl.num_programs(1) + b).to(tl.int64)
    out = part * grid_h * grid_w + i[:, None] * grid_w + j[None, :]
    inside = (i[:, None] < grid_h) & (j[None, :] < grid_w)
    tl.store(peak + out, top, inside)
    tl.store(mass + out, total_mass, inside)
    if values > 0:
        tl.store(total + part * channels * area + own, sums, there)


@kernel
def mix(
    z, offset, x, log_weights, log_norm, total, size, span, scale, mid_range,
    h, w, grid_h, grid_w, before, p, response_before, response_p,
    channels: tl.constexpr, values: tl.constexpr, rows: tl.constexpr,
    pad_h: tl.constexpr, pad_w: tl.constexpr, pad_grid_h: tl.constexpr, pad_grid_w: tl.constexpr,
    dtype: tl.constexpr, operand: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Σ_n (Rᵀ w_n) ⊙ (x_n − mid_range) over a split, for a block of rows of pixels.

    Arrays and numbers, with their shapes:
        z: (b, channels, h, w); offset (b, h, w) or None; x (size, channels, h, w).
        log_weights: (size,) or None.
        scale: One number, in the kernel's type, which an argument would not be.
        log_norm: (b, grid_h, grid_w).
        total: (splits, b, channels, h, w).
        values: The power of two that holds the channels.
    """
    block, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    area = h * w
    i, j = tl.arange(0, pad_grid_h), tl.arange(0, pad_grid_w)
    r, s = tl.arange(0, pad_h), tl.arange(0, pad_w)
    own_r = block * rows + tl.arange(0, rows)
    at, here = r[:, None] * w + s[None, :], (r[:, None] < h) & (s[None, :] < w)
    a_rows = band(i, r, before, p, dtype)
    a_columns = tl.trans(band(j, s, before, p, dtype))
    r_rows = tl.trans(band(i, own_r, response_before, response_p, dtype))
    r_columns = band(j, s, response_before, response_p, dtype)
    inside = (i[:, None] < grid_h) & (j[None, :] < grid_w)
    norm = tl.load(
        log_norm + b * grid_h * grid_w + i[:, None] * grid_w + j[None, :], inside, other=0
    )
    z += b * channels * area
    if offset is not None:
        offset += b * area
    channel = tl.arange(0, values)[:, None, None]
    own = channel * area + (own_r[:, None] * w + s[None, :])[None]
    there = (channel < channels) & ((own_r[:, None] < h) & (s[None, :] < w))[None]
    sums = tl.zeros((values, rows, pad_w), dtype)
    first = split * span
    x_n = x + first.to(tl.int64) * channels * area
    factor = tl.load(scale)
    for n in range(first, tl.minimum(first + span, size)):
        delta = differences(z, x_n, offset, at, here, channels, area, dtype)
        delta = multiply(a_rows, delta, dtype, operand, rounding)
        ell = factor * multiply(delta, a_columns, dtype, operand, rounding) - norm
        if log_weights is not None:
            ell += tl.load(log_weights + n)
        ell = tl.where(inside, ell, float("-inf"))
        if tl.max(tl.max(ell, 1), 0) > CUTOFF:
            spread = multiply(r_rows, exp(ell), dtype, operand, rounding)
            spread = multiply(spread, r_columns, dtype, operand, rounding)
            sums += spread[None] * (tl.load(x_n + own, there, other=0).to(dtype) - mid_range)
        x_n += channels * area
    part = (split * tl.num_programs(1) + b).to(tl.int64)
    tl.store(total + part * channels * area + own, sums, there)
