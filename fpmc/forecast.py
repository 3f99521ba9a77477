"""How long work will take, told once, by its first steps."""

import math

__all__ = ["Forecast", "duration"]

MEASURED = 2.0
"""Seconds of steps after which a forecast is made."""


class Forecast:
    """How long the rest of some work will take, by its first steps but the very first.

    Args:
        work: What the sentence calls the work.
        unit: What it calls a step.
    """

    def __init__(self, work: str, unit: str) -> None:
        self.work, self.unit = work, unit
        self.first: tuple[int, float] | None = None
        self.told = False

    def __call__(
        self, done: int, seconds: float, left: float, most: float = math.inf
    ) -> str | None:
        """The sentence, once, when enough steps were measured; None before and after.

        Args:
            done: The steps that were taken so far.
            seconds: The time that they took.
            left: The steps that are left.
            most: The seconds after which the work ends whatever is left.
        """
        if self.first is None:
            self.first = done, seconds
        steps, spent = done - self.first[0], seconds - self.first[1]
        if self.told or spent < MEASURED or not steps:
            return None
        self.told = True
        ahead = max(0.0, min(most, left * spent / steps))
        return (
            f"{self.work}: about {duration(ahead)} to go "
            f"({spent / steps:.2g} s a {self.unit}, by the first {steps})"
        )


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two or more."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
