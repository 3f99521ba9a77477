"""The type checker that tests run the package under: beartype, taking ints for floats."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from beartype import BeartypeConf, beartype

_check = cache(beartype(conf=BeartypeConf(is_pep484_tower=True)))
_first, _passed = {}, defaultdict(set)
"""The first definition of each function, and what its check has seen and let pass."""
BY_VALUE = ("Literal[", "Annotated[", "{")
"""Marks of annotations that look at more than types, shapes and texts."""


def checked(function: Callable) -> Callable:
    """What checks a function's arguments and answer; jaxtyping calls it and drops what it gives.

    A verdict depends on the function's annotations and on types, shapes and texts alone, so nothing
    is checked twice; where an annotation looks at values, everything is. A check is made when it is
    first needed, and once for a function that is defined inside another and so at every call: that
    took longer than most of what is tested.
    """
    names = function.__module__, function.__qualname__, function.__code__.co_varnames
    name = *names, *function.__annotations__.items()  # themselves: two classes may share a name
    told = repr(function.__annotations__)
    try:
        first, passed = _first.setdefault(name, function), _passed[name]
    except TypeError:  # an annotation that has no hash
        return _check(function)
    if any(mark in told for mark in BY_VALUE):
        return _check(first)

    @wraps(function)
    def check_once(*args, **kwargs):
        try:
            seen = _seen(args), tuple((key, _seen(value)) for key, value in kwargs.items())
            if seen in passed:
                return
        except (TypeError, RuntimeError):  # a mapping, say, or a tensor without a shape
            _check(first)(*args, **kwargs)
        else:
            _check(first)(*args, **kwargs)
            passed.add(seen)

    return check_once


def _seen(value: Any) -> Hashable:
    """What a check sees of a value.

    Raises:
        TypeError: If that is not all that there is.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return type(value), value.dtype, value.shape
    if isinstance(value, tuple | list):
        return type(value), *map(_seen, value)
    if isinstance(value, str | type):
        return type(value), value
    if isinstance(value, Collection):  # a mapping, its keys, a queue
        raise TypeError(type(value))
    return type(value)
