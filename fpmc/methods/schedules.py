"""The papers' schedules: patch sizes and thresholds as functions of σ.

The tables are those of Niedoba et al. (2026), tables 5 (CIFAR-10), 6 (FFHQ 64 × 64) and 7
(AFHQv2 64 × 64): a row per step of the EDM sampler, a column per method.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from fpmc.checks import as_fraction, as_whole_number
from fpmc.levels import nearest_level

__all__ = ["PUBLISHED", "patch_schedule", "published", "threshold_schedule"]

PUBLISHED = {"cifar10": 32, "ffhq64": 64, "afhqv2-64": 64}
"""The published schedules' names, and the side of the images they were found for."""

SMALLEST_PATCH = 3


@cache
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
    table = resources.files("fpmc.methods") / "tables" / f"{name}.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    if column not in rows[0] or column in ("step", "sigma"):
        columns = ", ".join(list(rows[0])[2:])
        raise ValueError(f"column: got {column!r}, wanted one of {columns} in {name}")
    return MappingProxyType({float(row["sigma"]): float(row[column]) for row in rows})


def patch_schedule(
    patch_sizes: int | Mapping[float, int] | str, column: str, side: int
) -> Callable[[float], int]:
    """A function from σ to the side p of a patch.

    A published schedule scales with the side of the image, p · side / published side, rounded half
    up, but never below 3: that is the smallest published patch, a pixel with its neighbours, at
    every resolution.

    Args:
        patch_sizes: A number, a {sigma: p} mapping (the nearest sigma on a logarithmic scale
            wins), or a published schedule's name.
        column: The method whose column of the published table counts.
        side: The image's shorter side, the largest p allowed.

    Raises:
        TypeError: If a patch size is not a whole number.
        ValueError: If it is not between 1 and ``side``, or no schedule has that name.
    """

    def scaled(table: Mapping[float, float]) -> dict[float, int]:
        ratio = side / PUBLISHED[patch_sizes]
        return {s: min(max(int(p * ratio + 0.5), SMALLEST_PATCH), side) for s, p in table.items()}

    def checked(p: Any) -> int:
        return as_whole_number(p, "patch_sizes", 1, side)

    return _schedule(patch_sizes, column, "patch_sizes", checked, scaled)


def threshold_schedule(
    thresholds: float | Mapping[float, float] | str, column: str, name: str, *, zero: bool = True
) -> Callable[[float], float]:
    """A function from σ to a threshold τ between 0 and 1. A published schedule is taken as it is.

    Args:
        thresholds: A number, a {sigma: τ} mapping (the nearest sigma on a logarithmic scale wins),
            or a published schedule's name.
        column: The method whose column of the published table counts.
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
        if values not in PUBLISHED:
            raise ValueError(
                f"{name}: got {values!r}, wanted a number, a mapping from sigma to numbers, or one "
                f"of {', '.join(PUBLISHED)}"
            )
        return nearest_level(adapted(published(values, column)), name)
    if isinstance(values, Mapping):
        return nearest_level({sigma: checked(value) for sigma, value in values.items()}, name)
    value = checked(values)
    return lambda sigma: value
