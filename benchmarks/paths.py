"""Every path against the ways that its structure replaces, in one run, on real images.

    python benchmarks/paths.py [--data cifar10] [--n 10000] [--device cuda] [--out paths.csv]
    python benchmarks/paths.py --against ../other-checkout

The alternatives, in float32 PyTorch, on all threads or the same device:

- loop: the patches one after the other, each a softmax over the source's crops at its place, from
  sums of squared differences, a chunk of the source at a time. A sample of the positions, spread
  evenly, is timed and scaled up.
- products: the same loop, with the distances expanded into a matrix product. Less exact.
- one line: the broadcast difference to all source images, summed over windows by pooling, a
  softmax, and the weighted sum; whole maps for all pairs of images in memory.

- KeOps, where pykeops is installed: the optimal denoiser as a lazy softmax reduction.

ELS, whose estimators also see the source's patches elsewhere, has the loops alone, over the pixels
whose squares fit: one line's maps of all pairs of patches fit no memory.

Beside them: going back, as a multiple of the answer's time; the float32 mode, where there is one,
and its error; and the operations and bytes that the plan counts, against the peaks of the machine,
measured in the same run.

With --against the same rows are run by this build and by that of another checkout instead, in turn:
the medians of the times of answers and of going back, their ratios, and whether the bits agree.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch
from builds import compare, serve
from common import add_data, fastest, gpu, named, parse, show, write
from torch.nn import functional

import fpmc
from fpmc import FPMC, Source, diffusion, engine, methods
from fpmc.checks import as_device
from fpmc.operators import Box, Dense, Identity, Ones
from fpmc.source import to_float

METHODS = [
    "optimal",
    *(f"{name}, p = {p}" for name in ("PSPC-Square", "LS") for p in (7, 15)),
    *(f"{name} masks, {r}" for name in ("local", "large") for r in ("one-hot R", "Q and R")),
    "ELS, p = 7",
]
CHUNK = 1_000
"""Source images of a step of the loop."""
TRANSLATED = 50
"""The same where each gives all its patches."""
SAMPLE = 6
"""Positions of the loop that are timed."""


def loop(z, x, sigma, queries, responses, products):
    """Seconds of the loop over estimators, from a sample of them."""
    one_hot, flat_z, flat_x = isinstance(responses, Identity), z.flatten(2), x.flatten(2)
    places = torch.linspace(0, queries.k - 1, SAMPLE + 2).long()[1:-1].tolist()
    masks = queries.dense(torch.bool) if isinstance(queries, Dense) else None
    p, width = getattr(queries, "p", 0), getattr(queries, "grid", (0, 0))[1]
    before = p // 2 if one_hot else 0

    def work():
        answer = torch.zeros_like(flat_z)
        for k in places:
            if masks is None:  # views
                i, j = divmod(k, width)
                window = (..., slice(max(i - before, 0), i - before + p),
                          slice(max(j - before, 0), j - before + p))  # fmt: skip
                patch, patches = z[window].flatten(1), x[window].flatten(1)
            else:  # copies
                window = (..., masks[k].flatten().nonzero()[:, 0])
                patch, patches = flat_z[window].flatten(1), flat_x[window].flatten(1)
            parts = [distances(patch, part, products) for part in patches.split(CHUNK)]
            weights = torch.softmax(torch.cat(parts, 1).mul_(-0.5 / sigma**2), 1)
            if one_hot:
                answer[..., k] = weights @ flat_x[..., k]
            else:
                target = answer.view_as(z) if masks is None else answer
                target[window] += (weights @ patches).view(target[window].shape)

    return fastest(work, 1, warm=False) * queries.k / SAMPLE


def loop_over_translations(z, x, sigma, p, products):
    """Seconds of ELS's loop over pixels whose squares fit, from a sample of them."""
    count = (z.shape[2] - p + 1) * (z.shape[3] - p + 1)
    places = torch.linspace(0, count - 1, SAMPLE).long().tolist()
    patches_z = functional.unfold(z, p)
    middle = (slice(p // 2, z.shape[2] - (p - 1) // 2), slice(p // 2, z.shape[3] - (p - 1) // 2))

    def work():
        for place in places:
            parts = []
            for images in x.split(TRANSLATED):
                patches = functional.unfold(images, p).transpose(1, 2).flatten(0, 1)
                parts.append(distances(patches_z[..., place], patches, products))
            weights = torch.softmax(torch.cat(parts, 1).mul_(-0.5 / sigma**2), 1)
            weights @ x[..., *middle].transpose(0, 1).flatten(1).T

    return fastest(work, 1, warm=False) * count / SAMPLE


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


def keops(z, x, sigma):
    """Seconds of KeOps's softmax reduction for the optimal denoiser; NaN without it."""
    try:
        from pykeops.torch import LazyTensor
    except ImportError:
        return math.nan
    x, flat = x.flatten(1).contiguous(), z.flatten(1).contiguous()

    def work():
        squares = ((LazyTensor(flat[:, None]) - LazyTensor(x[None])) ** 2).sum(-1)
        return (squares * (-0.5 / sigma**2)).sumsoftmaxweight(LazyTensor(x[None]), axis=1)

    return fastest(work, 1)


def discs(side, share, device):
    """Masks of zeros and ones, a row per pixel: the share of pixels nearest to it."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    kept = torch.cdist(places, places).argsort(1)[:, : round(share * side**2)]
    masks = torch.zeros(side**2, side**2).scatter_(1, kept, 1.0)
    return Dense(masks.view(-1, side, side).to(device))


def measure(queries, responses, source, z, sigma, repeats, budget):
    """A collection's part of a row."""
    x, single = to_float(source.images), queries.k == 1
    plan = engine.plan(queries, responses, source, len(z), device=z.device, budget=budget)
    denoiser = FPMC(queries, responses, source, budget=budget)
    ours, exact = fastest(lambda: denoiser(z, sigma), repeats), denoiser(z, sigma)
    others = {
        "loop": math.nan if single else loop(z, x, sigma, queries, responses, False),
        "products": math.nan if single else loop(z, x, sigma, queries, responses, True),
        "one line": fastest(lambda: one_line(z, x, sigma, queries, responses), 1),
        "keops": keops(z, x, sigma) if single else math.nan,
    }
    fast = denoiser.with_precision("float32") if isinstance(queries, Dense) else None
    return {
        "path": plan.path, "ours": ours, **compared(others, ours),
        "one line's error": gap(one_line(z, x, sigma, queries, responses), exact),
        "back / ours": back(denoiser, z, sigma, repeats) / ours,
        "float32": fastest(lambda: fast(z, sigma), repeats) if fast else math.nan,
        "float32's error": gap(fast(z, sigma), exact) if fast else math.nan,
        "operations": plan.flops, "operations32": plan.flops32, "bytes": plan.bytes,
    }  # fmt: skip


def measure_translated(p, source, z, sigma, budget):
    """ELS's part of a row, timed once: it takes as long as all others together."""
    x, denoiser = to_float(source.images), methods.els(source, p, budget=budget)
    ours = fastest(lambda: denoiser(z, sigma), 1)
    others = {
        "loop": loop_over_translations(z, x, sigma, p, False),
        "products": loop_over_translations(z, x, sigma, p, True),
    }
    operators = (Box(tuple(z.shape[2:]), p, "clip"), Identity(tuple(z.shape[2:])))
    options = {"device": z.device, "budget": budget, "translated": True}
    path = engine.plan(*operators, source, len(z), **options).path
    return {"path": path, "ours": ours, **compared(others, ours)}


def compared(others, ours):
    """The seconds of other ways, and as multiples of ours."""
    return others | {f"{other} / ours": seconds / ours for other, seconds in others.items()}


def gap(answer, exact):
    """Relative distance (L2)."""
    return ((answer - exact).norm() / exact.norm()).item()


def back(denoiser, z, sigma, repeats):
    """Seconds from the gradient of an answer to that of z."""
    leaf = z.clone().requires_grad_()
    answer, direction = denoiser(leaf, sigma), torch.ones_like(z)
    return fastest(lambda: torch.autograd.grad(answer, leaf, direction, retain_graph=True), repeats)


def cases(options):
    """Each method at each σ."""
    names = options.method or METHODS
    return [{"method": name, "sigma": sigma} for name in names for sigma in options.sigma]


def collections(many, few, device):
    """Q, R and the source of each method but ELS."""
    pixels, one_hot = many.shape[1:], Identity(many.shape[1:])
    local, large = (discs(pixels[0], share, device) for share in (0.1, 0.6))
    pairs = [
        (Ones(pixels), Ones(pixels), many),
        *((Box(pixels, p), Box(pixels, p), many) for p in (7, 15)),
        *((Box(pixels, p, "clip"), one_hot, many) for p in (7, 15)),
        *((q, r, few) for q in (local, large) for r in (one_hot, q)),
    ]
    return dict(zip(METHODS[:-1], pairs, strict=True))


def works(built, few, images, options, method, sigma):
    """What two builds are compared by: an answer, and but for ELS going back."""
    z = diffusion.add_noise(images, sigma, 0).to(options.device)
    if method not in built:
        denoiser = methods.els(few, 7, budget=options.budget)
        return {"answer": lambda: denoiser(z, sigma)}
    denoiser = FPMC(*built[method], budget=options.budget)
    leaf = z.clone().requires_grad_()
    answer, direction = denoiser(leaf, sigma), torch.ones_like(z)
    gradient = partial(torch.autograd.grad, answer, leaf, direction, retain_graph=True)
    return {"answer": lambda: denoiser(z, sigma), "back": lambda: gradient()[0]}


def main(arguments=None):
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--n", type=int, default=10_000, help="source images")
    parser.add_argument("--dense-n", type=int, default=4_000, help="for dense operators and ELS")
    parser.add_argument("--b", type=int, default=8, help="noisy images")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", action="append", help="measure these alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", type=int, help="bytes of working memory")
    parser.add_argument("--against", type=Path, help="another checkout, to compare builds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser, arguments)
    if options.against and not options.serve:
        words = sys.argv[1:] if arguments is None else map(str, arguments)
        rows = compare(
            options.against, [__file__, *words, "--serve"], cases(options), options.repeats
        )
        if options.out:
            write(options.out, rows)
        return

    most = max(options.n, options.dense_n)
    data = fpmc.data.load(options.data, options.root, n_train=most, n_test=options.b)
    images = data.train.to(as_device(options.device, "--device"))
    many, few = Source(images[: options.n]), Source(images[: options.dense_n])
    built = collections(many, few, options.device)
    if options.serve:
        serve(partial(works, built, few, to_float(data.test), options))
        return
    peaks = engine.measure_peaks(options.device)
    best = {"float64 peak": peaks.flops, "float32 peak": peaks.flops32, "copy peak": peaks.bytes}
    rows = []
    for case in cases(options):
        name, sigma = case.values()
        source = built[name][2] if name in built else few
        z = diffusion.add_noise(to_float(data.test), sigma, 0).to(options.device)
        row = {"dataset": options.label, **case, "seed": 0, "N": len(source), "b": len(z)}
        row |= (
            measure(*built[name], z, sigma, options.repeats, options.budget)
            if name in built
            else measure_translated(7, source, z, sigma, options.budget)
        )
        rows.append({**row, **best, **gpu(options.device)})
        show([{key: value for key, value in row.items() if key != "dataset"}])
        if options.out:
            write(options.out, rows)


if __name__ == "__main__":
    with named():
        main()
