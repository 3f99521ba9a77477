"""The compiled passes of :mod:`fpmc.finetuning.fused` over images and weights.

Images are read as they are stored, x of shape (N, c, p), at positions `rows`. Each pass makes one
go over its arrays.
"""

import numpy as np

from fpmc.engine.cpu.compiled import compiled, exp, larger

__all__ = ["BINS", "BLOCK", "answers", "differences", "gather", "mix", "rate", "tally", "weigh"]

BLOCK = 512
"""Source images whose weights are summed in float32; such sums are added by the caller."""

LANES = 16
"""Estimators at a time, so that inner loops become vector instructions."""

LEAST = np.float32(-40)
"""Logarithm of the smallest weight, relative to the largest, so that products stay normal."""

TYPICAL = np.float32(3)
"""How much less than of any estimator's weight is left out of all estimators' on average."""

FINENESS = np.int32(19)
"""Bits of a float32 that do not choose its bin: there are 16 bins an octave."""

LOWEST = np.int32(47 << 4)
"""The bin of 2⁻⁸⁰."""

BINS = 83 << 4
"""Up to 8, above any score."""

NONE = np.float32(0)


@compiled
def differences(x, rows, scale, base, twice, out):
    """Σ_c v (v − 2 z) for each image and pixel, v = scale x + base: δ but for constants.

    Args:
        x: Images.
        rows: Which, shape (n,).
        scale: See above.
        base: Shape (c, p).
        twice: 2 z, shape (c, p).
        out: Shape (n, p), written.
    """
    c, p = base.shape
    for i in range(len(rows)):
        row = rows[i]
        for j in range(p):
            out[i, j] = NONE
        for m in range(c):
            for j in range(p):
                v = np.float32(x[row, m, j]) * scale + base[m, j]
                out[i, j] += v * (v - twice[m, j])


@compiled
def answers(x, rows, factor, offset, out):
    """Σ_c factor x − offset for each image and pixel, x as it is stored.

    Args:
        x: Images.
        rows: Which, shape (n,).
        factor: Shape (c, p).
        offset: Shape (p,).
        out: Shape (n, p), written.
    """
    c, p = factor.shape
    for i in range(len(rows)):
        row = rows[i]
        for j in range(p):
            out[i, j] = -offset[j]
        for m in range(c):
            for j in range(p):
                out[i, j] += factor[m, j] * np.float32(x[row, m, j])


@compiled
def mix(x, rows, mixed, total):
    """Add Σ_n mixed ⊙ x to a total of shape (c, p), x as it is stored.

    Args:
        x: Images.
        rows: Which, shape (n,).
        mixed: Shape (n, p).
        total: Shape (c, p), updated.
    """
    c, p = total.shape
    for i in range(len(rows)):
        row = rows[i]
        for m in range(c):
            for j in range(p):
                total[m, j] += mixed[i, j] * np.float32(x[row, m, j])


@compiled
def weigh(ell, peak, begin, end, totals):
    """Log-weights to weights, relative to each estimator's largest, in place.

    Args:
        ell: Log-weights, shape (n, k).
        peak: The largest of each estimator, shape (k,).
        begin: First image, a multiple of BLOCK.
        end: One more than the last.
        totals: Their sums for every BLOCK images, shape (blocks, k), zeros, added to.
    """
    for n in range(begin, end):
        total = totals[n // BLOCK]
        for k in range(len(peak)):
            e = exp(larger(ell[n, k] - peak[k], LEAST))
            ell[n, k] = e
            total[k] += e


@compiled
def rate(weights, share, ends, begin, end, buffers, scores):
    """What a group of estimators would lose with an image: the most that one does, or more than
    they do on average.

    Args:
        weights: Shape (n, k).
        share: What makes their sums 1, shape (k,).
        ends: Where groups of estimators begin and end, shape (g + 1,).
        begin: First image.
        end: One more than the last.
        buffers: Shape (2, LANES).
        scores: Shape (n, g), written.
    """
    tops, sums = buffers[0], buffers[1]
    for n in range(begin, end):
        for g in range(len(ends) - 1):
            start, stop = ends[g], ends[g + 1]
            whole = start + (stop - start) // LANES * LANES
            for lane in range(LANES):
                tops[lane] = NONE
                sums[lane] = NONE
            for first in range(start, whole, LANES):
                for lane in range(LANES):
                    w = weights[n, first + lane] * share[first + lane]
                    tops[lane] = larger(tops[lane], w)
                    sums[lane] += w
            top, total = NONE, NONE
            for lane in range(LANES):
                top = larger(top, tops[lane])
                total += sums[lane]
            for k in range(whole, stop):
                w = weights[n, k] * share[k]
                top = larger(top, w)
                total += w
            scores[n, g] = larger(top, TYPICAL * total / np.float32(stop - start))


@compiled
def tally(scores, bits, bins, sums):
    """Sums of the scores in bins, so that those to leave out are found without sorting.

    Args:
        scores: Shape (n, g).
        bits: The same as int32.
        bins: Each score's bin, shape (n, g), written.
        sums: Shape (g, BINS), zeros, added to.
    """
    for n in range(len(scores)):
        for g in range(scores.shape[1]):
            at = min(max((bits[n, g] >> FINENESS) - LOWEST, np.int32(0)), np.int32(BINS - 1))
            bins[n, g] = at
            sums[g, at] += scores[n, g]


@compiled
def gather(weights, index, start, begin, end, out, totals):
    """Copy some images' weights of neighbouring estimators.

    Args:
        weights: Shape (n, k).
        index: Which images, shape (m,).
        start: The first estimator.
        begin: The first of the images' places in the index, a multiple of BLOCK.
        end: One more than the last.
        out: Shape (m, j), written.
        totals: Sums for every BLOCK images, shape (blocks, j), zeros, added to.
    """
    for i in range(begin, end):
        n, total = index[i], totals[i // BLOCK]
        for k in range(out.shape[1]):
            w = weights[n, start + k]
            out[i, k] = w
            total[k] += w
