"""Compute the tables of the comparison of all methods with a network, in stages that resume.

    python results/compute.py --data photos

Each stage writes a CSV file into the dataset's folder beside this script, a row per number, with
everything that is needed to obtain it again; rows that are there already are not computed again.

- ``schedules``: for every method with a knob, its error to the network over the knob and σ; the
  best values are the dataset's schedule.
- ``denoising``: every method's error to the network over σ, for z from the forward process (noisy
  held-out images) and from the reverse process (the network's own sampling trajectories).
- ``samples``: every method's samples against another network's from the same noise.
"""

import argparse
import csv
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import fpmc
from fpmc import data, diffusion, methods, metrics, networks, sensitivity
from fpmc.methods.schedules import FOUND
from fpmc.source import to_float, to_uint8
from fpmc.storage import whole

HERE = Path(__file__).parent
STAGES = ("schedules", "denoising", "samples")
SEARCHED = (0.02, 20.0)
"""Noise levels of the search; outside, the nearest level's value is taken."""
KEPT = 12
"""Samples of each method that are kept as images."""
LARGE = {"ffhq64": 40, "afhqv2-64": 40}
"""Noise levels of the sampler where they are not 18."""


@dataclass(frozen=True)
class Job:
    """What is compared with what, on which data and how much of it."""

    data: str
    root: str | None
    network: str
    other: str
    maps: str
    points: int
    samples: int
    batch: int
    els_source: int
    seed: int
    device: str

    @cached_property
    def dataset(self) -> data.Dataset:
        return data.load(self.data, self.root)

    @cached_property
    def source(self) -> fpmc.Source:
        return fpmc.Source(self.dataset.train.to(self.device))

    @cached_property
    def part(self) -> fpmc.Source:
        """The part of the source that ELS sees, chosen by the seed."""
        n = min(self.els_source, len(self.source))
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(self.seed))
        return fpmc.Source(self.source.images[order[:n].to(self.device)])

    @cached_property
    def gaussian(self):
        return methods.wiener(self.source)

    @cached_property
    def reference(self):
        return networks.load(self.network).to(self.device)

    @cached_property
    def sensitivity(self):
        stored = Path(self.maps)
        return sensitivity.read(stored) if stored.suffix == ".npz" else sensitivity.load(self.maps)

    @cached_property
    def levels(self) -> list[float]:
        return diffusion.edm_sigmas(LARGE.get(self.data, 18)).tolist()

    @property
    def side(self) -> int:
        return min(self.source.shape[1:])

    def test(self, n: int) -> torch.Tensor:
        return to_float(self.dataset.test[:n]).to(self.device)

    def method(self, name: str, knob) -> diffusion.Denoiser:
        """A method with its patch size, threshold or schedule."""
        made = {
            "optimal": lambda: methods.optimal(self.source),
            "wiener": lambda: self.gaussian,
            "pspc_square": lambda: methods.pspc_square(self.source, knob),
            "pspc_flex": lambda: methods.pspc_flex(self.source, self.sensitivity, knob),
            "ls": lambda: methods.ls(self.source, knob),
            "els": lambda: methods.els(self.part, knob),
            "lukoianov": lambda: methods.lukoianov(self.source, knob, gaussian=self.gaussian),
        }
        return made[name]()

    @property
    def knobs(self) -> dict[str, list[float]]:
        """What is tried: every odd side, the whole image for PSPC-Square, thresholds."""
        odd = list(range(1, self.side + 1, 2))
        return {
            "pspc_square": [*odd, self.side] if self.side % 2 == 0 else odd,
            "ls": odd,
            "els": odd,
            "lukoianov": [0.02, 0.05, 0.1, 0.2],
            "pspc_flex": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        }

    def provenance(self, name: str) -> dict[str, object]:
        where = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        return {
            "n_source": len(self.part if name == "els" else self.source),
            "seed": self.seed,
            "device": where,
            "version": fpmc.__version__,
            "torch": torch.__version__,
        }


class Table:
    """A CSV file that grows row by row and is whole at every moment."""

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        self.seen = {self._key(row) for row in self.rows}

    def _key(self, row: dict) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def __contains__(self, row: dict) -> bool:
        return self._key(row) in self.seen

    def add(self, row: dict) -> None:
        row = {name: str(value) for name, value in row.items()}
        self.rows.append(row)
        self.seen.add(self._key(row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def numbers(estimate: metrics.Estimate, name: str = "mse") -> dict[str, object]:
    """An estimate's columns in a row of a table."""
    return {
        name: f"{float(estimate):.6g}",
        f"{name}_error": f"{estimate.standard_error:.3g}",
        "n": estimate.n,
    }


def in_batches(denoiser: diffusion.Denoiser, size: int) -> diffusion.Denoiser:
    """The same denoiser, called with a few images at a time."""

    @torch.no_grad()
    def call(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([denoiser(part, sigma) for part in z.split(size)])

    return call


def schedules(job: Job, out: Path) -> None:
    """Every method's error to the network over its knob and σ, forward z."""
    table = Table(out / "schedules.csv", ("data", "network", "method", "sigma", "value"))
    x = job.test(job.points)
    low, high = SEARCHED
    searched = [i for i, sigma in enumerate(job.levels) if low <= sigma <= high]
    work = [(name, i) for name in job.knobs for i in searched]
    for name, i in tqdm(work, desc="schedules"):
        sigma = job.levels[i]
        head = {"data": job.data, "network": job.network, "method": name, "sigma": f"{sigma:.6g}"}
        missing = [v for v in job.knobs[name] if {**head, "value": v} not in table]
        if not missing:
            continue
        z = diffusion.add_noise(x, sigma, job.seed * 1000 + i)
        target = in_batches(job.reference, job.batch)(z, sigma)
        for value in missing:
            x_hat = in_batches(job.method(name, value), job.batch)(z, sigma)
            row = numbers(metrics.mse(x_hat, target))
            table.add({**head, "value": value, **row, **job.provenance(name)})


def best(out: Path) -> dict[str, dict[float, float]]:
    """The schedule of each method: at every σ the value with the lowest error, {σ: value}."""
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for row in Table(out / "schedules.csv", ("method",)).rows:
        sigma, error = float(row["sigma"]), float(row["mse"])
        levels = found.setdefault(row["method"], {})
        if sigma not in levels or error < levels[sigma][0]:
            levels[sigma] = (error, float(row["value"]))
    return {name: {s: v for s, (_, v) in levels.items()} for name, levels in found.items()}


def store(job: Job, out: Path) -> None:
    """Keep the schedule in the form of the published tables, in the package if it is one of its."""
    columns = best(out)
    tables = Path(methods.__file__).parent / "tables"
    inside = job.data in FOUND and out == HERE / job.data
    path = tables / f"{job.data}.csv" if inside else out / "schedule.csv"
    with whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "sigma", *columns])
        for step, level in enumerate(job.levels):
            sigma = float(f"{level:.6g}")
            if all(sigma in column for column in columns.values()):
                values = (column[sigma] for column in columns.values())
                writer.writerow([step, sigma, *(f"{value:g}" for value in values)])


def contestants(job: Job, out: Path) -> Iterator[tuple[str, str, Callable]]:
    """Name, schedule and maker of all that are compared."""
    found = best(out)
    yield "optimal", "", lambda: job.method("optimal", None)
    yield "wiener", "", lambda: job.method("wiener", None)
    for name in job.knobs:
        whole_numbers = name in ("pspc_square", "ls", "els")
        schedule = {s: int(v) if whole_numbers else v for s, v in found[name].items()}
        yield name, "found", lambda name=name, schedule=schedule: job.method(name, schedule)
    for name in ("pspc_square", "pspc_flex", "lukoianov"):
        yield name, "cifar10", lambda name=name: job.method(name, "cifar10")


def denoising(job: Job, out: Path) -> None:
    """Every method's error to the network, forward and reverse z, at the sampler's levels."""
    key = ("data", "network", "method", "schedule", "z", "sigma")
    table = Table(out / "denoising.csv", key)
    x = job.test(job.points)
    reference = in_batches(job.reference, job.batch)
    start = diffusion.initial_noise(len(x), job.source.shape, job.seed).to(job.device)
    path = list(diffusion.steps(reference, start, job.levels))[:-1]
    forward = [
        diffusion.add_noise(x, sigma, job.seed * 1000 + 500 + i)
        for i, sigma in enumerate(job.levels)
    ]
    inputs = {"forward": forward, "reverse": [step.z for step in path]}
    everyone = list(contestants(job, out))
    with tqdm(total=len(everyone) * 2 * len(job.levels), desc="denoising") as bar:
        for name, schedule, make in everyone:
            denoiser = None
            for kind, at in inputs.items():
                for z, sigma in zip(at, job.levels, strict=True):
                    head = dict(zip(key, (job.data, job.network, name, schedule), strict=False))
                    head |= {"z": kind, "sigma": f"{sigma:.6g}"}
                    bar.update()
                    if head in table:
                        continue
                    denoiser = denoiser or in_batches(make(), job.batch)
                    error = metrics.mse(denoiser(z, sigma), reference(z, sigma))
                    table.add({**head, **numbers(error), **job.provenance(name)})


def keep(path: Path, name: str, images: torch.Tensor) -> None:
    """The first images in a file of samples under this name, beside those that it holds."""
    held = dict(np.load(path)) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **held | {name: to_uint8(images[:KEPT]).cpu().numpy()})


def samples(job: Job, out: Path) -> None:
    """Every method's samples against the other network's, from the same noise."""
    key = ("data", "reference", "method", "schedule")
    table = Table(out / "samples.csv", key)
    start = diffusion.initial_noise(job.samples, job.source.shape, job.seed + 1).to(job.device)
    other = in_batches(networks.load(job.other).to(job.device), job.batch)
    target = diffusion.sample(other, start, job.levels)
    keep(out / "samples.npz", job.other, target)
    everyone = [(job.network, "", lambda: job.reference), *contestants(job, out)]
    for name, schedule, make in tqdm(everyone, desc="samples"):
        head = dict(zip(key, (job.data, job.other, name, schedule), strict=True))
        if head in table:
            continue
        drawn = diffusion.sample(in_batches(make(), job.batch), start, job.levels)
        row = numbers(metrics.mse(drawn, target)) | numbers(metrics.r2(drawn, target), "r2")
        distance = metrics.nearest(drawn.clamp(-1, 1), job.source)[0].median().item()
        each = [metrics.r2(a[None], b[None]) for a, b in zip(drawn, target, strict=True)]
        row |= {"r2_median": f"{np.median(each):.4g}", "nearest": f"{distance:.4g}"}
        keep(out / "samples.npz", ", ".join(filter(None, (name, schedule))), drawn)
        table.add({**head, **row, **job.provenance(name)})


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data", required=True, help="name or path of a dataset")
    add("--root", help="where datasets lie")
    add("--network", help="what the methods are compared with (default: DATA/ddpmpp)")
    add("--other", help="whose samples are the reference (default: DATA/ncsnpp)")
    add("--maps", help="the network's sensitivity maps (default: the shipped ones)")
    add("--points", type=int, default=64, help="noisy images per noise level (default: 64)")
    add("--samples", type=int, default=32, help="samples per method (default: 32)")
    add("--batch", type=int, default=16, help="images per call (default: 16)")
    add("--els-source", type=int, default=1_500, help="images that ELS sees (default: 1500)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--stage", choices=STAGES, action="append", help="default: all, in this order")
    add("--out", type=Path, help="folder of the tables (default: results/DATA)")
    given = vars(parser.parse_args())
    stages, out = given.pop("stage") or STAGES, given.pop("out")
    name = Path(given["data"]).stem
    given["network"] = given["network"] or f"{given['data']}/ddpmpp"
    given["other"] = given["other"] or f"{given['data']}/ncsnpp"
    given["maps"] = given["maps"] or given["network"]
    job, out = Job(**given), out or HERE / name
    try:
        for stage in stages:
            {"schedules": schedules, "denoising": denoising, "samples": samples}[stage](job, out)
            if stage == "schedules":
                store(job, out)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
