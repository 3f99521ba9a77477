"""What certified pruning looks at, what it takes, and how far its bound is from the true error.

    python benchmarks/pruning.py [--data cifar10] [--n 10000] [--b 4] [--eps 1e-6] [--out FILE]

The error is the largest difference of any value from the answer over the whole source; below about
1e-6 it is rounding, of which the bound says nothing.
"""

import argparse
from pathlib import Path

from common import add_data, fastest, named, parse, show, write
from paths import discs

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.operators import Box, Identity, Ones
from fpmc.source import to_float


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--n", type=int, default=10_000, help="source images")
    parser.add_argument("--b", type=int, default=4, help="noisy images")
    parser.add_argument("--eps", type=float, default=1e-6, help="share of weight to leave out")
    parser.add_argument(
        "--sigma", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]
    )
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser)

    data = fpmc.data.load(options.data, options.root, n_train=options.n, n_test=options.b)
    source = Source(data.train)
    pixels, side = source.shape[1:], source.shape[1]
    local, large = discs(side, 0.1, "cpu"), discs(side, 0.6, "cpu")
    methods = {
        "optimal": (Ones(pixels), Ones(pixels)),
        "PSPC-Square, p = 15": (Box(pixels, 15), Box(pixels, 15)),
        "LS, p = 15": (Box(pixels, 15, "clip"), Identity(pixels)),
        "local masks, Q and R": (local, local),
        "large masks, Q and R": (large, large),
    }
    rows = []
    for name, (queries, responses) in methods.items():
        denoiser = FPMC(queries, responses, source)
        for sigma in options.sigma:
            z = diffusion.add_noise(to_float(data.test), sigma, 0)
            result = denoiser.pruned(z, sigma, options.eps)
            row = {"dataset": options.label, "method": name, "sigma": sigma, "seed": 0}
            row |= {"N": len(source), "b": len(z), "eps": options.eps}
            row["kept"] = result.kept.double().mean().item() / len(source)
            row["pruned"] = fastest(lambda: denoiser.pruned(z, sigma, options.eps), 1, warm=False)  # noqa: B023
            row["whole"] = fastest(lambda: denoiser(z, sigma), 2)  # noqa: B023
            row["bound"] = result.bound.max().item()
            row["error"] = (result.x_hat - denoiser(z, sigma)).abs().max().item()
            rows.append(row)
    show([{key: value for key, value in row.items() if key != "dataset"} for row in rows])
    if options.out:
        write(options.out, rows)


if __name__ == "__main__":
    with named():
        main()
