r"""The compiled inner loops of :mod:`fpmc.engine.cpu.squares`.

Squares are visited row by row. Two running sums make the distance of a square from that of its
neighbour, whatever its side: along columns, a row of δ enters and the row p places above leaves,
which a ring of p rows remembers; along rows, a column sum enters and the one p places to the left
leaves. The transpose, from the estimators' weights back to pixels, is the same the other way round.

In what follows b noisy images meet N source images of shape (c, h, w), the squares' centres form a
grid (grid_h, grid_w), and `before` is how many pixels a square reaches above and left of where its
centre's row and column start; arrays end with an axis of LANES source images. Distances and sums
over the source are float64, weights float32.
"""

import math
from typing import NamedTuple

import numpy as np

from fpmc.engine.cpu.compiled import LANES, compiled, exp, larger
from fpmc.engine.softmax import CUTOFF

__all__ = [
    "Buffers",
    "Query",
    "Spread",
    "clear",
    "enter",
    "enter_weights",
    "load",
    "log_norm",
    "mean",
    "mix",
    "slide",
    "start",
    "take",
    "weigh",
]  # fmt: skip

ZERO = np.float32(0)
CUTOFF32 = np.float32(CUTOFF)
FAR = 1e300
SKIP = np.float32(1e30)


class Query(NamedTuple):
    """What an estimator asks of a source image.

    Attributes:
        z: The noisy images, in the source's own units, float64, shape (b, c, h, w).
        log_weights: log S(x_n), float64, shape (N,), or (0,) if all are equal.
        scale: −1 / 2σ², in the source's units.
        before: Pixels of a square above and left of its centre, if it is clipped at the border;
            0 if its centre is called after its first pixel.
    """

    z: np.ndarray
    log_weights: np.ndarray
    scale: float
    before: int


class Buffers(NamedTuple):
    """Buffers of one thread.

    Attributes:
        tile: LANES source images as they are stored, shape (c, h, w, LANES).
        ring: The last p rows of δ, shape (p, w, LANES).
        column: Their sums, shape (w, LANES).
        totals: The distances of a row of squares, shape (grid_w, LANES).
        weights: Their log-weights, then their weights, float32, shape (grid_w, LANES).
    """

    tile: np.ndarray
    ring: np.ndarray
    column: np.ndarray
    totals: np.ndarray
    weights: np.ndarray


class Spread(NamedTuple):
    """Buffers of one thread for the transpose, float32.

    Attributes:
        ring: The last p rows of weights summed along rows, shape (p, w, LANES).
        column: Their sums, shape (w, LANES).
        totals: A row of weights summed along it, shape (w, LANES).
    """

    ring: np.ndarray
    column: np.ndarray
    totals: np.ndarray


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
    no_sums = mass[0, :0]
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            clear(buffers.ring, buffers.column)
            gap = -np.inf
            for row in range(grid_h + after):
                enter(query.z[m], row, buffers)
                i = row - after
                if i >= 0:
                    start(first, len(x), query, buffers.totals)
                    slide(buffers.column, len(buffers.ring), after, buffers.totals)
                    top = take(query.scale, peak[m, i], mass[m, i], no_sums, buffers)
                    _add(i, mass[m, i], no_sums, buffers)
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
    for first in range(begin, end, LANES):
        loaded = False
        for m in range(len(query.z)):
            if not needed[m, first // LANES]:
                continue
            if not loaded:
                load(x, first, buffers.tile)
                loaded = True
            clear(buffers.ring, buffers.column)
            clear(spread.ring, spread.column)
            for row in range(after):
                enter(query.z[m], row, buffers)
            for row in range(total.shape[2] + before):
                if row < grid_h:
                    enter(query.z[m], row + after, buffers)
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
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            clear(buffers.ring, buffers.column)
            for row in range(h + after):
                enter(query.z[m], row, buffers)
                i = row - after
                if i >= 0:
                    start(first, len(x), query, buffers.totals)
                    slide(buffers.column, len(buffers.ring), after, buffers.totals)
                    take(query.scale, peak[m, i], mass[m, i], total[m, :, i], buffers)
                    _add(i, mass[m, i], total[m, :, i], buffers)


@compiled
def load(x, first, tile):
    """Copy images into lanes; lanes beyond the last image keep what they had."""
    c, h, w, _ = tile.shape
    for channel in range(c):
        for i in range(h):
            for n in range(min(LANES, len(x) - first)):
                for j in range(w):
                    tile[channel, i, j, n] = x[first + n, channel, i, j]


@compiled
def clear(ring, column):
    """No rows have entered yet."""
    ring[:] = 0
    column[:] = 0


@compiled
def enter(z, row, buffers):
    """A row of δ enters the sums along columns, and the one p rows above leaves.

    Below the image the rows are zeros.
    """
    tile, ring, column = buffers.tile, buffers.ring, buffers.column
    c, h, w, _ = tile.shape
    slot = row % len(ring)
    if row < h and c == 3:
        for j in range(w):
            red, green, blue = z[0, row, j], z[1, row, j], z[2, row, j]
            for n in range(LANES):
                d_red = red - tile[0, row, j, n]
                d_green = green - tile[1, row, j, n]
                d_blue = blue - tile[2, row, j, n]
                delta = d_red * d_red + d_green * d_green + d_blue * d_blue
                column[j, n] += delta - ring[slot, j, n]
                ring[slot, j, n] = delta
        return
    for j in range(w):
        for n in range(LANES):
            column[j, n] -= ring[slot, j, n]
            ring[slot, j, n] = 0.0
        if row < h:
            for channel in range(c):
                value = z[channel, row, j]
                for n in range(LANES):
                    d = value - tile[channel, row, j, n]
                    ring[slot, j, n] += d * d
            for n in range(LANES):
                column[j, n] += ring[slot, j, n]


@compiled
def start(first, size, query, totals):
    """What a row's distances start from: the source's weights.

    Images that were left out, and lanes without one, are far.
    """
    count = min(LANES, size - first)
    for n in range(count):
        totals[0, n] = 0.0
    if len(query.log_weights):
        for n in range(count):
            totals[0, n] = min(query.log_weights[first + n] / query.scale, FAR)
    for n in range(count, LANES):
        totals[0, n] = FAR


@compiled
def slide(column, p, ahead, totals):
    """Sums over p neighbouring columns, j − p + 1 to j = k + ahead; the first is added to.

    Lanes of neighbours lie side by side, so that one loop runs through those of all k: what it adds
    to is LANES back. At first columns enter only, then they also leave, at last they only leave.
    """
    size, last = len(column), len(totals) - 1
    sums, values = totals.reshape(-1), column.reshape(-1)
    for j in range(min(ahead + 1, size)):
        _add_lanes(sums[:LANES], values[j * LANES :])
    begin = min(last, max(0, min(p, size) - ahead - 1)) * LANES
    end = min(last, max(0, max(p, size) - ahead - 1)) * LANES
    entering, leaving = (ahead + 1) * LANES, (ahead + 1 - p) * LANES
    _step(sums[: begin + LANES], values[entering:], values[:0])
    if p < size:
        _step(sums[begin : end + LANES], values[begin + entering :], values[begin + leaving :])
    else:
        _step(sums[begin : end + LANES], values[:0], values[:0])
    _step(sums[end:], values[:0], values[end + leaving :])


@compiled
def _add_lanes(sums, values):
    for n in range(len(sums)):
        sums[n] += values[n]


@compiled
def _step(sums, entering, leaving):
    """Each LANES sums are those before, with what enters and without what leaves, if anything."""
    steps = len(sums) - LANES
    if len(entering) and len(leaving):
        for n in range(steps):
            sums[n + LANES] = sums[n] + (entering[n] - leaving[n])
    elif len(entering):
        for n in range(steps):
            sums[n + LANES] = sums[n] + entering[n]
    elif len(leaving):
        for n in range(steps):
            sums[n + LANES] = sums[n] - leaving[n]
    else:
        for n in range(steps):
            sums[n + LANES] = sums[n]


@compiled
def take(scale, peak, mass, sums, buffers):
    """Log-weights less their running maximum, which rises first, and what was summed with it.

    Returns how far the largest of the tile is above the maximum before it.
    """
    totals, weights = buffers.totals, buffers.weights
    gap = -np.inf
    for k in range(len(totals)):
        nearest = -totals[k, 0]
        for n in range(LANES):
            nearest = larger(nearest, -totals[k, n])
        top = -scale * nearest
        gap = max(gap, top - peak[k])
        if top > peak[k]:
            shrink = math.exp(peak[k] - top)
            mass[k] *= shrink
            for channel in range(len(sums)):
                sums[channel, k] *= shrink
            peak[k] = top
        if top > peak[k] - CUTOFF:
            at = peak[k]
            for n in range(LANES):
                weights[k, n] = scale * totals[k, n] - at
        else:
            weights[k, 0] = SKIP
    return gap


@compiled
def _add(i, mass, sums, buffers):
    """Add the weights of a row of squares to their mass, and their centres' pixels to the sums."""
    tile, weights = buffers.tile, buffers.weights
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
                    part += weights[k, n] * np.float32(tile[channel, i, k, n])
                sums[channel, k] += part


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
def enter_weights(inside, row, before, weights, spread):
    """A row of weights enters the transpose's sums along columns, and one leaves.

    Below the grid of squares the rows are zeros.
    """
    ring, column, totals = spread.ring, spread.column, spread.totals
    totals[0] = ZERO
    if inside:
        slide(weights, len(ring), before, totals)
    else:
        totals[:] = ZERO
    oldest = ring[row % len(ring)].reshape(-1)
    sums, entering = column.reshape(-1), totals.reshape(-1)
    for n in range(len(sums)):
        sums[n] += entering[n] - oldest[n]
        oldest[n] = entering[n]


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
