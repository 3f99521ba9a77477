"""What a larger source gains: error to the network with D ∪ A beside that with D alone.

A is made by one strategy, 0.2 to 20 times as large as D. Smaller sets are the beginnings of larger
ones. Rows are of held-out images at three noise levels, which mark how far masks have grown: a few
pixels, a part of the image, and nearly all of it. With the masks of another level, a row tells
whether the effect follows the mask or the noise.

Source: Niedoba et al. (2026), section 4.3, appendix B and figure 3.
"""

import math
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import augment, data, diffusion
from fpmc.augment import Augmented
from fpmc.augment.copies import LABELS
from fpmc.augment.files import SYNTHETIC
from fpmc.augment.recipes import DRAWS, MOST_SYNTHETIC, of_images
from fpmc.checks import as_positive, as_whole_number
from fpmc.collection import FPMC
from fpmc.data.datasets import PHOTOS_SIDE
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.options import AUGMENTED, FRESH
from fpmc.experiments.tables import numbers
from fpmc.experiments.tuning import held_out, schedule_of
from fpmc.methods.registry import METHODS
from fpmc.metrics import Estimate
from fpmc.source import Source, to_float, union

__all__ = ["SIZES", "relative_change", "run"]

KEY = ("data", "network", "method", "schedule", "strategy", "size", "z", "sigma", "mask_level")
KEY += ("n_source",)
METHODS_HERE = ("pspc_flex", "pspc_square")
SIZES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Images of A for each of D, as in figure 3."""
FOCUS = (0.139516, 0.585348, 1.92334)
"""σ of the three levels. On digits and photos a mask has 5 % of the image's pixels, then 38 % and
15 %, then all and 70 %; the error to the network is largest at the second on digits, and at the
third on photos, of all levels below σ = 8. On fashion a square of PSPC-Square has 1 %, 6 % and 37 %
of them."""
DRAWS_OF_SHIFTS = 120
"""Draws of a translation: there are only 9 shifts at a side of 8, 25 at 16, and 20 draws repeat."""
MOST_FRESH = 2**24
FIRST_SEED = 700
"""Of the noise, counted from a thousand times the job's seed."""


class Unit(NamedTuple):
    """A number to be computed: a method at a level, with masks of a level, and so many images."""

    method: str
    level: int
    mask: int
    size: float


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    held = HeldOut(job)
    with job.table("augmentation", KEY).collected() as table:
        for method, strategy in tqdm(list(_pairs(job)), desc="augmentation"):
            sets = Sets(job, method, strategy)
            missing = [
                (unit, head, settings)
                for unit in _units(job, method, sets.sizes)
                for head, settings in [(_head(job, unit, strategy), _settings(job, unit, held))]
                if not table.has(head, settings)
            ]
            if not missing:
                continue
            with clock.unit(f"making {strategy}"):
                sets.make(max(unit.size for unit, _, _ in missing))
            for unit, head, settings in tqdm(missing, desc=strategy, leave=False):
                with clock.unit(f"{method} {unit.size:g}"):
                    start = time.perf_counter()
                    row = _row(unit, held, sets)
                    told = job.provenance(method, time.perf_counter() - start)
                    table.add({**head, **settings, **row, **told})


class HeldOut:
    """Noisy images that the source has not, the network's answers, and methods' errors to them."""

    def __init__(self, job: Job):
        self.job = job
        self.images = held_out(job)[: job.points]
        self._at: dict[int, tuple[Tensor, Tensor]] = {}
        self._given: dict[tuple[str, int, int], Tensor] = {}

    def at(self, level: int) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Noisy images of a level, and the network's answers."""
        if level not in self._at:
            x, sigma = to_float(self.images).to(self.job.device), self.job.levels[level]
            z = diffusion.add_noise(x, sigma, self.job.seed * 1000 + FIRST_SEED + level)
            self._at[level] = z, in_batches(self.job.reference, self.job.batch)(z, sigma)
        return self._at[level]

    def given(self, unit: Unit) -> Float[Tensor, " b"]:
        """The errors without A."""
        key = unit.method, unit.level, unit.mask
        if key not in self._given:
            self._given[key] = self.errors(unit, self.job.seen_by(unit.method))
        return self._given[key]

    @torch.no_grad()
    def errors(self, unit: Unit, source: Source) -> Float[Tensor, " b"]:
        """Each image's squared error to the network, per dimension."""
        job, method = self.job, METHODS[unit.method]
        maps = [job.sensitivity] if method.needs == "sensitivity" else []
        masks = method.maker(job.seen_by(unit.method), *maps, schedule_of(job, unit.method))
        collection = FPMC(*masks.operators(job.levels[unit.mask]), source, budget=job.bytes)
        if method.precision:
            collection = collection.with_precision(job.precision)
        z, target = self.at(unit.level)
        answer = in_batches(collection, job.batch)(z, job.levels[unit.level])
        return (answer - target).double().square().flatten(1).mean(1)


class Sets:
    """What one strategy makes of the source that a method sees, of every size that it can have."""

    def __init__(self, job: Job, method: str, strategy: str):
        self.job, self.strategy, self.source = job, strategy, job.seen_by(method)
        self.draws = DRAWS_OF_SHIFTS if strategy == "translations" else DRAWS
        self.made: Augmented | None = None

    @cached_property
    def most(self) -> int:
        """How many images there can be."""
        if self.strategy == FRESH:
            return MOST_FRESH if self.job.data in PHOTOS_SIDE else 0
        if self.strategy == SYNTHETIC:
            return MOST_SYNTHETIC
        return len(of_images(self.strategy, self.source.images, draws=self.draws).parents)

    @cached_property
    def sizes(self) -> list[float]:
        """Those asked for, or those of figure 3, that there can be.

        Raises:
            ValueError: If a size that is asked for of this strategy cannot be had.
        """
        wanted = [as_positive(size, "--size") for size in self.job.size or SIZES]
        possible = [size for size in wanted if 1 <= self.count(size) <= self.most]
        if self.job.strategy and not self.most:
            raise ValueError(
                f"--strategy: got {FRESH} for {self.job.data}, wanted it for data that are drawn "
                f"without end: {', '.join(PHOTOS_SIDE)}"
            )
        if self.job.strategy and self.job.size and len(possible) < len(wanted):
            got = ", ".join(f"{size:g}" for size in wanted if size not in possible)
            n = len(self.source)
            raise ValueError(
                f"--size: got {got} for {self.strategy} of {n:,} images, wanted {1 / n:.2g} to "
                f"{self.most / n:.4g}"
            )
        return possible

    def count(self, size: float) -> int:
        """Images of A."""
        return round(size * len(self.source))

    def make(self, size: float) -> None:
        """Make the set of this size, or take it from disk; smaller ones are its beginnings."""
        made = self._fresh(size) if self.strategy == FRESH else self._written(size)
        images = made.images.to(self.job.device)
        self.made = Augmented(images, made.parents, made.parameters)

    def _fresh(self, size: float) -> Augmented:
        n, m = len(self.job.source), self.count(size)
        images = data.load(self.job.data, n_train=n + m).train[n:]
        return Augmented(images, torch.full((m,), -1), torch.zeros(m, LABELS))

    def _written(self, size: float) -> Augmented:
        job, n, m = self.job, len(self.source), self.count(size)
        folder = f"{self.strategy.replace(' ', '-')}-{m}-of-{n}-{job.seed}"
        subject, options = self.source.images, {"draws": self.draws}
        if self.strategy == SYNTHETIC:
            subject, options = job.reference, {"device": job.device, "sigmas": job.levels}
        options |= {"progress": self.strategy == SYNTHETIC, "wait": True}
        place = job.runs / "augmented" / job.label / folder
        return augment.write(place, self.strategy, subject, m, job.seed, **options)

    def union(self, size: float) -> Source:
        """D ∪ A."""
        return union(self.source, self.made.subset(self.count(size)))


def relative_change(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Estimate:
    r"""The relative change of a mean in percent, with the standard error of the paired ratio.

    .. math::
        100 \Big(\frac{\bar a}{\bar b} - 1\Big), \qquad
        \frac{100}{\bar b} \sqrt{\frac{1}{n (n - 1)} \sum_i \Big(a_i - \frac{\bar a}{\bar b} b_i
        \Big)^2}

    by the delta method: to first order the ratio moves by :math:`(a_i - \bar a b_i / \bar b) /
    \bar b` over n with each pair.
    """
    before, after = before.double(), after.double()
    ratio, n = (after.mean() / before.mean()).item(), len(before)
    error = (after - ratio * before).square().sum().div(n * (n - 1)).sqrt() / before.mean()
    return Estimate(100 * (ratio - 1), 100 * error.item() if n > 1 else math.nan, n)


def _pairs(job: Job) -> Iterator[tuple[str, str]]:
    for method in job.method or METHODS_HERE[:1]:
        if method not in METHODS_HERE:
            raise ValueError(f"method: got {method!r}, wanted one of {', '.join(METHODS_HERE)}")
        yield from ((method, strategy) for strategy in job.strategy or AUGMENTED)


def _units(job: Job, method: str, sizes: Sequence[float]) -> Iterator[Unit]:
    nearest = {
        min(range(len(job.levels)), key=lambda i: abs(math.log(job.levels[i] / sigma)))
        for sigma in FOCUS
    }
    levels = job.level or sorted(nearest, reverse=True)
    for name, values in (("--level", levels), ("--mask-level", job.mask_level)):
        for level in values:
            as_whole_number(level, name, 0, len(job.levels) - 1)
    for level in levels:
        for mask in job.mask_level or (level,):
            yield from (Unit(method, level, mask, size) for size in sizes)


def _head(job: Job, unit: Unit, strategy: str) -> dict[str, str]:
    schedule = schedule_of(job, unit.method)
    told = (job.label, job.called(job.reference_file), unit.method, schedule, strategy)
    told += (f"{unit.size:g}", "forward")
    told += tuple(f"{job.levels[i]:.6g}" for i in (unit.level, unit.mask))
    return dict(zip(KEY, (*told, str(len(job.seen_by(unit.method)))), strict=True))


def _settings(job: Job, unit: Unit, held: HeldOut) -> dict[str, object]:
    n = len(held.images)
    return job.settings(unit.method, n, job.reference_file, steps=len(job.levels))


def _row(unit: Unit, held: HeldOut, sets: Sets) -> dict[str, object]:
    """The columns of a row: how many images, errors without and with A, and the change."""
    source = sets.union(unit.size)
    before, after = held.given(unit), held.errors(unit, source)
    return {
        "n_augmented": len(source) - len(sets.source),
        "n_distinct": _distinct(source) - _distinct(sets.source),
        **numbers(Estimate.of_samples(before), "given"),
        **numbers(Estimate.of_samples(after)),
        **numbers(relative_change(before, after), "change"),
    }


def _distinct(source: Source, part: int = 4096) -> int:
    """How many different images there are."""
    starts = range(0, len(source), part)
    parts = (source.images[start : min(start + part, len(source))].cpu() for start in starts)
    return len({image.tobytes() for images in parts for image in images.numpy()})
