r"""The compiled passes of :mod:`fpmc.engine.cpu.squares` over the source.

b noisy images meet N source images of shape (c, h, w), the squares' centres form a grid (grid_h,
grid_w), and `before` is how many pixels a square reaches above and left of where its centre's row
and column start. Distances, from :mod:`fpmc.engine.cpu.running_sums`, and sums over the source are
float64, weights float32.
"""

import math

import numpy as np

from fpmc.engine.cpu.compiled import LANES, compiled, exp, larger
from fpmc.engine.cpu.running_sums import (
    ZERO,
    clear,
    enter,
    enter_weights,
    load,
    slide,
    start,
    whole,
)
from fpmc.engine.softmax import CUTOFF

__all__ = ["LOW", "SKIP", "add", "log_norm", "mean", "mix", "rise", "take", "weigh"]

CUTOFF32 = np.float32(CUTOFF)
SKIP, LOW = np.float32(1e30), np.float32(-1e30)


@compiled
def log_norm(query, x, begin, end, peak, mass, needed, buffers):
    """The first of two passes: what normalises each estimator's posterior.

    Args:
        query: The query.
        x: The source images, shape (N, c, h, w).
        begin: First image of this thread, a multiple of LANES.
        end: One more than its last.
        peak: Largest log-weight so far, shape (b, grid_h, grid_w), updated.
        mass: Sum of weights over that of the peak, likewise.
        needed: Whether the second pass needs a tile, shape (b, tiles), written: whether any of its
            weights is above the cutoff at the time.
        buffers: Buffers.
    """
    grid_h, after = peak.shape[1], len(buffers.ring) - 1 - query.before
    no_sums, over = mass[0, :0], whole(buffers.tile)
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            buffers.column[:] = 0.0
            gap = -np.inf
            for row in range(grid_h + after):
                enter(query.z[m], row, over, buffers)
                i = row - after
                if i >= 0:
                    start(first, len(x), query, buffers.totals)
                    slide(buffers.column, len(buffers.ring), after, buffers.totals)
                    top = take(query.scale, peak[m, i], mass[m, i], no_sums, buffers)
                    add(i, 0, mass[m, i], no_sums, buffers)
                    gap = max(gap, top)
            needed[m, first // LANES] = gap > -CUTOFF


@compiled
def mix(query, x, begin, end, norm, needed, before, total, buffers, spread):
    """The second pass: weights, spread over the squares of the responses, times the images.

    Args:
        query: The query, as in the first pass; so are x, begin, end and buffers.
        x: The source images.
        begin: First image of this thread.
        end: One more than its last.
        norm: Each estimator's log-normaliser, shape (b, grid_h, grid_w).
        needed: What the first pass wrote.
        before: As ``query.before``, for the squares of the responses.
        total: Σ_n (Rᵀ w_n) ⊙ x_n, shape (b, c, h, w), added to.
        buffers: Buffers.
        spread: Buffers.
    """
    grid_h, after = norm.shape[1], len(buffers.ring) - 1 - query.before
    over = whole(buffers.tile)
    for first in range(begin, end, LANES):
        loaded = False
        for m in range(len(query.z)):
            if not needed[m, first // LANES]:
                continue
            if not loaded:
                load(x, first, buffers.tile)
                loaded = True
            buffers.column[:] = 0.0
            clear(spread.ring, spread.column)
            for row in range(after):
                enter(query.z[m], row, over, buffers)
            for row in range(total.shape[2] + before):
                if row < grid_h:
                    enter(query.z[m], row + after, over, buffers)
                    start(first, len(x), query, buffers.totals)
                    slide(buffers.column, len(buffers.ring), after, buffers.totals)
                    weigh(query.scale, norm[m, row], buffers)
                enter_weights(row < grid_h, row, before, buffers.weights, spread)
                if row >= before:
                    _add_images(spread.column, buffers.tile, row - before, total[m])


@compiled
def mean(query, x, begin, end, peak, mass, total, buffers):
    """The only pass where every pixel has an estimator to itself: running maximum, sum and mean.

    Args:
        query: The query.
        x: The source images, shape (N, c, h, w).
        begin: First image of this thread, a multiple of LANES.
        end: One more than its last.
        peak: Largest log-weight so far, shape (b, h, w), updated.
        mass: Sum of weights over that of the peak, likewise.
        total: Sum of weights times images, likewise, shape (b, c, h, w).
        buffers: Buffers.
    """
    h, after = peak.shape[1], len(buffers.ring) - 1 - query.before
    over = whole(buffers.tile)
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            buffers.column[:] = 0.0
            for row in range(h + after):
                enter(query.z[m], row, over, buffers)
                i = row - after
                if i >= 0:
                    start(first, len(x), query, buffers.totals)
                    slide(buffers.column, len(buffers.ring), after, buffers.totals)
                    take(query.scale, peak[m, i], mass[m, i], total[m, :, i], buffers)
                    add(i, 0, mass[m, i], total[m, :, i], buffers)


@compiled
def take(scale, peak, mass, sums, buffers):
    """Log-weights less their running maximum, which rises first, and what was summed with it.

    It rises seldom, so they are made with the maximum there was, and anew where one lies above it.
    Where the largest lies the cutoff below it, the weights of the tile are to be left out.
    Returns how far the largest of the tile is above the maximum before it.
    """
    totals, weights = buffers.totals, buffers.weights
    gap = -np.inf
    for k in range(len(totals)):
        at, top = peak[k], LOW
        for n in range(LANES):
            weights[k, n] = scale * totals[k, n] - at
            top = larger(top, weights[k, n])
        gap = max(gap, top)
        if top > ZERO:
            rise(k, k, scale, peak, mass, sums, totals, weights)
        elif top <= -CUTOFF32:
            weights[k, 0] = SKIP
    return gap


@compiled
def rise(k, slot, scale, peak, mass, sums, totals, weights):
    """A new maximum of the k-th square: what was summed relative to the old one shrinks.

    Its distances are the row `slot` of totals.
    """
    nearest = -totals[slot, 0]
    for n in range(LANES):
        nearest = larger(nearest, -totals[slot, n])
    at = -scale * nearest
    shrink = math.exp(peak[k] - at)
    mass[k] *= shrink
    for channel in range(len(sums)):
        sums[channel, k] *= shrink
    peak[k] = at
    for n in range(LANES):
        weights[k, n] = scale * totals[slot, n] - at


@compiled
def add(i, left, mass, sums, buffers):
    """Add the weights of a row of squares to their mass, and their centres' pixels to the sums.

    In the source images the centres lie in row i, from column `left` on.
    """
    tile, weights = buffers.tile, buffers.weights
    if len(sums) == 3:
        _add_colours(i, left, mass, sums, tile, weights)
        return
    for k in range(len(mass)):
        if weights[k, 0] < SKIP:
            part = ZERO
            for n in range(LANES):
                weights[k, n] = exp(weights[k, n])
                part += weights[k, n]
            mass[k] += part
    for channel in range(len(sums)):
        for k in range(len(mass)):
            if weights[k, 0] < SKIP:
                part = ZERO
                for n in range(LANES):
                    part += weights[k, n] * np.float32(tile[channel, i, k + left, n])
                sums[channel, k] += part


@compiled
def _add_colours(i, left, mass, sums, tile, weights):
    """The same for three channels, whose sums stay in registers."""
    for k in range(len(mass)):
        if weights[k, 0] < SKIP:
            part, red, green, blue = ZERO, ZERO, ZERO, ZERO
            for n in range(LANES):
                weight = exp(weights[k, n])
                part += weight
                red += weight * np.float32(tile[0, i, k + left, n])
                green += weight * np.float32(tile[1, i, k + left, n])
                blue += weight * np.float32(tile[2, i, k + left, n])
            mass[k] += part
            sums[0, k] += red
            sums[1, k] += green
            sums[2, k] += blue


@compiled
def weigh(scale, norm, buffers):
    """The weights of a row of squares."""
    totals, weights = buffers.totals, buffers.weights
    for k in range(len(totals)):
        at, top = norm[k], -CUTOFF32
        for n in range(LANES):
            weights[k, n] = scale * totals[k, n] - at
            top = larger(top, weights[k, n])
        if top > -CUTOFF32:
            for n in range(LANES):
                weights[k, n] = exp(weights[k, n])
        else:
            weights[k] = ZERO


@compiled
def _add_images(column, tile, i, total):
    """A row of pixels of the images, weighted and summed over the tile."""
    c, _, w, _ = tile.shape
    for channel in range(c):
        for j in range(w):
            part = ZERO
            for n in range(LANES):
                part += column[j, n] * np.float32(tile[channel, i, j, n])
            total[channel, i, j] += part
