"""The stored tables of heavy runs, which ``python -m fpmc.experiments`` writes."""

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.methods.registry import METHODS
from fpmc.metrics import Estimate
from fpmc.source import to_float
from fpmc.storage import BROKEN, INSTALLED

__all__ = [
    "FOLDER",
    "MEASURES",
    "PUBLISHED",
    "SETTINGS",
    "TITLES",
    "contestant",
    "images",
    "measurements",
    "per_sample",
    "published",
    "read",
    "singly",
    "stored",
    "title",
]

FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "results"
"""Where the tables lie, in a checkout or in an installed package.

:meta hide-value:
"""
TABLES = ("augmentation", "axes", "blends", "copies", "denoising", "map_images", "maps")
TABLES += (
    "memorisation",
    "places",
    "published",
    "recipe",
    "samples",
    "schedules",
    "tuning",
    "worth",
)
TITLES = {name: method.title for name, method in METHODS.items() if method.compared}
"""What readers are told for what the tables call a method."""
MEASURES = ("mse", "r2", "nearest")
"""What is measured of every sample, error and r² to the reference's, distance to the source."""
PUBLISHED = ("mse", "r2", "mse_other", "r2_other", "nearest")
"""What is measured of samples beside a published network's, error and r² to the image from the same
noise and to another of its class, distance to the source."""
SETTINGS = "settings"
"""What stands beside the measures and is no method, what decided the samples, as JSON."""
TEXT = ("data", "network", "reference", "method", "schedule", "z", "trial", "command", "trained_on")
TEXT += ("device", "precision", "version", "torch", "code", "date", "network_hash", "data_hash")
TEXT += ("float16_at",)
TEXT += ("kind", "fault", "outcome", "sampler")
TEXT += ("schedule_hash", "maps_hash", "arguments", "learn", "tuning", "strategy", "by", "step")
TEXT += ("before", "axis", "chosen", "tried", "each")


def stored(root: str | os.PathLike | None = None) -> list[tuple[str, str]]:
    """The stored tables of comparisons with a network: (dataset, table), in order.

    Args:
        root: The folder ``results``, if it is not beside the package.
    """
    found = Path(root or FOLDER).glob("*/*.csv")
    return sorted((path.parent.name, path.stem) for path in found if path.stem in TABLES)


def read(
    data: str, table: str, root: str | os.PathLike | None = None
) -> list[dict[str, str | float | Estimate]]:
    """A stored table, a dictionary per row.

    A column with a standard error beside it, such as ``mse`` with ``mse_error``, is read as one
    :class:`fpmc.metrics.Estimate`; other numbers are floats, NaN where a row has none.

    Args:
        data: The dataset, a folder in ``results``.
        table: "schedules", "denoising", "samples", "worth", "copies", "maps", "looks",
            "trials", "tuning", "augmentation", "published", "recipe", "axes", "blends",
            "map_images", "memorisation", "places", "distributional", "draws_cost" or "paths";
            "faults" of "faults"; "packed" or "packed_samples" of "packing".
        root: The folder ``results`` itself, if it is not beside the package.

    Raises:
        FileNotFoundError: If there is no such table; says how to compute it.
        ValueError: If it cannot be read.
    """
    path = _path(data, f"{table}.csv", root)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of results ({error})") from error


def contestant(method: str, schedule: str) -> str:
    """What a method is called by its schedule: "method, schedule", or "method" if it has none."""
    return f"{method}, {schedule}" if schedule else method


def title(method: str, schedule: str = "") -> str:
    """What readers are told for a :func:`contestant`."""
    return contestant(TITLES.get(method, method), schedule)


def singly(row: Mapping) -> Float[Tensor, " n"]:
    """What was measured of every image, of a row of "places": the first images, in order."""
    return torch.tensor([float(x) for x in row["each"].split()], dtype=torch.float64)


def images(
    data: str, root: str | os.PathLike | None = None, *, table: str = "samples"
) -> dict[str, Float[Tensor, "m c h w"]]:
    """A few stored samples of every method, in [-1, 1], {:func:`contestant`: images}.

    Those of the table "paths" are {"network, sampler, calls": paths}. Other arguments and errors
    are as in :func:`read`.
    """
    path = _path(data, f"{table}.npz", root)
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels = {name: torch.from_numpy(file[name]) for name in file.files}
        if any(values.ndim != 4 for values in pixels.values()):
            raise ValueError("arrays of other shapes")
        return {name: to_float(values) for name, values in pixels.items()}
    except (*BROKEN, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a file of samples ({error})") from error


def per_sample(
    data: str, root: str | os.PathLike | None = None
) -> dict[str, dict[str, Float[Tensor, " n"]]]:
    """What was measured of every sample, {:func:`contestant`: {measure: values}}.

    The measures are :data:`MEASURES`. The i-th samples of all methods start from the same noise, so
    differences can be taken sample by sample. Arguments and errors as in :func:`read`.
    """
    return _measured(_path(data, "each.npz", root), MEASURES)


def published(
    data: str, root: str | os.PathLike | None = None
) -> dict[tuple[str, str, str], dict[str, Float[Tensor, " n"]]]:
    """The same beside published networks, {(network, by, :func:`contestant`): {measure: values}}.

    The methods' source is an image's "class", or "all" of the data. The measures are
    :data:`PUBLISHED`, NaN where a class has no other image. Arguments and errors as in
    :func:`read`.
    """
    found = _measured(_path(data, "published.npz", root), PUBLISHED)
    return {tuple(name.split("/")): values for name, values in found.items()}


def _measured(path: Path, measures: tuple[str, ...]) -> dict[str, dict[str, Float[Tensor, " n"]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = (name for name in file.files if not name.endswith(SETTINGS))
            columns = {name: torch.from_numpy(file[name]).double().unbind(1) for name in names}
        return {name: dict(zip(measures, values, strict=True)) for name, values in columns.items()}
    except (*BROKEN, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: not a file of samples' measures ({error})") from error


def measurements(
    table: str, root: str | os.PathLike | None = None, data: str | None = None
) -> list[dict[str, str | float]]:
    """A stored table of the engine's benchmarks, a dictionary per row; what is a number is a float.

    Args:
        table: "paths", "scaling", "els", "finetuning", "pareto" of a dataset, or "kernels" from a
            GPU.
        root: The folder ``results`` itself, if it is not beside the package.
        data: The dataset in whose run the benchmark was part; None for one of its own.

    Raises:
        FileNotFoundError: If there is no such table; says how to measure it.
        ValueError: If it cannot be read.
    """
    path = Path(root or FOLDER) / (data or "") / "engine" / f"{table}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table; python benchmarks/{table}.py --out {path} measures it"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        return [
            {name: value if name in TEXT else _number(value) for name, value in row.items()}
            for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of measurements ({error})") from error


def _number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def _path(data: str, name: str, root: str | os.PathLike | None) -> Path:
    path = Path(root or FOLDER) / data / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table; python -m fpmc.experiments --data {data} computes it"
        )
    return path


def _row(row: dict[str, str]) -> dict[str, str | float | Estimate]:
    if None in row or None in row.values():  # what csv puts where cells are too many or too few
        raise ValueError("a row has another number of cells than the first one")
    values = {}
    for name, value in row.items():
        if name in TEXT:
            values[name] = value
        elif row.get(f"{name}_error"):
            values[name] = Estimate(float(value), float(row[f"{name}_error"]), int(row["n"]))
        elif not name.endswith("_error"):
            values[name] = float(value) if value else math.nan
    return values
