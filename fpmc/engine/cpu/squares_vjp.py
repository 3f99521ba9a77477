r"""The compiled inner loops of :mod:`fpmc.engine.cpu.squares` that go back.

Beside the distances, a second pair of running sums makes
:math:`s_{kn} = \sum_{p \in k} \sum_c \tilde g_{cp} x_{ncp}` over the squares of the responses; for
the identity it is made where there is weight. A first pass finds the mean of s under each
estimator's posterior, which for the identity is known from the answer; a second one spreads
:math:`w (s - \bar s)` over the squares of the queries. Names and shapes as in
:mod:`fpmc.engine.cpu.running_sums`.
"""

from typing import NamedTuple

import numpy as np

from fpmc.engine.cpu.compiled import LANES, compiled, larger
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
from fpmc.engine.cpu.squares_kernels import weigh

__all__ = ["Slopes", "add_differences", "averages", "pixel_slopes", "tilt", "vjp"]


class Slopes(NamedTuple):
    """What s is made of, and buffers of one thread.

    Attributes:
        g: g̃, float64, shape (b, c, h, w).
        before: As ``query.before``, for the squares of the responses.
        ring: The last rows of Σ_c g̃ x, as many as the squares' side, shape (p, w, LANES).
        column: Their sums, shape (w, LANES).
        totals: s of a row of squares, shape (grid_w, LANES).
    """

    g: np.ndarray
    before: int
    ring: np.ndarray
    column: np.ndarray
    totals: np.ndarray


@compiled
def averages(query, slopes, x, begin, end, norm, mass, total, needed, buffers):
    """The first pass: sums of weights times s.

    Args:
        query: The query.
        slopes: What s is made of.
        x: The source images, shape (N, c, h, w).
        begin: First image of this thread, a multiple of LANES.
        end: One more than its last.
        norm: Each estimator's log-normaliser, shape (b, grid_h, grid_w).
        mass: The sum of weights, 1 but for their rounding, likewise, added to.
        total: The sum of weights times s, likewise.
        needed: Whether the second pass needs a tile, shape (b, tiles), written.
        buffers: Buffers.
    """
    grid_h, after = norm.shape[1], len(buffers.ring) - 1 - query.before
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            buffers.column[:] = 0.0
            clear(slopes.ring, slopes.column)
            _enter_first_rows(query.z[m], slopes.g[m], after, buffers, slopes)
            heavy = False
            for i in range(grid_h):
                _weigh_row(first, len(x), m, i, after, query, slopes, norm, buffers)
                heavy |= _add_slopes(mass[m, i], total[m, i], slopes.totals, buffers.weights)
            needed[m, first // LANES] = heavy


@compiled
def vjp(query, slopes, x, begin, end, norm, average, needed, answer, total, buffers, spread):
    """The second pass: Σ_n (Qᵀ ∂ℓ_n) ⊙ (x_n − x̂), added to the total.

    Args:
        query: The query.
        slopes: What s is made of.
        x: The source images.
        begin: First image of this thread.
        end: One more than its last.
        norm: Each estimator's log-normaliser, shape (b, grid_h, grid_w).
        average: The mean of s under its posterior, likewise.
        needed: What the first pass wrote; all true where there is none.
        answer: x̂ in the source's own units, shape (b, c, h, w).
        total: The sum, shape (b, c, h, w).
        buffers: Buffers.
        spread: Buffers, with a ring as long as the queries' side.
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
            buffers.column[:] = 0.0
            clear(slopes.ring, slopes.column)
            clear(spread.ring, spread.column)
            _enter_first_rows(query.z[m], slopes.g[m], after, buffers, slopes)
            for row in range(total.shape[2] + query.before):
                if row < grid_h:
                    _weigh_row(first, len(x), m, row, after, query, slopes, norm, buffers)
                    tilt(buffers.weights, slopes.totals, average[m, row])
                enter_weights(row < grid_h, row, query.before, buffers.weights, spread)
                if row >= query.before:
                    i, over = row - query.before, whole(buffers.tile)
                    add_differences(spread.column, buffers.tile, i, over, answer[m], total[m])


@compiled
def _enter_first_rows(z, g, after, buffers, slopes):
    """The rows that the first row of squares sees, but for the last."""
    for row in range(after):
        enter(z, row, whole(buffers.tile), buffers)
    for row in range(len(slopes.ring) - 1 - slopes.before):
        _enter_products(g, row, buffers.tile, slopes)


@compiled
def _weigh_row(first, size, m, i, after, query, slopes, norm, buffers):
    """The weights and s of the next row of squares, or of single pixels."""
    _next_row(first, size, m, i, after, query, slopes, buffers)
    weigh(query.scale, norm[m, i], buffers)
    if len(slopes.ring) == 1:
        pixel_slopes(slopes.g[m], i, whole(buffers.tile), slopes.totals, buffers)


@compiled
def pixel_slopes(g, i, centres, totals, buffers):
    """The slopes s of a row of single pixels, the i-th of these centres', where there is weight."""
    tile, weights, left, right = buffers.tile, buffers.weights, centres.z_column, centres.x_column
    for k in range(len(totals)):
        most = ZERO
        for n in range(LANES):
            most = larger(most, weights[k, n])
        totals[k] = 0.0
        if most > ZERO:
            for channel in range(len(tile)):
                value = g[channel, i + centres.z_row, k + left]
                for n in range(LANES):
                    totals[k, n] += value * tile[channel, i + centres.x_row, k + right, n]


@compiled
def _next_row(first, size, m, i, after, query, slopes, buffers):
    """The distances and s of a row of squares, of which one row of pixels is still to enter."""
    enter(query.z[m], i + after, whole(buffers.tile), buffers)
    start(first, size, query, buffers.totals)
    slide(buffers.column, len(buffers.ring), after, buffers.totals)
    if len(slopes.ring) > 1:
        ahead = len(slopes.ring) - 1 - slopes.before
        _enter_products(slopes.g[m], i + ahead, buffers.tile, slopes)
        slopes.totals[0] = 0.0
        slide(slopes.column, len(slopes.ring), ahead, slopes.totals)


@compiled
def _enter_products(g, row, tile, slopes):
    """A row of Σ_c g̃ x enters the sums along columns, and the one a side above leaves.

    Below the image the rows are zeros.
    """
    ring, column = slopes.ring, slopes.column
    c, h, w, _ = tile.shape
    slot = row % len(ring)
    if row < h and c == 3:
        for j in range(w):
            red, green, blue = g[0, row, j], g[1, row, j], g[2, row, j]
            for n in range(LANES):
                product = red * tile[0, row, j, n] + green * tile[1, row, j, n]
                product += blue * tile[2, row, j, n]
                column[j, n] += product - ring[slot, j, n]
                ring[slot, j, n] = product
        return
    for j in range(w):
        for n in range(LANES):
            column[j, n] -= ring[slot, j, n]
            ring[slot, j, n] = 0.0
        if row < h:
            for channel in range(c):
                value = g[channel, row, j]
                for n in range(LANES):
                    ring[slot, j, n] += value * tile[channel, row, j, n]
            for n in range(LANES):
                column[j, n] += ring[slot, j, n]


@compiled
def _add_slopes(mass, total, slopes, weights):
    """Add the weights of a row of squares, and times s; returns whether there is any."""
    heavy = False
    for k in range(len(mass)):
        part, weighted = ZERO, 0.0
        for n in range(LANES):
            part += weights[k, n]
            weighted += weights[k, n] * slopes[k, n]
        mass[k] += part
        total[k] += weighted
        heavy |= part > ZERO
    return heavy


@compiled
def tilt(weights, slopes, average):
    """The weights times s − s̄, in their place."""
    for k in range(len(average)):
        for n in range(LANES):
            weights[k, n] *= slopes[k, n] - average[k]


@compiled
def add_differences(column, tile, row, over, answer, total):
    """A row of pixels of the images, less the answer's, weighted and summed over the tile."""
    i, k, left, right = row + over.z_row, row + over.x_row, over.z_column, over.x_column
    for channel in range(len(tile)):
        for j in range(over.w):
            part, value = ZERO, answer[channel, i, j + left]
            for n in range(LANES):
                part += column[j, n] * np.float32(tile[channel, k, j + right, n] - value)
            total[channel, i, j + left] += part
