"""ELS by this build and by another, in turn, at many sides of images and squares.

    python benchmarks/els.py --against ../other-checkout [--out results/engine/els.csv]

The claim to test: than the build at 80f48dc, which compares all patches with all patches by matrix
products, sums over displacements are at least 8 times as fast at p = 7 and p = 15, for 2 noisy and
200 source images of 32 × 32 in colour. Then every side of an image and of a square is timed.
On one thread, times are the processor's (see common.py), so that other programs do not matter.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from builds import compare, serve
from common import add_data, named, parse, write
from einops import rearrange

import fpmc
from fpmc import Source, diffusion, methods
from fpmc.source import to_float

CLAIMED = [{"side": 32, "c": 3, "p": p, "n": 200, "b": 2} for p in (7, 15)]
SIDES = {8: (1, 2, 3, 5, 8), 16: (1, 2, 3, 5, 8, 11, 16), 28: (1, 3, 4, 7, 9, 14, 20, 28)}
SIDES |= {32: (1, 2, 3, 5, 8, 11, 15, 20, 24, 28, 32), 64: (1, 7, 33)}
TIMES = 8


def cases(options):
    """What is claimed, then every side with fewer images."""
    if options.claimed:
        return [{**case, "n": options.n} for case in CLAIMED]
    others = [
        {"side": side, "c": 1 if side in (8, 28) else 3, "p": p, "n": 32 if side > 32 else 64}
        for side, sides in SIDES.items()
        for p in sides
    ]
    return [*CLAIMED, *({**case, "b": 1} for case in others)]


def works(load, sigma, side, c, p, n, b):
    """An answer to noisy images of this side, cut from larger ones or put together of them."""
    data = load(n_train=4 * n, n_test=4 * b)
    train, test = (_cut(images, side, c) for images in (data.train, data.test))
    denoiser = methods.els(Source(train[:n].contiguous()), p)
    z = diffusion.add_noise(to_float(test[:b]), sigma, 0)
    return {"answer": lambda: denoiser(z, sigma)}


def _cut(images, side, c):
    """Images of this side and number of channels; four together where one is too small."""
    if side > images.shape[2]:
        images = rearrange(images, "(n i j) c h w -> n c (i h) (j w)", i=2, j=2)
    return images[:, :c, :side, :side]


def main(arguments=None):
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1, help="turns of each build")
    parser.add_argument("--claimed", action="store_true", help="measure what is claimed alone")
    parser.add_argument("--n", type=int, default=200, help="then, with so many source images")
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser, arguments)
    if options.serve:
        serve(partial(works, partial(fpmc.data.load, options.data, options.root), options.sigma))
        return
    words = list(sys.argv[1:] if arguments is None else map(str, arguments))
    rows = compare(options.against, [__file__, *words, "--serve"], cases(options), options.repeats)
    rows = [
        {"dataset": options.label, "sigma": options.sigma, "seed": 0, **row,
         "times as fast": 1 / row["answer: ratio"]}
        for row in rows
    ]  # fmt: skip
    least = min(row["times as fast"] for row in rows[: len(CLAIMED)])
    verdict = "holds" if least >= TIMES else "does not hold"
    print(f"at least {TIMES} times as fast at p = 7 and p = 15: {verdict}, by {least:.1f} times")
    if options.out:
        write(options.out, rows)


if __name__ == "__main__":
    with named():
        main()
