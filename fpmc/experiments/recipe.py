"""What each step adds: PSPC-Flex tuned, with larger sources and with both, by noise level.

A step names the one that it builds on. Its row has the errors of both to the network on the same
noisy held-out images, and their paired difference. The tuned collection is the shipped one, or the
one that is named; what is tuned here, queries alone, responses alone, and both with the larger
source in the loop, is tuned with the settings of its cards. The Wiener filter stands beside: it
takes the place of a collection below a noise level that the validation images choose.

Source: Niedoba et al. (2026), section 4 and table 2, taken apart.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, finetuning
from fpmc.collection import FPMC
from fpmc.experiments import contest, tuning
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.options import RECIPE
from fpmc.experiments.tables import numbers
from fpmc.finetuning.files import digest, level_name
from fpmc.metrics import Estimate
from fpmc.operators import Operator
from fpmc.source import Source, to_float

__all__ = ["STEPS", "Step", "filter_below", "run"]

KEY = ("data", "network", "method", "schedule", "step", "z", "sigma", "n_source")
LOOP = ("learn", "steps", "batch", "rate", "weight_decay", "subset", "every", "mapping", "zeros")
LOOP += ("cut", "seed")
"""The settings of a tuning, as a card has them."""
FIRST_SEED = {"test": 500, "validation": 800}
"""Of the noise, counted from a thousand times the job's seed; of tests as in the stage tuning."""


class Step(NamedTuple):
    """A step of the recipe.

    Attributes:
        before: The step that it builds on; "" for the first.
        made: "masks", "tuned" (the named collection), "wiener", or what is tuned here: "q", "r",
            "qr".
        joined: The strategy that made what the source is joined with; "" if it is as it is.
    """

    before: str
    made: str
    joined: str = ""


STEPS = dict(
    zip(
        RECIPE,
        (
            Step("", "masks"),
            Step("masks", "q"),
            Step("masks", "r"),
            Step("masks", "tuned"),
            Step("masks", "masks", "horizontal flips"),
            Step("masks", "masks", "synthetic"),
            Step("tuned", "tuned", "horizontal flips"),
            Step("tuned", "tuned", "synthetic"),
            Step("tuned + horizontal flips", "qr", "horizontal flips"),
            Step("tuned + synthetic", "qr", "synthetic"),
            Step("masks", "wiener"),
        ),
        strict=True,
    )
)
"""{name: step}."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    recipe = _Recipe(job)
    with job.table("recipe", KEY).collected() as table:
        for level in tqdm(job.chosen, desc="recipe"):
            for name in job.step or RECIPE:
                head, settings = recipe.head(name, level), recipe.settings(name)
                if table.has(head, settings):
                    continue
                with clock.unit(name):
                    start = time.perf_counter()
                    row = recipe.row(name, level)
                    told = job.provenance(contest.TUNED, time.perf_counter() - start)
                    told["n_source"] = settings["n_source"]
                    table.add({**head, **settings, **row, **told})


def filter_below(rows: Sequence[Mapping[str, Any]], step: str) -> float:
    """The noise level σ* below which the Wiener filter takes a collection's place.

    From the lowest level up, as long as the filter is nearer to the network on validation images:
    the first level where it is not, infinity if there is none.

    Args:
        rows: Those of the stage's table for one network.
        step: The collection's.
    """
    error = {(row["step"], row["sigma"]): row["validation"] for row in rows}
    for sigma in sorted(sigma for name, sigma in error if name == step):
        if error["Wiener", sigma] >= error[step, sigma]:
            return sigma
    return math.inf


class _Recipe:
    """The steps' errors, each image's, computed once."""

    def __init__(self, job: Job):
        self.job, self.held = job, tuning.HeldOut(job)
        self.masks = tuning.base(job, contest.TUNED)
        self.found: dict[tuple[str, int, str], Tensor] = {}

    @cached_property
    def folder(self):
        """Of the tuned collection.

        Raises:
            ValueError: If there is none.
        """
        tuned = next(contest.tuned(self.job), None)
        if tuned is None:
            raise ValueError(
                f"tuned: got none for {self.job.reference_file}, wanted the folder of PSPC-Flex "
                "tuned to it, which python -m fpmc.finetuning makes"
            )
        return tuned.knob

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Those made so far."""
        return {"": self.job.seen_by(contest.TUNED)}

    def source(self, joined: str) -> Source:
        if joined not in self.sources:
            who = contest.Contestant(contest.TUNED, "", None, joined)
            self.sources[joined] = contest.source(self.job, who)
        return self.sources[joined]

    def head(self, name: str, level: int) -> dict[str, str]:
        job = self.job
        told = (
            job.label,
            job.called(job.reference_file),
            contest.TUNED,
            tuning.schedule_of(job, contest.TUNED),
        )
        told += (name, "forward", f"{job.levels[level]:.6g}")
        return dict(zip(KEY, (*told, str(self.count(name))), strict=True))

    def count(self, name: str) -> int:
        return len(self.sources[""]) * (2 if STEPS[name].joined else 1)

    def settings(self, name: str) -> dict[str, object]:
        more = {
            "n_source": self.count(name),
            "steps": len(self.job.levels),
            "schedule_hash": digest(self.folder),
            "validation_n": len(self.held.validation),
        }
        n, file = len(self.held.test), self.job.reference_file
        return self.job.settings(contest.TUNED, n, file, **more)

    def row(self, name: str, level: int) -> dict[str, object]:
        """The columns of a row: the error, what the step gains on the one before and on masks."""
        before, after = STEPS[name].before or name, self.errors(name, level, "test")
        gain = self.errors("masks", level, "test") - after
        added = self.errors(before, level, "test") - after
        return {
            "before": STEPS[name].before,
            **numbers(Estimate.of_samples(after)),
            **numbers(Estimate.of_samples(gain), "gain"),
            **numbers(Estimate.of_samples(added), "added"),
            "validation": f"{self.errors(name, level, 'validation').mean():.6g}",
        }

    def errors(self, name: str, level: int, part: str) -> Float[Tensor, " b"]:
        """Each image's squared error to the network, per dimension, of a part of the held-out."""
        key = name, level, part
        if key not in self.found:
            job, sigma = self.job, self.job.levels[level]
            x = to_float(getattr(self.held, part)).to(job.device)
            z = diffusion.add_noise(x, sigma, job.seed * 1000 + FIRST_SEED[part] + level)
            apart = self.denoiser(name, level)(z, sigma) - self.held.network(z, sigma)
            self.found[key] = apart.double().square().flatten(1).mean(1)
        return self.found[key]

    def denoiser(self, name: str, level: int) -> diffusion.Denoiser:
        job, step = self.job, STEPS[name]
        if step.made == "wiener":
            return in_batches(job.gaussian(self.sources[""]), job.batch)
        operators = self.operators(step, level)
        collection = FPMC(*operators, self.source(step.joined), budget=job.bytes)
        return in_batches(collection.with_precision(job.precision), job.batch)

    def operators(self, step: Step, level: int) -> tuple[Operator, Operator]:
        sigma = self.job.levels[level]
        if step.made == "masks":
            return self.masks.operators(sigma)
        if step.made == "tuned":
            return finetuning.load(self.folder, self.sources[""]).operators(sigma)
        return self.tuned_here(step, level).operators(sigma)

    def tuned_here(self, step: Step, level: int) -> FPMC:
        """The masks, tuned over the step's source to images of the source as it is."""
        job, sigma = self.job, self.job.levels[level]
        card = json.loads((self.folder / f"{level_name(sigma)}.json").read_text(encoding="utf-8"))
        settings = {name: card[name] for name in LOOP} | {"learn": step.made}
        name = "-".join(filter(None, (step.made, step.joined.replace(" ", "-"), str(job.seed))))
        masks = FPMC(*self.masks.operators(sigma), self.source(step.joined), budget=job.bytes)
        found = finetuning.finetune(
            masks.with_precision(job.precision),
            self.held.network,
            self.sources[""].images,
            sigma,
            validation=self.held.validation,
            out=job.runs / "recipe" / job.label / name,
            device=job.device,
            budget=job.bytes,
            progress=False,
            card={"data": job.label, "method": contest.TUNED, "level": level},
            **settings,
        )
        return found.denoiser
