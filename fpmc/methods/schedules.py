"""Schedules: patch sizes and thresholds as functions of σ.

The published tables are those of Niedoba et al. (2026), tables 5 (CIFAR-10), 6 (FFHQ 64 × 64) and 7
(AFHQv2 64 × 64): a row per step of the EDM sampler, a column per method. Those of the embedded data
were found in the same way, by ``python -m fpmc.experiments``: the values nearest to a network.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from fpmc.checks import as_fraction, as_whole_number
from fpmc.levels import Constant, nearest_level
from fpmc.operators import Box
from fpmc.source import Source

__all__ = [
    "FOUND",
    "PUBLISHED",
    "ScheduledBox",
    "columns",
    "found",
    "own",
    "patch_schedule",
    "published",
    "published_for",
    "stored",
    "threshold_schedule",
]

PUBLISHED = {"cifar10": 32, "ffhq64": 64, "afhqv2-64": 64}
"""The published schedules' names, and the side of the images they were found for."""

FOUND = {"digits": 8, "photos": 16, "fashion": 28}
"""The found schedules' names, and the side of their images."""

SIDES = PUBLISHED | FOUND

SMALLEST_PATCH = 3


def published(name: str, column: str) -> Mapping[float, float]:
    """A column of a published table as {sigma: value}.

    Args:
        name: "cifar10", "ffhq64" or "afhqv2-64".
        column: "pspc_square", "ls", "els" (cifar10 only), "pspc_flex" or "lukoianov".

    Raises:
        ValueError: If there is no such table or column.
    """
    if name not in PUBLISHED:
        raise ValueError(f"schedule: got {name!r}, wanted one of {', '.join(PUBLISHED)}")
    return _table(name, column)


def found(name: str, column: str) -> Mapping[float, float]:
    """A column of the schedules found for the embedded data, as {sigma: value}.

    Args:
        name: "digits", "photos" or "fashion": for their DDPM++.
        column: "pspc_square", "pspc_flex", "ls", "els" or "lukoianov"; of fashion the first two.

    Raises:
        ValueError: If there is no such table or column.
    """
    if name not in FOUND:
        raise ValueError(f"schedule: got {name!r}, wanted one of {', '.join(FOUND)}")
    return _table(name, column)


def stored(name: str) -> bool:
    """Whether the package has the table of a schedule: a found one enters it once it is found."""
    return _file(name).is_file()


@cache
def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_file(name).read_text().splitlines()))


def _file(name: str) -> Any:
    return resources.files("fpmc.methods") / "tables" / f"{name}.csv"


def columns(name: str) -> list[str]:
    """The methods that a published or found table has a schedule for.

    Raises:
        ValueError: If there is no such table.
    """
    if name not in SIDES:
        raise ValueError(f"schedule: got {name!r}, wanted one of {', '.join(SIDES)}")
    return [column for column in _rows(name)[0] if column not in ("step", "sigma")]


def published_for(data: str) -> str:
    """The name of the published schedules for a dataset: its own, or else CIFAR-10's."""
    return data if data in PUBLISHED else "cifar10"


def _table(name: str, column: str) -> Mapping[float, float]:
    having = columns(name)
    if column not in having:
        raise ValueError(f"column: got {column!r}, wanted one of {', '.join(having)} in {name}")
    return MappingProxyType({float(row["sigma"]): float(row[column]) for row in _rows(name)})


def own(values: Any, source: Source, column: str, name: str) -> Any:
    """The values, or if there are none the name of the schedule of the source's dataset.

    Args:
        values: What was given; None if nothing was.
        source: S.
        column: The method whose schedule it is.
        name: What an error calls it.

    Raises:
        ValueError: If nothing was given, and the source is of no dataset that has a schedule for
            the method.
    """
    if values is not None:
        return values
    having = [schedule for schedule in SIDES if column in columns(schedule)]
    if source.dataset in having:
        return source.dataset
    of = "images of no named dataset" if source.dataset is None else f"{source.dataset!r}"
    search = "search_patch_sizes" if name == "patch_sizes" else "search_thresholds"
    raise ValueError(
        f"{name}: left out, but there is no schedule for {of}; wanted a number, a mapping from "
        f"sigma to numbers such as fpmc.methods.{search} finds, or one of {', '.join(having)}. The "
        "source of a named dataset is fpmc.data.load(name).source()"
    )


def patch_schedule(
    patch_sizes: int | Mapping[float, int] | str, column: str, side: int
) -> Callable[[float], int]:
    """A function from σ to the side p of a patch.

    A schedule scales with the side of the image, p · side / its own side, rounded half up. A
    published one never goes below 3: that is the smallest published patch, a pixel with its
    neighbours, at every resolution.

    Args:
        patch_sizes: A number, a {sigma: p} mapping (the nearest sigma on a logarithmic scale
            wins), or the name of a published or found schedule.
        column: The method whose column of the table counts.
        side: The image's shorter side, the largest p allowed.

    Raises:
        TypeError: If a patch size is not a whole number.
        ValueError: If it is not between 1 and ``side``, or no schedule has that name.
    """

    def scaled(table: Mapping[float, float]) -> dict[float, int]:
        ratio = side / SIDES[patch_sizes]
        least = SMALLEST_PATCH if patch_sizes in PUBLISHED else 1
        return {s: min(max(int(p * ratio + 0.5), least), side) for s, p in table.items()}

    def checked(p: Any) -> int:
        return as_whole_number(p, "patch_sizes", 1, side)

    return _schedule(patch_sizes, column, "patch_sizes", checked, scaled)


@dataclass(frozen=True)
class ScheduledBox:
    """The squares of a patch schedule, as an operator at every σ.

    Attributes:
        shape: The images' (h, w).
        patch_sizes: A function from σ to the side p.
        border: As for :class:`fpmc.operators.Box`.
    """

    shape: tuple[int, int]
    patch_sizes: Callable[[float], int]
    border: str = "valid"

    def __call__(self, sigma: float) -> Box:
        return Box(self.shape, self.patch_sizes(sigma), self.border)


def threshold_schedule(
    thresholds: float | Mapping[float, float] | str, column: str, name: str, *, zero: bool = True
) -> Callable[[float], float]:
    """A function from σ to a threshold τ between 0 and 1. A table of them is not scaled.

    Args:
        thresholds: A number, a {sigma: τ} mapping (the nearest sigma on a logarithmic scale wins),
            or the name of a published or found schedule.
        column: The method whose column of the table counts.
        name: What an error calls the thresholds.
        zero: Whether τ = 0 is allowed.

    Raises:
        TypeError: If a threshold is not a number.
        ValueError: If it is not between 0 and 1, or no schedule has that name.
    """
    return _schedule(thresholds, column, name, lambda tau: as_fraction(tau, name, zero=zero), dict)


def _schedule(
    values: Any,
    column: str,
    name: str,
    checked: Callable[[Any], float],
    adapted: Callable[[Mapping[float, float]], Mapping[float, float]],
) -> Callable[[float], float]:
    """A function from σ to a checked value, or to one of a published table, adapted."""
    if isinstance(values, str):
        if values not in SIDES:
            raise ValueError(
                f"{name}: got {values!r}, wanted a number, a mapping from sigma to numbers, or one "
                f"of {', '.join(SIDES)}"
            )
        having = [schedule for schedule in SIDES if column in columns(schedule)]
        if values not in having:
            raise ValueError(
                f"{name}: got {values!r}, a schedule without one for {column}, wanted one of "
                f"{', '.join(having)}"
            )
        return nearest_level(adapted(_table(values, column)), name)
    if isinstance(values, Mapping):
        return nearest_level({sigma: checked(value) for sigma, value in values.items()}, name)
    return Constant(checked(values))
