"""A job from words: of the command line, or of a notebook's parameters."""

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from fpmc.checks import as_positive
from fpmc.experiments.job import Job

__all__ = ["job_of", "parse"]

GROUPS = {
    "what": "what is compared with what",
    "published": "networks that others trained",
    "much": "how much of it",
    "training": "training",
    "tuning": "tuning",
    "augmentation": "augmentation",
    "recipe": "recipe",
    "distributional": "distributional",
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


def job_of(options: Mapping[str, Any]) -> Job:
    """The job that options ask for, given as notebooks and YAML can give them.

    Args:
        options: {name of a field of :class:`Job`: value}; paths are text, and what may be given
            several times is a list, or the one value.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If there is no such option, or a value lies outside its range.
    """
    fields = {made.name: made for made in dataclasses.fields(Job)}
    if unknown := sorted(set(options) - set(fields)):
        raise ValueError(f"{unknown[0]}: no such option, wanted some of {', '.join(fields)}")
    if "data" not in options:
        raise ValueError("data: got none, wanted a name or path of a dataset")
    return Job(**{name: _given(fields[name], value) for name, value in options.items()})


def _given(made: dataclasses.Field, value: Any) -> Any:
    """A field's value, as a notebook gave it."""
    several = get_origin(made.type) is tuple
    if several and value is not None:
        value = (
            tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        )
    read = made.metadata.get("type")
    if isinstance(value, str) and read is not None and read is not json.loads and not several:
        try:
            value = read(value)
        except ValueError as error:
            raise ValueError(f"{made.name}: got {value!r}, wanted a number") from error
    choices = made.metadata.get("choices")
    for one in value if several and choices else ():
        if one not in choices:
            raise ValueError(f"{made.name}: got {one!r}, wanted one of {', '.join(choices)}")
    return value


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
    if name not in ("sources", "fewer"):
        return tuple(given) if isinstance(given, list) else given
    try:
        return {method: int(n) for method, n in (pair.split("=") for pair in given)}
    except ValueError as error:
        raise ValueError(f"{name}: got {given}, wanted METHOD=N") from error
