"""The CUDA kernels: checked against the float64 engine, then timed, in one run on one machine.

    python benchmarks/kernels.py [--data cifar10] [--b 8 64] [--method ...] [--out kernels.csv]

PSPC-Flex's masks are discs, of a tenth of the image; Lukoianov's are its own, at a threshold of
0.05. The alternatives, in float32 PyTorch on the same device:

- loop: the patches one after the other, each a softmax over the source's crops at its place; or,
  for matrices, the estimators one after the other. They are alike, so that a sample is timed and
  scaled up.
- one line: the broadcast difference to all source images, a product or pooling, a softmax and the
  weighted sum, with whole maps for all pairs; where these fit in memory.

"all tiles / ours" is how many times as long a call takes if tiles of zeros in matrices are read.

"of peak" is the operations of the products, 2 b N P K for each, per second, against those of a
large square matrix product in the same precision, measured in the same run.
"""

if __name__ != "__main__":  # as PyTorch looks for NVIDIA's package of this name, and finds this
    raise ImportError("a script, not NVIDIA's package")

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from common import add_data, fastest, gpu, named, parse, show, write
from paths import discs, loop, one_line

import fpmc
from fpmc import Source, diffusion, methods
from fpmc.engine import sparsity
from fpmc.engine.cuda import Cuda
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.engine.streaming import Streaming
from fpmc.operators import Box, Dense, Identity
from fpmc.source import to_float

CHECKED = 2_000
"""Source images of the check."""

NAMES = ("PSPC-Square", "LS", "PSPC-Flex", "Lukoianov")

SAMPLE = 4
"""Estimators of the loop that are timed."""


def cases(source, sigma, gaussian):
    """Q and R of each kernel, and the matrix products that they take."""
    pixels = source.shape[1:]
    masks = discs(pixels[0], 0.1, source.images.device)
    one_hot = Identity(pixels)
    wide, dimensions = methods.lukoianov(source, 0.05, gaussian=gaussian).operators(sigma)
    return {
        "PSPC-Square, p = 7": (Box(pixels, 7), Box(pixels, 7), 0),
        "LS, p = 7": (Box(pixels, 7, "clip"), one_hot, 0),
        "LS, p = 15": (Box(pixels, 15, "clip"), one_hot, 0),
        "PSPC-Flex": (masks, masks, 2),
        "Lukoianov": (Dense(wide.matrix.float()), dimensions, 1),
    }


def peaks(side=8192):
    """Operations a second of a square matrix product, by precision."""
    measured = {}
    kinds = {"exact": torch.float64, "tf32": torch.float32, "bf16": torch.bfloat16}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    for precision, dtype in kinds.items():
        a = torch.rand(side, side, dtype=dtype, device="cuda")
        product = torch.empty_like(a)
        measured[precision] = 2 * side**3 / fastest(lambda: torch.mm(a, a, out=product))  # noqa: B023
    torch.set_float32_matmul_precision(before)
    return measured


def check(name, queries, responses, z, sigma, source):
    """How far each precision is from the float64 engine; stops if exact is not."""
    wanted = Streaming(Problem(queries, responses, source, sigma)).answer(z.double())
    errors = {}
    for precision in ("exact", "tf32", "bf16"):
        asked = Problem(queries, responses, source, sigma, precision=precision)
        answer = Cuda(asked).answer(z)
        errors[precision] = ((answer - wanted).norm() / wanted.norm()).item()
    if not errors["exact"] <= tolerance(sigma):
        sys.exit(f"{name}, sigma = {sigma}: off by {errors['exact']:.2g}")
    return errors


def alternatives(z, x, sigma, queries, responses):
    """Seconds of the loop and of the one line; NaN where memory or a kernel's indices run out."""
    flat = len(queries.shape) == 3  # dimensions are then the pixels of a single channel
    z_f, x_f = (a.flatten(1)[:, None, None] if flat else a for a in (z, x))
    operators = (queries, responses)
    ways = {
        "loop": lambda: (
            loop(z, x, sigma, queries, responses, False)
            if isinstance(queries, Box)
            else loop_over_estimators(z, x, sigma, queries)
        ),
        "one line": lambda: fastest(lambda: one_line(z_f, x_f, sigma, *operators), 1, warm=False),
    }
    times = {}
    for name, measure in ways.items():
        try:
            times[name] = measure()
        except torch.OutOfMemoryError:
            times[name] = math.nan
        except RuntimeError as error:
            if "out of range" not in str(error):
                raise
            times[name] = math.nan
        torch.cuda.empty_cache()
    return times


def with_all_tiles(work):
    """Seconds where tiles of zeros are read like all others."""
    most, sparsity.MOST_TILES = sparsity.MOST_TILES, -1.0
    try:
        return fastest(work)
    finally:
        sparsity.MOST_TILES = most


def loop_over_estimators(z, x, sigma, queries):
    """Seconds of the loop over estimators, from a sample of them, a noisy image at a time."""
    rows = queries.matrix[:: queries.k // SAMPLE][:SAMPLE].float()

    def work():
        for z_b in z:
            for q in rows:
                logits = ((x - z_b).square_() * q).sum((1, 2, 3)).mul_(-0.5 / sigma**2)
                torch.softmax(logits, 0) @ x.flatten(1)

    return fastest(work, 1, warm=False) * queries.k / SAMPLE


def main():
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--n", type=int, help="source images (default: all)")
    parser.add_argument("--b", type=int, nargs="+", default=[8, 64], help="noisy images")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--method", nargs="+", choices=NAMES, help="these alone (default: all)")
    parser.add_argument("--budget", type=int, help="bytes of working memory")
    parser.add_argument("--no-alternatives", action="store_true", help="time the kernels alone")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: these kernels run on one only")

    device, most = torch.device("cuda", torch.cuda.current_device()), max(options.b)
    data = fpmc.data.load(options.data, options.root, n_train=options.n, n_test=most)
    source = Source(data.train.to(device))
    few, gaussian = Source(source.images[:CHECKED]), methods.wiener(source)
    best, rows = peaks(), []
    for sigma in options.sigma:
        z = diffusion.add_noise(to_float(data.test), sigma, 0).to(device)
        for name, (queries, responses, products) in cases(source, sigma, gaussian).items():
            if options.method and name.split(",")[0] not in options.method:
                continue
            errors = check(name, queries, responses, z[:4], sigma, few)
            for b in options.b:
                arguments = (z[:b], sigma, queries, responses, source)
                others = {"loop": math.nan, "one line": math.nan}
                if not options.no_alternatives:
                    others = alternatives(z[:b], to_float(source.images), *arguments[1:4])
                for precision, error in errors.items():
                    row = {"dataset": options.label, "method": name, "sigma": sigma, "seed": 0}
                    row |= {"N": len(source), "b": b, "precision": precision, "error": error}
                    start = time.perf_counter()
                    asked = Problem(*arguments[2:], sigma, options.budget, precision)
                    work = partial(Cuda(asked).answer, z[:b])
                    row["seconds"] = fastest(work)
                    all_tiles = with_all_tiles(work) if products else math.nan
                    pairs, k = b * len(source), queries.k
                    pixels = math.prod(queries.shape)
                    speed = 2 * products * pairs * pixels * k / row["seconds"]
                    row |= {"operations/s": speed, "of peak": speed / best[precision]}
                    every = {"all tiles": all_tiles, **others}
                    row |= {f"{other} / ours": s / row["seconds"] for other, s in every.items()}
                    rows.append({**row, **gpu(device)})
                    print(f"{name}, {precision}: {time.perf_counter() - start:.1f} s", flush=True)
                if options.out:
                    write(options.out, rows)
    show([{key: value for key, value in row.items() if key != "dataset"} for row in rows])


if __name__ == "__main__":
    with named():
        main()
