r"""The compiled inner loops of :mod:`fpmc.engine.cpu.displacements`.

Moved by a displacement, a source image overlaps the noisy one in a rectangle, and in it the loops
are those of :mod:`fpmc.engine.cpu.squares_kernels` and of :mod:`fpmc.engine.cpu.squares_vjp`, with
the same buffers. Squares of side p, the length of the rings, have their centres where their
boundary class lets them move: along an axis with a displacement of 0 at every pixel, and clipped at
the border; along another where they fit, before and after.
"""

from fpmc.engine.cpu.compiled import LANES, compiled, larger
from fpmc.engine.cpu.running_sums import (
    ZERO,
    Buffers,
    Overlap,
    Spread,
    clear,
    enter,
    enter_weights,
    load,
    slide,
    start,
)
from fpmc.engine.cpu.squares_kernels import LOW, SKIP, add, rise, weigh
from fpmc.engine.cpu.squares_vjp import add_differences, pixel_slopes, tilt

__all__ = ["mean", "vjp"]


@compiled
def mean(query, x, begin, end, own, step, cutoff, peak, mass, total, buffers):
    """Running maximum, sum and mean at every pixel, over the source and over displacements.

    Args:
        query: The query.
        x: The source images, shape (N, c, h, w).
        begin: First image of this thread, a multiple of LANES.
        end: One more than its last.
        own: First displacement of this thread.
        step: From one of its displacements to the next.
        cutoff: How far below the largest so far a log-weight does not count, float32.
        peak: Largest log-weight so far, shape (b, h, w), updated.
        mass: Sum of weights over that of the peak, likewise.
        total: Sum of weights times centre pixels, likewise, shape (b, c, h, w).
        buffers: Buffers.
    """
    p, (h, w) = len(buffers.ring), peak.shape[1:]
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            for number in range(own, (2 * (h - p) + 1) * (2 * (w - p) + 1), step):
                over, centres, above, left = _moved(number, p, h, w)
                part = _narrow(buffers, over, centres)
                part.column[:] = 0.0
                below = p - 1 - above
                for row in range(below):
                    enter(query.z[m], row, over, part)
                for row in range(centres.h):
                    enter(query.z[m], row + below, over, part)
                    start(first, len(x), query, buffers.totals)
                    i, j = row + centres.z_row, centres.z_column
                    mass_row, sums = mass[m, i, j : j + centres.w], total[m, :, i, j:]
                    peak_row = peak[m, i, j : j + centres.w]
                    _take(query.scale, cutoff, p - 1 - left, peak_row, mass_row, sums, buffers)
                    add(row + centres.x_row, centres.x_column, mass_row, sums, part)


@compiled
def vjp(query, g, x, begin, end, own, step, norm, average, answer, total, slopes, buffers, spread):
    """Σ_n Σ_T (Qᵀ ∂ℓ_nT) ⊙ (T x_n − x̂), with T the displacements, added to the total.

    Args:
        query: The query, as in :func:`mean`; so are x, begin, end, own, step and buffers.
        g: The gradient with respect to the answer, float64, shape (b, c, h, w).
        x: The source images.
        begin: First image of this thread.
        end: One more than its last.
        own: First displacement of this thread.
        step: From one of its displacements to the next.
        norm: Each pixel's log-normaliser, shape (b, h, w).
        average: The mean of s = Σ_c g x under its posterior, likewise.
        answer: x̂ in the source's own units, shape (b, c, h, w).
        total: The sum, likewise.
        slopes: A buffer for s of a row of centres, shape (w, LANES).
        buffers: Buffers.
        spread: Buffers.
    """
    p, (h, w) = len(buffers.ring), norm.shape[1:]
    for first in range(begin, end, LANES):
        load(x, first, buffers.tile)
        for m in range(len(query.z)):
            for number in range(own, (2 * (h - p) + 1) * (2 * (w - p) + 1), step):
                over, centres, above, left = _moved(number, p, h, w)
                part, s = _narrow(buffers, over, centres), slopes[: centres.w]
                back = Spread(spread.ring, spread.column[: over.w], spread.totals[: over.w])
                part.column[:] = 0.0
                clear(back.ring, back.column)
                below = p - 1 - above
                for row in range(below):
                    enter(query.z[m], row, over, part)
                for row in range(over.h + above):
                    if row < centres.h:
                        _next_row(first, len(x), m, row, below, p - 1 - left, query, over, part)
                        i, j = row + centres.z_row, centres.z_column
                        weigh(query.scale, norm[m, i, j : j + centres.w], part)
                        pixel_slopes(g[m], row, centres, s, part)
                        tilt(part.weights, s, average[m, i, j : j + centres.w])
                    enter_weights(row < centres.h, row, left, part.weights, back)
                    if row >= above:
                        add_differences(
                            back.column, part.tile, row - above, over, answer[m], total[m]
                        )


@compiled
def _take(scale, cutoff, ahead, peak, mass, sums, buffers):
    """What :func:`fpmc.engine.cpu.squares_kernels.take` does, together with the distances.

    Each takes the place of that before it, and the first the place of what it starts from; zeros
    beside the column sums make the same loop of all.
    """
    column, totals, weights, p = buffers.column, buffers.totals, buffers.weights, len(buffers.ring)
    for j in range(p, p + ahead):
        for n in range(LANES):
            totals[0, n] += column[j, n]
    for k in range(len(peak)):
        at, top, leaving = peak[k], LOW, k + ahead
        for n in range(LANES):
            totals[0, n] += column[leaving + p, n] - column[leaving, n]
            weights[k, n] = scale * totals[0, n] - at
            top = larger(top, weights[k, n])
        if top > ZERO:
            rise(k, 0, scale, peak, mass, sums, totals, weights)
        elif top <= -cutoff:
            weights[k, 0] = SKIP


@compiled
def _next_row(first, size, m, row, below, right, query, over, part):
    """The distances of a row of squares, of which one row of pixels is still to enter."""
    enter(query.z[m], row + below, over, part)
    start(first, size, query, part.totals)
    slide(part.column, len(part.ring), right, part.totals)


@compiled
def _narrow(buffers, over, centres):
    """The part of the buffers that rows of an overlap and its centres take."""
    margin = len(buffers.ring)
    return Buffers(
        buffers.tile,
        buffers.ring,
        buffers.column[margin : margin + over.w],
        buffers.totals[: centres.w],
        buffers.weights[: centres.w],
    )


@compiled
def _moved(number, p, h, w):
    """What overlaps at a displacement, given by its number, and where the squares' centres lie.

    Beside them, how many pixels a square reaches above and left of where its centre's row and
    column start, as ``query.before``.
    """
    across = 2 * (w - p) + 1
    z_row, x_row, rows, above, grid_h, down = _along(number // across - (h - p), p, h)
    z_column, x_column, columns, left, grid_w, ahead = _along(number % across - (w - p), p, w)
    over = Overlap(rows, columns, z_row, z_column, x_row, x_column)
    corner = (z_row + down, z_column + ahead, x_row + down, x_column + ahead)
    return over, Overlap(grid_h, grid_w, *corner), above, left


@compiled
def _along(move, p, side):
    """The same along one axis: firsts in z and x, pixels, reach, centres, and the first of them."""
    z_first, x_first, length = max(0, -move), max(0, move), side - abs(move)
    if move == 0:
        return z_first, x_first, length, p // 2, side, 0
    return z_first, x_first, length, 0, length - p + 1, p // 2
