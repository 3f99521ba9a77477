"""Every path against the ways that its structure replaces, in one run, on crops of photographs.

    python benchmarks/paths.py [--n 10000] [--b 8] [--out results/engine/paths.csv]

The alternatives, in float32 PyTorch, on all threads:

- loop: the patches one after the other, each a softmax over the source's crops at its place, from
  sums of squared differences, a chunk of the source at a time. The positions are alike, so that a
  sample of them is timed and scaled up.
- products: the same loop, with the distances expanded into a matrix product. Less exact.
- one line: the broadcast difference to all source images, summed over windows by pooling, a
  softmax, and the weighted sum; whole maps for all pairs of images in memory.

With --out, the table also holds the achieved operations a second, as the plan counts them, and the
bytes of the source read a second, against the machine's own peaks, measured in the same run.
"""

import argparse
import math
from pathlib import Path

import torch
from common import fastest, show, write
from torch.nn import functional

import fpmc
from fpmc import FPMC, Source, diffusion, engine
from fpmc.operators import Box, Dense, Identity, Ones
from fpmc.source import to_float

CHUNK = 1_000
SAMPLE = 6


def loop(z, x, sigma, queries, products, timed=fastest):
    """Seconds of the loop over patches, from a sample of its positions."""
    p, width = queries.p, queries.grid[1]
    clipped = queries.border == "clip"
    before = p // 2 if clipped else 0
    places = torch.linspace(0, queries.k - 1, SAMPLE + 2).long()[1:-1].tolist()

    def work():
        answer = torch.zeros_like(z)
        for i, j in (divmod(place, width) for place in places):
            rows = slice(max(i - before, 0), i - before + p)
            columns = slice(max(j - before, 0), j - before + p)
            patch, patches = z[..., rows, columns].flatten(1), x[..., rows, columns].flatten(1)
            parts = [distances(patch, part, products) for part in patches.split(CHUNK)]
            weights = torch.softmax(torch.cat(parts, 1).mul_(-0.5 / sigma**2), 1)
            if clipped:
                answer[..., i, j] = weights @ x[..., i, j]
            else:
                answer[..., rows, columns] += (weights @ patches).view(len(z), -1, p, p)

    return timed(work, 1, warm=False) * queries.k / SAMPLE


def distances(patch, patches, products):
    """Squared distances between the rows of two matrices."""
    if products:
        squares = patch.square().sum(1, keepdim=True) + patches.square().sum(1)
        return torch.addmm(squares, patch, patches.T, alpha=-2)
    return (patch.unsqueeze(1) - patches).square_().sum(-1)


def one_line(z, x, sigma, queries, responses):
    """The answer by whole maps for all pairs of images."""
    if queries.k == 1:
        logits = (z.unsqueeze(1) - x).square_().sum((2, 3, 4)).mul_(-0.5 / sigma**2)
        return (torch.softmax(logits, 1) @ x.flatten(1)).view_as(z)
    delta, one_hot = (z.unsqueeze(1) - x).square_().sum(2), isinstance(responses, Identity)
    if isinstance(queries, Dense):
        sums = delta.flatten(2) @ queries.matrix.flatten(1).T
        weights = torch.softmax(sums.mul_(-0.5 / sigma**2), 1)
        if not one_hot:
            weights = (weights @ responses.matrix.flatten(1)) / responses.coverage().flatten()
        return torch.einsum("bnp,ncp->bcp", weights, x.flatten(2)).view_as(z)
    p = queries.p
    pad = (p // 2, (p - 1) // 2) * 2 if one_hot else (0,) * 4
    sums = window_sums(functional.pad(delta, pad), p)
    weights = torch.softmax(sums.mul_(-0.5 / sigma**2), 1)
    if not one_hot:
        spread = functional.avg_pool2d(
            functional.pad(weights, (p - 1,) * 4), p, 1, divisor_override=1
        )
        weights = spread / responses.coverage().to(spread)
    return torch.einsum("bnhw,nchw->bchw", weights, x)


def window_sums(maps, p):
    """Sums over squares of side p."""
    return functional.avg_pool2d(maps, p, 1, divisor_override=1)


def discs(side, share):
    """Masks of zeros and ones, a row per pixel: the share of pixels nearest to it."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    kept = torch.cdist(places, places).argsort(1)[:, : round(share * side**2)]
    return Dense(torch.zeros(side**2, side**2).scatter_(1, kept, 1.0).view(-1, side, side))


def measure(name, queries, responses, source, z, sigma, repeats):
    """A row of the table."""
    x, plan = to_float(source.images), engine.plan(queries, responses, source, len(z))
    denoiser, square = FPMC(queries, responses, source), isinstance(queries, Box)
    ours = fastest(lambda: denoiser(z, sigma), repeats)
    answer = one_line(z, x, sigma, queries, responses)
    error = ((answer - denoiser(z, sigma)).norm() / answer.norm()).item()
    others = {
        "loop": loop(z, x, sigma, queries, False) if square else math.nan,
        "products": loop(z, x, sigma, queries, True) if square else math.nan,
        "one line": fastest(lambda: one_line(z, x, sigma, queries, responses), 1),
    }
    return {
        "dataset": "photos32", "method": name, "sigma": sigma, "seed": 0, "N": len(x), "b": len(z),
        "path": plan.path, "ours": ours, **others,
        **{f"{other} / ours": seconds / ours for other, seconds in others.items()},
        "one line's error": error, "operations/s": plan.flops / ours, "bytes/s": plan.bytes / ours,
    }  # fmt: skip


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="source images")
    parser.add_argument("--dense-n", type=int, default=1_000, help="the same, for dense operators")
    parser.add_argument("--b", type=int, default=8, help="noisy images")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()

    data = fpmc.data.load("photos32", n_train=max(options.n, options.dense_n), n_test=options.b)
    many, few = Source(data.train[: options.n]), Source(data.train[: options.dense_n])
    pixels, one_hot = many.shape[1:], Identity(many.shape[1:])
    masks = discs(pixels[0], 0.1)
    cases = {
        "optimal": (Ones(pixels), Ones(pixels), many),
        "PSPC-Square, p = 7": (Box(pixels, 7), Box(pixels, 7), many),
        "PSPC-Square, p = 15": (Box(pixels, 15), Box(pixels, 15), many),
        "LS, p = 7": (Box(pixels, 7, "clip"), one_hot, many),
        "LS, p = 15": (Box(pixels, 15, "clip"), one_hot, many),
        "dense Q, one-hot R": (masks, one_hot, few),
        "dense Q and R": (masks, masks, few),
    }
    a, long = torch.ones(1024, 1024), torch.ones(2**23)
    wide = a.double()
    peaks = {
        "float64 peak": 2 * len(a) ** 3 / fastest(lambda: wide @ wide),
        "float32 peak": 2 * len(a) ** 3 / fastest(lambda: a @ a),
        "copy peak": 2 * long.nbytes / fastest(lambda: long.clone()),
    }
    rows = []
    for name, (queries, responses, source) in cases.items():
        for sigma in options.sigma:
            z = diffusion.add_noise(to_float(data.test), sigma, 0)
            row = measure(name, queries, responses, source, z, sigma, options.repeats)
            rows.append({**row, **peaks})
            show([{key: value for key, value in row.items() if key != "dataset"}])
            if options.out:
                write(options.out, rows)


if __name__ == "__main__":
    main()
