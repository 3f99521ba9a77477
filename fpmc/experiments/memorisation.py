"""When collections memorise: what estimators know of noisy images against log N.

Noisy images are of source images, as theory asks. Sources of N images are the beginnings of larger
ones; what an estimator would know in an endless source is measured with a reference, images of the
same distribution that none of the sources has. Samples start from the same noise for all.

A method's masks are those of its schedule, whatever N. Where it has one mask over the whole image,
its rows are those of the optimal denoiser.

Source: Hunt, Kamb and Ganguli (2026).
"""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import data, diffusion, memorisation, methods
from fpmc.collection import FPMC
from fpmc.data.datasets import PHOTOS_SIDE
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import numbers
from fpmc.experiments.tuning import schedule_of
from fpmc.methods.registry import METHODS
from fpmc.metrics import Estimate
from fpmc.source import Source, to_float

__all__ = ["COPY", "SHARES", "run"]

KEY = ("data", "method", "z", "sigma", "n_source")
METHODS_HERE = ("optimal", "pspc_square", "pspc_flex", "ls", "lukoianov")
SMALL = 256
"""Dimensions up to which the last is asked, too: it has an estimator for each of them."""
SHARES = (0.01, 0.1, 1.0)
"""Of the largest source, the sizes N."""
REFERENCE = 2
"""Images of the reference for each of the largest source, of data that are drawn without end."""
ASKED = 16
"""Estimators, drawn once for each method and level."""
FOCUS = {"digits": (1.92334, 0.585348, 0.139516)}
"""σ of the levels, those nearest to them; elsewhere five."""
LEVELS = (3.25682, 1.92334, 1.08817, 0.585348, 0.139516)
COPY = 1 / 3
"""A sample copies if its nearest source image is at most this times as far as the second."""
FIRST_SEED = 900
"""Of the noise, counted from a thousand times the job's seed."""


class Unit(NamedTuple):
    """A row: a method at a level, in a source of so many images; sigma is None for samples."""

    method: str
    z: str
    level: int | None
    n: int


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing.

    Raises:
        ValueError: If a method has no filtered posteriors, or the data too few images.
    """
    asked = Questions(job)
    with job.table("memorisation", KEY).collected() as table:
        for unit in tqdm(list(_units(job, asked)), desc="memorisation"):
            head, settings = _head(job, unit), _settings(job, unit, asked)
            if table.has(head, settings):
                continue
            with clock.unit(f"{unit.method} {unit.z} {unit.n}"):
                start = time.perf_counter()
                row = asked.rows[unit.z](unit)
                told = job.provenance(unit.method, time.perf_counter() - start)
                table.add({**head, **settings, **row, **told, "n_source": unit.n})


class Questions:
    """The sources, the images that are asked about, and what is measured of them."""

    def __init__(self, job: Job):
        self.job, self._densities = job, {}
        self.rows = {"reference": self.reference, "forward": self.forward, "sample": self.sample}

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """The largest source, and the reference."""
        job, n = self.job, len(self.job.dataset.train)
        if job.data in PHOTOS_SIDE:
            drawn = data.load(job.data, job.root, n_train=(1 + REFERENCE) * n).train
            return drawn[:n].to(job.device), drawn[n:].to(job.device)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(job.seed))
        return tuple(job.source.images[part] for part in (order[: n // 2], order[n // 2 :]))

    @cached_property
    def sizes(self) -> list[int]:
        """The numbers of source images N, rising.

        Raises:
            ValueError: If the smallest has not two images.
        """
        sizes = [int(share * len(self.images[0])) for share in SHARES]
        if sizes[0] < 2:
            n = len(self.job.dataset.train)
            raise ValueError(f"data: got {n} training images, wanted {round(4 / SHARES[0])}")
        return sizes

    @property
    def points(self) -> int:
        return min(self.job.points, self.sizes[-1])

    def collection(self, method: str, source: Source) -> FPMC:
        """A method with the masks of its schedule, over a source."""
        job, known = self.job, METHODS[method]
        needs = [job.sensitivity] if known.needs == "sensitivity" else []
        knob = [schedule_of(job, method)] if known.knob else []
        options = {"budget": job.bytes}
        if known.needs == "gaussian":
            options["gaussian"] = job.gaussian(job.source)
        made = known.maker(source, *needs, *knob, **options)
        return made.with_precision(job.precision)

    def whole(self, method: str, level: int) -> bool:
        """Whether one estimator sees the whole image."""
        queries = self.collection(method, self.job.source).operators(self.job.levels[level])[0]
        return queries.k == 1

    def parts(self, n: int) -> Iterator[tuple[Source, slice]]:
        """Sources of n images, and which of the images that are asked about lie in each."""
        for start in range(0, self.points, n):
            part = slice(start, min(start + n, self.points))
            yield Source(self.images[0][start : start + n]), part

    def asked(self, method: str, level: int) -> tuple[Tensor, Tensor, dict]:
        """Images, the same with noise, and the level with the estimators that are asked."""
        job, sigma = self.job, self.job.levels[level]
        x = to_float(self.images[0][: self.points])
        z = diffusion.add_noise(x, sigma, job.seed * 1000 + FIRST_SEED + level)
        k = self.collection(method, job.source).operators(sigma)[0].k
        some = torch.randperm(k, generator=torch.Generator().manual_seed(job.seed))[:ASKED]
        return x, z, {"sigma": sigma, "estimators": some.sort().values.tolist()}

    def density(self, method: str, level: int) -> Float[Tensor, "b k"]:
        """Information densities by the reference, which has none of the images."""
        if (method, level) not in self._densities:
            x, z, how = self.asked(method, level)
            collection = self.collection(method, Source(self.images[1]))
            found = memorisation.knowledge(collection, x, z, **how)
            self._densities[method, level] = found.density
        return self._densities[method, level]

    def reference(self, unit: Unit) -> dict[str, object]:
        """The information from above: by the reference, and of a Gaussian; and its middle."""
        density = self.density(unit.method, unit.level)
        how = self.asked(unit.method, unit.level)[2]
        queries = self.collection(unit.method, self.job.source).operators(how["sigma"])[0]
        gaussian = self.job.gaussian(self.job.source)
        bound = memorisation.gaussian_information(gaussian, queries, **how)
        return {
            **numbers(_over_images(density), "density"),
            "median": f"{density.median().item():.6g}",
            "gaussian": f"{bound.mean().item():.6g}",
        }

    def forward(self, unit: Unit) -> dict[str, object]:
        """What is known in a source of N, the image's own weight there, and copying."""
        x, z, how = self.asked(unit.method, unit.level)
        information, own, apart = [], [], []
        for source, part in self.parts(unit.n):
            collection = self.collection(unit.method, source)
            found = memorisation.knowledge(collection, x[part], z[part], **how)
            information.append(found.information)
            own.append((found.density.exp() / len(source)).clamp(max=1))
            apart.append(memorisation.distance(collection, z[part], **how))
        own, by_theory = torch.cat(own), self.density(unit.method, unit.level)
        by_theory = memorisation.own_weight(by_theory, unit.n)
        right = (own > 0.5) == (by_theory > 0.5)
        return {
            **numbers(_over_images(torch.cat(information)), "information"),
            **numbers(_over_images(own), "own"),
            **numbers(_over_images(own - by_theory), "gap"),
            **numbers(_over_images(right.double()), "right"),
            **numbers(_over_images(torch.cat(apart)), "distance"),
        }

    def sample(self, unit: Unit) -> dict[str, object]:
        """How far samples are from the source, and how many copy it."""
        job, source = self.job, Source(self.images[0][: unit.n])
        start = diffusion.initial_noise(job.samples, source.shape, job.seed).to(job.device)
        denoiser = in_batches(self.collection(unit.method, source), job.batch)
        made = diffusion.sample(denoiser, start, job.levels)
        _, near = methods.optimal(source).posterior(made, 1.0).top(2)
        away = (made[:, None] - source[near[:, 0].flatten()].view(-1, 2, *source.shape)).double()
        first, second = away.square().flatten(2).mean(2).sqrt().unbind(1)
        return {
            **numbers(Estimate.of_samples(first), "distance"),
            **numbers(Estimate.of_samples((first <= COPY * second).double()), "copied"),
        }


def _over_images(values: Float[Tensor, "b k"]) -> Estimate:
    """The mean over estimators and images, whose error is that of images."""
    return Estimate.of_samples(values.mean(1))


def _units(job: Job, asked: Questions) -> Iterator[Unit]:
    small = job.dataset.train[0].numel() <= SMALL
    for method in job.method or (METHODS_HERE if small else METHODS_HERE[:-1]):
        if method not in METHODS_HERE:
            told = ", ".join(METHODS_HERE)
            raise ValueError(f"method: got {method!r}, wanted one of {told}")
        for level in _levels(job):
            if method == METHODS_HERE[0] or not asked.whole(method, level):
                yield Unit(method, "reference", level, len(asked.images[1]))
                yield from (Unit(method, "forward", level, n) for n in asked.sizes)
        yield from (Unit(method, "sample", None, n) for n in asked.sizes)


def _levels(job: Job) -> list[int]:
    if job.level:
        return job.chosen
    wanted = FOCUS.get(job.data, LEVELS)
    every = range(len(job.levels))
    return sorted({min(every, key=lambda i: abs(job.levels[i] / s - 1)) for s in wanted})


def _head(job: Job, unit: Unit) -> dict[str, str]:
    sigma = "0" if unit.level is None else f"{job.levels[unit.level]:.6g}"
    return dict(zip(KEY, (job.label, unit.method, unit.z, sigma, str(unit.n)), strict=True))


def _settings(job: Job, unit: Unit, asked: Questions) -> dict[str, object]:
    n = job.samples if unit.z == "sample" else asked.points
    more = {"steps": len(job.levels), "n_source": unit.n}
    if unit.z != "sample":
        more["reference_n"] = len(asked.images[1])
    return job.settings(unit.method, n, **more)
