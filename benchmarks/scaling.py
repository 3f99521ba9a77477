"""How the time grows: with the sources, the noisy images, the pixels, the side of the squares, σ.

    python benchmarks/scaling.py [--data cifar10] [--n 12500] [--method ELS]
        [--out results/engine/scaling.csv]

Each quantity is changed on its own, the others stay (but dense operators have at most as many
estimators as pixels); the sources from a quarter to four times their number. The exponent is the
slope of a least-squares line through the logarithms of the times.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from common import add_data, fastest, named, parse, show, write

import fpmc
from fpmc import FPMC, Source, diffusion, methods
from fpmc.operators import Box, Dense, Identity, Ones
from fpmc.source import to_float

METHODS = ("optimal", "PSPC-Square", "LS", "ELS", "dense Q and R")


def seconds(load, method, n, b, side, p, sigma, k):
    """Time one call on images cut to this side."""
    data = load(n_train=n, n_test=b)
    train, test = (images[..., :side, :side] for images in (data.train, data.test))
    pixels, source = (side, side), Source(train.contiguous())
    dense = Dense(Box(pixels, p, "clip").dense()[:k] + 1e-3)  # no windows
    operators = {
        "optimal": (Ones(pixels), Ones(pixels)),
        "PSPC-Square": (Box(pixels, p), Box(pixels, p)),
        "LS": (Box(pixels, p, "clip"), Identity(pixels)),
        "dense Q and R": (dense, dense),
    }
    z = diffusion.add_noise(to_float(test), sigma, 0)
    denoiser = methods.els(source, p) if method == "ELS" else FPMC(*operators[method], source)
    return fastest(lambda: denoiser(z, sigma), 3)


def main(arguments=None):
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--n", type=int, default=12_500, help="source images")
    parser.add_argument("--dense-n", type=int, default=1_000, help="the same, for dense operators")
    parser.add_argument("--els-n", type=int, default=256, help="the same, for ELS")
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS, help="only these")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser, arguments)

    load = partial(fpmc.data.load, options.data, options.root)
    largest = min(32, *load(n_train=1, n_test=1).train.shape[2:])
    rows = []
    for method in options.method:
        n = {"dense Q and R": options.dense_n, "ELS": options.els_n}.get(method, options.n)
        fixed = {
            "n": n,
            "b": 8,
            "side": largest,
            "p": min(7, largest // 2),
            "sigma": 1.0,
            "k": 1024,
        }
        changed = {"n": [n // 4, n // 2, n, 2 * n, 4 * n], "b": [2, 4, 8, 16, 32]}
        changed |= {"side": [largest // 2, largest], "sigma": [0.05, 0.2, 1.0, 5.0, 20.0]}
        if method in ("PSPC-Square", "LS", "ELS"):
            changed["p"] = [p for p in (3, 7, 15, 25) if p <= largest]
        if method == "dense Q and R":
            changed["k"] = [128, 256, 512, 1024]
        for name, values in changed.items():
            times = [seconds(load, method, **{**fixed, name: value}) for value in values]
            sizes = [value**2 for value in values] if name == "side" else values
            exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
            for value, size, time in zip(values, sizes, times, strict=True):
                settings = {**fixed, name: value}
                settings["k"] = min(settings["k"], settings["side"] ** 2)
                row = {"dataset": options.label, "method": method, "seed": 0, **settings}
                row |= {"changed": "pixels" if name == "side" else name, "size": size}
                rows.append({**row, "seconds": time, "exponent": exponent})
        if options.out:
            write(options.out, rows)
    show([{key: value for key, value in row.items() if key != "dataset"} for row in rows])


if __name__ == "__main__":
    with named():
        main()
