"""The command line of experiments, made of a job's fields."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from fpmc.checks import as_positive
from fpmc.experiments.job import Job

__all__ = ["parse"]

GROUPS = {
    "what": "what is compared with what",
    "much": "how much of it",
    "training": "training",
    "tuning": "tuning",
    "augmentation": "augmentation",
    "engine": "engine",
}


def parse(
    arguments: Sequence[str] | None, stages: Sequence[str], description: str
) -> tuple[Job, argparse.Namespace]:
    """The job that a command line asks for, and its other options: stages, minutes, store.

    Args:
        arguments: The words; those of the process if left out.
        stages: What ``--stage`` may name.
        description: What stands above the options' help.

    Raises:
        ValueError: If an argument cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m fpmc.experiments", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--stage", choices=stages, action="append", help="default: all that are needed, in order"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="of each stage: stop before they are over"
    )
    parser.add_argument(
        "--store", action="store_true", help="take the schedules that were found into the package"
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for made in dataclasses.fields(Job):
        place = groups.get(made.metadata.get("group"), parser)
        place.add_argument(f"--{made.name.replace('_', '-')}", **_argument(made))
    given = parser.parse_args(arguments)
    as_positive(given.minutes, "--minutes", finite=False)
    values = {made.name: getattr(given, made.name) for made in dataclasses.fields(Job)}
    return Job(**{name: _value(name, value) for name, value in values.items()}), given


def _argument(made: dataclasses.Field) -> dict[str, Any]:
    """What argparse is told of a field."""
    told = {k: v for k, v in made.metadata.items() if k not in ("group", "least", "positive")}
    default = made.default if made.default is not dataclasses.MISSING else made.default_factory()
    if get_origin(made.type) is tuple:
        return {**told, "action": "append", "default": []}
    if bool in get_args(made.type):
        return {**told, "action": argparse.BooleanOptionalAction, "default": default}
    if "metavar" in told:  # METHOD=N
        return {**told, "nargs": "+", "default": [f"{k}={v}" for k, v in default.items()]}
    return told if told.get("required") else {**told, "default": default}


def _value(name: str, given: Any) -> Any:
    """A field's value, as argparse gave it."""
    if name == "recipe" and not isinstance(given, dict):
        raise ValueError(f"recipe: got {given!r}, wanted an object")
    if name != "sources":
        return tuple(given) if isinstance(given, list) else given
    try:
        return {method: int(n) for method, n in (pair.split("=") for pair in given)}
    except ValueError as error:
        raise ValueError(f"sources: got {given}, wanted METHOD=N") from error
