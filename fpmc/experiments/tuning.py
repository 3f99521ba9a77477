"""What tuning gains: error to the network before and after, for forward and reverse z, over σ.

Each method is tuned at each level with its queries learned, its responses, and both. Tuning draws
from training images, the best checkpoint is chosen on one part of the held-out images, and the rows
are of another.

Source: Niedoba et al. (2026), sections 4.1, 4.2 and C.3, and figure 2.
"""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion
from fpmc.collection import FPMC
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import numbers
from fpmc.finetuning import FineTuned, finetune
from fpmc.finetuning.images import fingerprints, fresh
from fpmc.finetuning.module import LEARN
from fpmc.methods.registry import METHODS
from fpmc.methods.schedules import FOUND, columns
from fpmc.metrics import Estimate
from fpmc.source import to_float

__all__ = ["HeldOut", "base", "held_out", "run", "schedule_of"]

KEY = ("data", "network", "method", "schedule", "learn", "z", "sigma", "n_source")
TUNED = ("pspc_square", "pspc_flex", "lukoianov")
"""The methods of figure 2."""


class Unit(NamedTuple):
    """What is tuned in one go: a method at a level, and which part of it is learned."""

    method: str
    learn: str
    level: int


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    held = HeldOut(job)
    with job.table("tuning", KEY).collected() as table:
        for unit in tqdm(list(_units(job)), desc="tuning"):
            heads = {z: _head(job, unit, z) for z in ("forward", "reverse")}
            settings = _settings(job, unit, held)
            missing = [z for z, head in heads.items() if not table.has(head, settings)]
            if not missing:
                continue
            with clock.unit(f"{unit.method} {unit.learn}"):
                start = time.perf_counter()
                given = base(job, unit.method)
                found = _tune(job, unit, given, held)
                told = job.provenance(unit.method, time.perf_counter() - start)
                for z in missing:
                    row = _errors(job, given, found, *held.at(z, unit.level))
                    table.add({**heads[z], **settings, **row, **told})


def schedule_of(job: Job, method: str) -> str:
    """The schedule that tuning a method starts from: the data's own, or CIFAR-10's."""
    own = job.data in FOUND and method in columns(job.data)
    return job.data if own else "cifar10"


def held_out(job: Job) -> UInt8[Tensor, "m c h w"]:
    """The images for tests that the source has not.

    Raises:
        ValueError: If these are fewer than two.
    """
    images = job.dataset.test[fresh(job.dataset.test, fingerprints(job.source))]
    if len(images) < 2:
        raise ValueError(f"data: got {len(images)} images for tests alone, wanted 2 or more")
    return images


class HeldOut:
    """Images that the source has not, in two parts: one chooses, the other is reported on."""

    def __init__(self, job: Job):
        self.job = job
        images = held_out(job)
        half = len(images) // 2
        self.validation = images[len(images) - min(half, job.points) :]
        self.test = images[: min(len(images) - half, job.points)]
        self.network = in_batches(job.reference, job.batch)

    @cached_property
    def reverse(self) -> list[diffusion.Step]:
        shape = tuple(self.test.shape[1:])
        start = diffusion.initial_noise(len(self.test), shape, self.job.seed)
        return list(diffusion.steps(self.network, start.to(self.job.device), self.job.levels))[:-1]

    def at(self, kind: str, i: int) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Noisy images at the i-th level, and the network's answers."""
        if kind == "reverse":
            return self.reverse[i].z, self.reverse[i].x_hat
        x, sigma = to_float(self.test).to(self.job.device), self.job.levels[i]
        z = diffusion.add_noise(x, sigma, self.job.seed * 1000 + 500 + i)
        return z, self.network(z, sigma)


def _units(job: Job) -> Iterator[Unit]:
    levels = job.chosen
    for method in job.method or TUNED:
        if method not in TUNED:
            raise ValueError(f"method: got {method!r}, wanted one of {', '.join(TUNED)}")
        for learn in job.learn or LEARN:
            yield from (Unit(method, learn, level) for level in levels)


def _head(job: Job, unit: Unit, z: str) -> dict[str, str]:
    schedule = schedule_of(job, unit.method)
    told = (job.label, job.called(job.reference_file), unit.method, schedule, unit.learn, z)
    sigma, seen = f"{job.levels[unit.level]:.6g}", str(len(job.seen_by(unit.method)))
    return dict(zip(KEY, (*told, sigma, seen), strict=True))


def _settings(job: Job, unit: Unit, held: HeldOut) -> dict[str, object]:
    part = f", {job.subset} source images" if job.subset else ""
    more = {
        "steps": len(job.levels),
        "tuning": f"{job.tune_steps} steps of {job.tune_batch}, rate {job.tune_rate:g}{part}",
        "validation_n": len(held.validation),
    }
    return job.settings(unit.method, len(held.test), job.reference_file, **more)


def base(job: Job, method: str) -> FPMC:
    """The collection that tuning starts from."""
    seen, options = job.seen_by(method), {"budget": job.bytes}
    needs = {"sensitivity": lambda: [job.sensitivity]}.get(METHODS[method].needs, list)()
    if METHODS[method].needs == "gaussian":
        options["gaussian"] = job.gaussian(seen)
    made = METHODS[method].maker(seen, *needs, schedule_of(job, method), **options)
    return made.with_precision(job.precision)


def _tune(job: Job, unit: Unit, base: FPMC, held: HeldOut) -> FineTuned:
    """Tune, or take up what an earlier run has left."""
    return finetune(
        base,
        held.network,
        None,
        job.levels[unit.level],
        validation=held.validation,
        learn=unit.learn,
        steps=job.tune_steps,
        batch=job.tune_batch,
        rate=job.tune_rate,
        subset=job.subset,
        seed=job.seed,
        out=job.runs / "tuning" / job.label / f"{unit.method}-{unit.learn}-{job.seed}",
        device=job.device,
        budget=job.bytes,
        progress=False,
        card={"data": job.label, "method": unit.method, "level": unit.level},
    )


@torch.no_grad()
def _errors(job: Job, base: FPMC, found: FineTuned, z: Tensor, target: Tensor) -> dict[str, object]:
    """The columns of a row: errors before and after, and their paired difference."""
    sigma = found.card["sigma"]
    before, after = (
        (in_batches(denoiser, job.batch)(z, sigma) - target).double().square().flatten(1).mean(1)
        for denoiser in (base, found.denoiser)
    )
    held, best = found.card["validation"], found.card["best_step"]
    return {
        **numbers(Estimate.of_samples(before), "given"),
        **numbers(Estimate.of_samples(after)),
        **numbers(Estimate.of_samples(before - after), "gain"),
        "validation_given": f"{held['given'][0]:.6g}",
        "validation": f"{held['tuned'][0]:.6g}",
        "best_step": "" if best is None else best,
    }
