"""Who is compared: every method with a knob at the values that were published, found, or named.

On small data every method's knob is searched, in full, and three published schedules stand beside.
On the papers' data the published schedules stand for every method that has one, sides of LS and ELS
are searched around them, and Lukoianov's threshold is 0.05 and 0.02.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fpmc.experiments.job import Job
from fpmc.experiments.options import COMPARED
from fpmc.methods import schedules
from fpmc.methods.registry import METHODS
from fpmc.results import contestant

__all__ = ["KNOBS", "Contestant", "contestants", "published", "searched", "values", "wanted"]

KNOBS = tuple(name for name in COMPARED if METHODS[name].knob)
"""The methods that have a schedule."""
THRESHOLDS = (0.05, 0.02)
"""Lukoianov's thresholds that the papers used."""


class Contestant(NamedTuple):
    """A method with its schedule's name ("" if it has none) and value."""

    method: str
    schedule: str
    knob: object

    @property
    def name(self) -> str:
        """What the tables' readers call it."""
        return contestant(self.method, self.schedule)


def values(job: Job, method: str) -> list[float]:
    """What can be tried: odd sides, for PSPC-Square the whole image too, or thresholds."""
    odd = list(range(1, job.side + 1, 2))
    return {
        "pspc_square": [*odd, job.side] if job.side % 2 == 0 else odd,
        "ls": odd,
        "els": odd,
        "lukoianov": [0.02, 0.05, 0.1, 0.2],
        "pspc_flex": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    }[method]


def published(job: Job) -> str:
    """The name of the published schedule: the data's own, or CIFAR-10's."""
    return job.data if job.data in schedules.PUBLISHED else "cifar10"


def searched(job: Job) -> list[str]:
    """The methods whose knob is searched."""
    return ["ls", "els"] if job.papers else list(KNOBS)


def contestants(job: Job, found: dict[str, dict[float, float]]) -> Iterator[Contestant]:
    """All that are compared, in order.

    Args:
        job: What is compared with what.
        found: {method: {sigma: value}}, what the search found.
    """
    for name in wanted(job, ("optimal", "wiener")):
        yield Contestant(name, "", None)
    for name in found:
        convert = int if METHODS[name].has_sides else float
        yield Contestant(name, "found", {s: convert(v) for s, v in found[name].items()})
    schedule = published(job)
    three = ("pspc_square", "pspc_flex", "lukoianov")
    for name in wanted(job, ("pspc_square", "pspc_flex", "ls", "els") if job.papers else three):
        if _is_published(schedule, name):
            yield Contestant(name, schedule, schedule)
    for tau in THRESHOLDS if job.papers and wanted(job, ("lukoianov",)) else ():
        yield Contestant("lukoianov", f"{tau:g}", tau)


def wanted(job: Job, names: Iterable[str]) -> list[str]:
    """Those of the methods that are to run."""
    return [name for name in names if not job.method or name in job.method]


def _is_published(schedule: str, method: str) -> bool:
    try:
        return bool(schedules.published(schedule, method))
    except ValueError:
        return False
