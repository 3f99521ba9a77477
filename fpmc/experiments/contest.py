"""Who is compared: every method with a knob at the values that were published, found, or named.

On small data every method's knob is searched, in full, and published schedules that were not tuned
to a network stand beside. On the papers' data all published schedules stand, those that were tuned
to a network are searched around, and thresholds that the papers use at all levels take the place of
a schedule. Which are which, :data:`fpmc.methods.METHODS` and the schedules' tables say.

In samples, thresholds that the papers use at all levels stand on any data, and beside them
PSPC-Flex tuned to the network, with its own source and with larger ones, as in the last rows of the
paper's table, and a blend with mixtures of Gaussians where one is shipped.

Source: Niedoba et al. (2026), section 5, tables 2 and 4.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fpmc import blends, diffusion, finetuning
from fpmc.experiments.augmentation import Sets
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.options import COMPARED
from fpmc.finetuning.files import digest, folder_of
from fpmc.methods import schedules
from fpmc.methods.registry import METHODS
from fpmc.results import contestant
from fpmc.source import Source

__all__ = [
    "BLEND",
    "KNOBS",
    "Contestant",
    "blended",
    "contestants",
    "denoiser",
    "searched",
    "source",
    "tuned",
    "values",
    "wanted",
]

KNOBS = tuple(name for name in COMPARED if METHODS[name].knob)
"""The methods that have a schedule."""
TUNED = "pspc_flex"
"""The method whose tuned queries and responses are compared in samples."""
BLEND = "blend"
"""What the tables call a weighted sum of methods, of :mod:`fpmc.blends`."""


class Contestant(NamedTuple):
    """A method, and how its queries, responses and source come about.

    Attributes:
        method: Its name in the registry.
        schedule: Its schedule's name, "" if it has none; "tuned" for what is tuned to a network.
        knob: The schedule's value; the folder of what is tuned, or of a blend.
        joined: The strategy that made the images which its source is joined with, "" if none.
    """

    method: str
    schedule: str
    knob: object
    joined: str = ""

    @property
    def row(self) -> tuple[str, str]:
        """Method and schedule as tables have them; what the source is joined with is told."""
        return self.method, " + ".join(filter(None, (self.schedule, self.joined)))

    @property
    def name(self) -> str:
        """What the tables' readers call it."""
        return contestant(*self.row)

    @property
    def digest(self) -> str:
        """Of what a search or a tuning found, 8 digits; "" for others, whose names say all."""
        if isinstance(self.knob, Path):
            return blends.files.digest(self.knob) if self.method == BLEND else digest(self.knob)
        if not isinstance(self.knob, dict):
            return ""
        return hashlib.sha256(repr(sorted(self.knob.items())).encode()).hexdigest()[:8]


def values(job: Job, method: str) -> list[float]:
    """What can be tried: odd sides, of squares inside the image its own too, or thresholds."""
    known = METHODS[method]
    if not known.has_sides:
        return list(known.tried)
    odd = list(range(1, job.side + 1, 2))
    return [*odd, job.side] if known.inside and job.side % 2 == 0 else odd


def searched(job: Job) -> list[str]:
    """The methods whose knob is searched."""
    return [name for name in KNOBS if METHODS[name].tuned or not job.papers]


def contestants(
    job: Job, found: dict[str, dict[float, float]], *, used: bool = False
) -> Iterator[Contestant]:
    """All that are compared, in order.

    Args:
        job: What is compared with what.
        found: {method: {sigma: value}}, what the search found.
        used: Whether thresholds that the papers use at all levels stand on any data.
    """
    for name in wanted(job, (name for name in COMPARED if not METHODS[name].knob)):
        yield Contestant(name, "", None)
    for name in found:
        convert = int if METHODS[name].has_sides else float
        yield Contestant(name, "found", {s: convert(v) for s, v in found[name].items()})
    schedule = schedules.published_for(job.data)
    for name in wanted(job, KNOBS):
        known = METHODS[name]
        if known.used and (job.papers or used):
            yield from (Contestant(name, f"{tau:g}", tau) for tau in known.used)
        elif (job.papers or not known.tuned) and name in schedules.columns(schedule):
            yield Contestant(name, schedule, schedule)


def tuned(job: Job) -> Iterator[Contestant]:
    """PSPC-Flex tuned to the network, with its own source and with larger ones; none if not there.

    Raises:
        FileNotFoundError: If the folder that is named holds none.
    """
    shipped = f"{job.reference_file}/{TUNED}"
    named = job.tuned or (shipped if shipped in finetuning.SHIPPED else None)
    for name in wanted(job, (TUNED,) if named else ()):
        yield from (
            Contestant(name, "tuned", folder_of(named), joined) for joined in ("", *job.joined)
        )


def blended(job: Job) -> Iterator[Contestant]:
    """The blend that is shipped for the network; none if not there."""
    for name in wanted(job, (BLEND,) if job.reference_file in blends.SHIPPED else ()):
        yield Contestant(name, "", blends.files.folder_of(job.reference_file))


def source(job: Job, who: Contestant) -> Source:
    """The images that a contestant sees; those that are made are made, or taken from disk."""
    if not who.joined:
        return job.seen_by(who.method)
    sets = Sets(job, who.method, who.joined)
    sets.make(1.0)
    return sets.union(1.0)


def denoiser(job: Job, who: Contestant) -> diffusion.Denoiser:
    """A contestant that answers, called with a batch at a time."""
    if not isinstance(who.knob, Path):
        return job.make(who.method, who.knob, source(job, who))
    if who.method == BLEND:
        return in_batches(blends.load(who.knob, job.source, budget=job.bytes), job.batch)
    collection = finetuning.load(who.knob, source(job, who), budget=job.bytes)
    return in_batches(collection.with_precision(job.precision), job.batch)


def wanted(job: Job, names: Iterable[str]) -> list[str]:
    """Those of the methods that are to run."""
    return [name for name in names if not job.method or name in job.method]
