r"""Running sums over squares, a row at a time, for LANES source images side by side.

Two sums make the distance of a square from that of its neighbour, whatever its side: along columns,
a row of δ enters and the row p places above leaves, which a ring of p rows remembers; along rows, a
column sum enters and the one p places to the left leaves. The transpose, from the estimators'
weights back to pixels, is the same the other way round.

Arrays end with an axis of LANES source images; sums are float64, but float32 of weights.
"""

from typing import NamedTuple

import numpy as np

from fpmc.engine.cpu.compiled import LANES, compiled

__all__ = [
    "ZERO", "Buffers", "Overlap", "Query", "Spread", "clear", "enter", "enter_weights", "load",
    "slide", "start", "whole",
]  # fmt: skip

ZERO = np.float32(0)
FAR = 1e300


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


class Overlap(NamedTuple):
    """The pixels that a noisy image and a source image share when the latter is moved.

    Attributes:
        h: Their rows.
        w: Their columns.
        z_row: The first of the rows in the noisy image.
        z_column: The first of the columns there.
        x_row: The first of the rows in the source image.
        x_column: The first of the columns there.
    """

    h: int
    w: int
    z_row: int
    z_column: int
    x_row: int
    x_column: int


@compiled
def whole(tile):
    """All pixels, of a source image that stays where it is."""
    _, h, w, _ = tile.shape
    return Overlap(h, w, 0, 0, 0, 0)


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
def enter(z, row, over, buffers):
    """A row of δ enters the sums along columns, and the one p rows above leaves, if there is one.

    Below the pixels that z and the tile share nothing enters. The first row finds sums of 0, and a
    ring with any finite numbers in it.
    """
    ring, column = buffers.ring, buffers.column
    slot, left = row % len(ring), 1.0 if row >= len(ring) else 0.0
    if row >= over.h:
        for j in range(over.w):
            for n in range(LANES):
                column[j, n] -= ring[slot, j, n]
    elif len(buffers.tile) == 3:
        _enter_colours(z, row, over, left, buffers.tile, ring[slot], column)
    elif len(buffers.tile) == 1:
        _enter_greys(z, row, over, left, buffers.tile, ring[slot], column)
    else:
        _enter_channels(z, row, over, left, buffers.tile, ring[slot], column)


@compiled
def _enter_channels(z, row, over, left, tile, oldest, column):
    """A row enters for the oldest, which is in the sums or not: so often it leaves."""
    i, k = row + over.z_row, row + over.x_row
    for j in range(over.w):
        for n in range(LANES):
            column[j, n] -= left * oldest[j, n]
        oldest[j] = 0.0
        for channel in range(len(tile)):
            value = z[channel, i, j + over.z_column]
            for n in range(LANES):
                d = value - tile[channel, k, j + over.x_column, n]
                oldest[j, n] += d * d
        for n in range(LANES):
            column[j, n] += oldest[j, n]


@compiled
def _enter_greys(z, row, over, left, tile, oldest, column):
    """The same for one channel, whose squares stay in registers."""
    i, k = row + over.z_row, row + over.x_row
    for j in range(over.w):
        value, right = z[0, i, j + over.z_column], j + over.x_column
        for n in range(LANES):
            d = value - tile[0, k, right, n]
            delta = d * d
            column[j, n] += delta - left * oldest[j, n]
            oldest[j, n] = delta


@compiled
def _enter_colours(z, row, over, left, tile, oldest, column):
    """The same for three."""
    i, k = row + over.z_row, row + over.x_row
    for j in range(over.w):
        at, right = j + over.z_column, j + over.x_column
        red, green, blue = z[0, i, at], z[1, i, at], z[2, i, at]
        for n in range(LANES):
            d_red = red - tile[0, k, right, n]
            d_green = green - tile[1, k, right, n]
            d_blue = blue - tile[2, k, right, n]
            delta = d_red * d_red + d_green * d_green + d_blue * d_blue
            column[j, n] += delta - left * oldest[j, n]
            oldest[j, n] = delta


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
