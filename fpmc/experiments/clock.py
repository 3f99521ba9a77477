"""A limit of minutes, kept by not starting what would pass it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fpmc.limits import OutOfTimeError

__all__ = ["Clock"]


class Clock:
    """The time that a stage has.

    Args:
        minutes: From now on.
        now: Seconds by a clock that never goes back.
    """

    def __init__(self, minutes: float = math.inf, now: Callable[[], float] = time.monotonic):
        self.end, self.now = now() + 60 * minutes, now
        self.longest: dict[str, float] = {}

    @property
    def minutes(self) -> float:
        """What is left, not below 0."""
        return max(0.0, (self.end - self.now()) / 60)

    @contextmanager
    def unit(self, kind: str) -> Iterator[None]:
        """Around a piece of work that is done wholly or not at all.

        The first is always begun, so that every run gets somewhere.

        Args:
            kind: Pieces of one kind are expected to take as long as the longest of them so far.

        Raises:
            OutOfTimeError: Before the work, if it would not end in time.
        """
        expected = self.longest.get(kind, 0.0)
        if self.longest and self.now() + expected >= self.end:
            raise OutOfTimeError
        start = self.now()
        yield
        self.longest[kind] = max(expected, self.now() - start)
