"""Who is compared: every method with a knob at the values that were published, found, or named.

On small data every method's knob is searched, in full, and published schedules that were not tuned
to a network stand beside. On the papers' data all published schedules stand, those that were tuned
to a network are searched around, and thresholds that the papers use at all levels take the place of
a schedule. Which are which, :data:`fpmc.methods.METHODS` and the schedules' tables say.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fpmc.experiments.job import Job
from fpmc.experiments.options import COMPARED
from fpmc.methods import schedules
from fpmc.methods.registry import METHODS
from fpmc.results import contestant

__all__ = ["KNOBS", "Contestant", "contestants", "searched", "values", "wanted"]

KNOBS = tuple(name for name in COMPARED if METHODS[name].knob)
"""The methods that have a schedule."""


class Contestant(NamedTuple):
    """A method with its schedule's name ("" if it has none) and value."""

    method: str
    schedule: str
    knob: object

    @property
    def name(self) -> str:
        """What the tables' readers call it."""
        return contestant(self.method, self.schedule)

    @property
    def digest(self) -> str:
        """Of a schedule that a search found, 8 digits; "" for others, whose names say all."""
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


def contestants(job: Job, found: dict[str, dict[float, float]]) -> Iterator[Contestant]:
    """All that are compared, in order.

    Args:
        job: What is compared with what.
        found: {method: {sigma: value}}, what the search found.
    """
    for name in wanted(job, (name for name in COMPARED if not METHODS[name].knob)):
        yield Contestant(name, "", None)
    for name in found:
        convert = int if METHODS[name].has_sides else float
        yield Contestant(name, "found", {s: convert(v) for s, v in found[name].items()})
    schedule = schedules.published_for(job.data)
    for name in wanted(job, KNOBS):
        used, tuned = METHODS[name].used, METHODS[name].tuned
        if job.papers and used:
            yield from (Contestant(name, f"{tau:g}", tau) for tau in used)
        elif (job.papers or not tuned) and name in schedules.columns(schedule):
            yield Contestant(name, schedule, schedule)


def wanted(job: Job, names: Iterable[str]) -> list[str]:
    """Those of the methods that are to run."""
    return [name for name in names if not job.method or name in job.method]
