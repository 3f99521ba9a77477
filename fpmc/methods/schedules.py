"""The papers' schedules: patch sizes and thresholds as functions of σ.

The tables are those of Niedoba et al. (2026), tables 5 (CIFAR-10), 6 (FFHQ 64 × 64) and 7
(AFHQv2 64 × 64): a row per step of the EDM sampler, a column per method.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from fpmc.checks import as_whole_number
from fpmc.levels import nearest_level

__all__ = ["PUBLISHED", "patch_schedule", "published"]

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
    if isinstance(patch_sizes, str):
        if patch_sizes not in PUBLISHED:
            raise ValueError(
                f"patch_sizes: got {patch_sizes!r}, wanted a number, a mapping from sigma to "
                f"numbers, or one of {', '.join(PUBLISHED)}"
            )
        ratio = side / PUBLISHED[patch_sizes]
        scaled = {
            sigma: max(int(p * ratio + 0.5), SMALLEST_PATCH)
            for sigma, p in published(patch_sizes, column).items()
        }
        return nearest_level({s: min(p, side) for s, p in scaled.items()}, "patch_sizes")
    if isinstance(patch_sizes, Mapping):
        checked = {
            sigma: as_whole_number(p, "patch_sizes", 1, side) for sigma, p in patch_sizes.items()
        }
        return nearest_level(checked, "patch_sizes")
    p = as_whole_number(patch_sizes, "patch_sizes", 1, side)
    return lambda sigma: p
