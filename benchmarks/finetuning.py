"""Time a step of tuning: a batch's loss and its gradients to Q and R.

python benchmarks/finetuning.py --data photos --n 10000 --b 64

The soft queries and responses are PSPC-Flex's, where tuning starts. Compared in one run, on the
same batch, with its own images left out: the training step of fpmc.finetuning; plain autograd in
float32, as many noisy images at a time as is fastest; the gradients of FPMC itself; and those of
another checkout's FPMC (--other), in a process of its own. Errors are relative to autograd in
float64 (L2), over the first few noisy images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import add_data, fastest, gpu, named, parse, show, write

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.checks import as_device
from fpmc.operators import Dense
from fpmc.source import to_float

FEW = 8
"""Noisy images over which errors are measured."""


def plain(z, target, q, r, x, sigma, chunk):
    """Loss and gradients by autograd, a few noisy images at a time."""
    q, r = (m.detach().clone().requires_grad_() for m in (q, r))
    total = 0.0
    for z_c, y_c in zip(z.flatten(2).split(chunk), target.flatten(2).split(chunk), strict=True):
        flat_q, flat_r = q.flatten(1), r.flatten(1)
        delta = (z_c[:, None] - x).square().sum(2)
        w = torch.softmax(delta @ flat_q.T / (-2 * sigma**2), 1)
        answer = torch.einsum("bnp,ncp->bcp", w @ flat_r, x) / flat_r.sum(0)
        loss = (answer - y_c).square().sum() / z.numel()
        loss.backward()
        total += loss.detach()
    return total, q.grad, r.grad


def engine(z, target, q, r, source, sigma):
    """Loss and gradients by FPMC's own way back, float32 asked for."""
    q, r = (m.detach().clone().requires_grad_() for m in (q, r))
    answer = FPMC(Dense(q), Dense(r), source).with_precision("float32")(z, sigma)
    loss = (answer - target).square().mean()
    loss.backward()
    return loss.detach(), q.grad, r.grad


def case(options, sigma):
    """Noisy images, a network's answers, Q, R, and the source without the batch's images."""
    from fpmc.finetuning import SoftFPMC  # which another checkout may lack

    data = fpmc.data.load(options.data, options.root, n_train=options.n, n_test=1)
    source = Source(data.train.to(options.device))
    maps = fpmc.sensitivity.load(options.network)
    method = fpmc.methods.pspc_flex(source, maps, options.data)
    soft = SoftFPMC(*method.operators(sigma), source).to(options.device)
    q, r = (op.matrix.detach() for op in soft.operators())
    z = diffusion.add_noise(to_float(data.train[: options.b]), sigma, 0).to(options.device)
    network = fpmc.networks.load(options.network).to(options.device)
    with torch.no_grad():
        target = torch.cat([network(part, sigma) for part in z.split(64)])
    return z, target, q, r, source


def elsewhere(options, z, target, q, r, source, sigma, folder):
    """Seconds of another checkout's FPMC."""
    torch.save([z, target, q, r, source.images, sigma], folder / "case.pt")
    command = [sys.executable, __file__, "--case", str(folder / "case.pt")]
    env = os.environ | {"PYTHONPATH": str(options.other), "OMP_NUM_THREADS": str(threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def threads():
    """Those of this run."""
    return torch.get_num_threads()


def measure(options, sigma, folder):
    """A row of the table."""
    from fpmc.finetuning import step

    z, target, q, r, source = case(options, sigma)
    own = torch.arange(options.b)
    rest = Source(source.images[options.b :])
    x = rest[:].flatten(2)
    budget = options.budget
    ways = {
        "ours": lambda: step.gradients(z, target, q, r, source, sigma, without=own, budget=budget),
        "FPMC": lambda: engine(z, target, q, r, rest, sigma),
    }
    seconds = {name: fastest(work, options.repeats, warm=False) for name, work in ways.items()}
    chunks = {
        chunk: fastest(lambda c=chunk: plain(z[:FEW], target[:FEW], q, r, x, sigma, c), 1)
        for chunk in (1, 2, 4)
    }
    chunk = min(chunks, key=chunks.get)
    work = lambda: plain(z, target, q, r, x, sigma, chunk)  # noqa: E731
    seconds["plain"] = fastest(work, options.repeats, warm=False)
    if options.other:
        arguments = (z, target, q, r, rest, sigma, folder)
        seconds["other"] = elsewhere(options, *arguments)
    few = z[:FEW], target[:FEW]
    found = step.gradients(*few, q, r, source, sigma, without=own, budget=budget)
    exact = plain(*(a.double() for a in (*few, q, r, x)), sigma, 1)
    row = {"dataset": options.label, "sigma": sigma, "seed": 0, "N": options.n, "b": options.b}
    row |= {"K": len(q), "share": found.share, "chunk": chunk, **seconds}
    row |= {f"{k} / ours": v / seconds["ours"] for k, v in seconds.items() if k != "ours"}
    for name, got, wanted in zip(("loss", "q", "r"), found, exact, strict=False):
        row[f"error of {name}"] = ((got - wanted).norm() / wanted.norm()).item()
    return row


def timed(path):
    """Time FPMC on a case that another process left, and print the seconds."""
    z, target, q, r, images, sigma = torch.load(path)
    source = Source(images)
    print(fastest(lambda: engine(z, target, q, r, source, sigma), 1, warm=False))


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.set_defaults(data="photos")
    parser.add_argument("--network", help="what is tuned to (default: DATA/ddpmpp)")
    parser.add_argument("--n", type=int, default=10_000, help="source images")
    parser.add_argument("--b", type=int, default=64, help="noisy images of a step")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3, 1.0, 5.0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", type=int, help="bytes of working memory")
    parser.add_argument("--other", type=Path, help="another checkout to compare with")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser)
    if options.case:
        timed(options.case)
        return
    options.device = as_device(options.device, "--device")
    options.network = options.network or f"{options.data}/ddpmpp"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for sigma in options.sigma:
            rows.append(measure(options, sigma, Path(folder)) | gpu(options.device))
            show([rows[-1]])
    if options.out:
        write(options.out, rows)


if __name__ == "__main__":
    with named():
        main()
