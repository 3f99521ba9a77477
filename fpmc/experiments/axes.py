"""What the open axes gain: each one's error to the network, beside PSPC-Flex's, over σ.

Whatever an axis has to choose (a width, a scale, a side) is chosen at each level on one part of the
held-out images; the rows are of another. Differences are paired, image by image.

Source: the axes that Niedoba et al. (2026) leave open in section 7.
"""

from collections.abc import Iterator
from functools import cache, partial

from tqdm import tqdm

from fpmc.experiments.clock import Clock
from fpmc.experiments.forms import AXES, Level, fitted
from fpmc.experiments.job import Job
from fpmc.experiments.tables import numbers
from fpmc.experiments.tuning import HeldOut
from fpmc.finetuning.files import SHIPPED
from fpmc.metrics import Estimate

__all__ = ["head", "refuse_untuned", "run", "settings"]

KEY = ("data", "network", "axis", "z", "sigma", "n_source")
LEAST, MOST = 0.1, 5.0
"""The noise levels where the question is open: below and above, all methods are near."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing.

    Raises:
        ValueError: If the data have no tuned collection to compare with.
    """
    refuse_untuned(job)
    held, made = HeldOut(job), cache(partial(fitted, job))
    with job.table("axes", KEY).collected() as table:
        for i in tqdm(list(_levels(job)), desc="axes"):
            row_of, decided = head(job, i), settings(job, held)
            missing = [axis for axis in AXES if not table.has({**row_of, "axis": axis}, decided)]
            if not missing:
                continue
            level = Level(job, held, i, made)
            for axis in missing:
                with clock.unit(axis):
                    row = _row(level, axis)
                    told = job.provenance("pspc_flex", level.seconds[axis])
                    table.add({**row_of, "axis": axis, **decided, **row, **told})


def _levels(job: Job) -> Iterator[int]:
    return (i for i in job.chosen if job.level or LEAST <= job.levels[i] <= MOST)


def refuse_untuned(job: Job) -> None:
    """See that the data have a tuned collection.

    Raises:
        ValueError: If they have none.
    """
    if f"{job.data}/ddpmpp/pspc_flex" not in SHIPPED:
        told = ", ".join(sorted(name.split("/")[0] for name in SHIPPED))
        raise ValueError(f"data: got {job.data!r}, wanted one with a tuned PSPC-Flex: {told}")


def head(job: Job, i: int, key: tuple[str, ...] = KEY) -> dict[str, str]:
    """The key of a level's rows; the axis is left open."""
    said = {
        "data": job.label,
        "network": job.called(job.reference_file),
        "axis": "",
        "z": "forward",
        "sigma": f"{job.levels[i]:.6g}",
        "n_source": str(len(job.source)),
    }
    return {name: said[name] for name in key}


def settings(job: Job, held: HeldOut) -> dict[str, object]:
    """What decides the rows' numbers beside their key."""
    more = {"steps": len(job.levels), "validation_n": len(held.validation)}
    return job.settings("pspc_flex", len(held.test), job.reference_file, **more)


def _row(level: Level, axis: str) -> dict[str, object]:
    """What was chosen, the error, and what it is below PSPC-Flex's and the tuned one's."""
    found = level.found(axis)
    error, given, tuned = (level.errors(level.found(name)) for name in (axis, "flex", "tuned"))
    return {
        "chosen": found.chosen,
        "validation": f"{level.errors(found, 'validation').mean().item():.6g}",
        **numbers(Estimate.of_samples(error)),
        **numbers(Estimate.of_samples(given - error), "gain"),
        **numbers(Estimate.of_samples(tuned - error), "gain_tuned"),
    }
