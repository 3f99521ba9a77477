"""What depends on the noise level: values given at some σ, looked up at any.

All of it can be pickled, and so can the denoisers that are made of it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fpmc.checks import as_noise_level
from fpmc.modes import lasting

__all__ = ["Constant", "Latest", "nearest_level"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Constant(Generic[Value]):
    """The same value at every σ."""

    value: Value

    def __call__(self, sigma: float) -> Value:
        return self.value


class Latest(Generic[Value]):
    """A function of σ that remembers its last answer, which a batch's parts ask for again.

    Args:
        function: What is called where σ is another than last time.
    """

    def __init__(self, function: Callable[[float], Value]):
        self._function, self._last = function, None

    def __call__(self, sigma: float) -> Value:
        last = self._last
        if last is None or last[0] != sigma:
            with lasting():
                self._last = last = (sigma, self._function(sigma))
        return last[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Latest, (self._function,)


@dataclass(frozen=True)
class _Nearest(Generic[Value]):
    """Values at rising levels, of which the nearest to ln σ wins, the lower one a tie."""

    levels: tuple[float, ...]
    values: tuple[Value, ...]

    def __call__(self, sigma: float) -> Value:
        target = math.log(sigma)
        return self.values[min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - target))]


def nearest_level(values: Mapping[float, Value], name: str) -> Callable[[float], Value]:
    """A function from σ to the value whose noise level is nearest to it.

    Near on a logarithmic scale, on which the levels of a sampler are spread: halfway between 1 and
    4 is 2. The lower level wins a tie.

    Args:
        values: {σ: value}, not empty.
        name: What an error calls it.

    Raises:
        ValueError: If there are no values, or a key is not a positive number.
    """
    if not values:
        raise ValueError(f"{name}: got an empty mapping, wanted at least one noise level")
    table = sorted(
        ((as_noise_level(level, f"{name}, a key"), value) for level, value in values.items()),
        key=lambda row: row[0],
    )
    levels, found = zip(*table, strict=True)
    return _Nearest(tuple(map(math.log, levels)), found)
