"""What depends on the noise level: values given at some σ, looked up at any."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from fpmc.checks import as_noise_level

__all__ = ["nearest_level"]

Value = TypeVar("Value")


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
    levels = [math.log(level) for level, _ in table]

    def look_up(sigma: float) -> Value:
        target = math.log(sigma)
        return table[min(range(len(table)), key=lambda i: abs(levels[i] - target))][1]

    return look_up
