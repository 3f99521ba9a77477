"""The budget of working memory of a call, in bytes, and the sizes that it is counted in."""

from typing import Any

from fpmc.checks import as_whole_number

__all__ = ["CACHE_FRIENDLY", "DEFAULT_BUDGET", "FLOAT32", "FLOAT64", "resolve", "too_small"]

DEFAULT_BUDGET = 2**30
"""Working memory of one call unless the caller says otherwise: 1 GiB."""

FLOAT32, FLOAT64 = 4, 8
"""Bytes of a number."""

CACHE_FRIENDLY = 2**25
"""Bytes of arrays that a CPU goes through again and again, so that they stay in its cache."""


def resolve(budget: Any) -> int:
    """Return the bytes that a call may take; :data:`DEFAULT_BUDGET` for None.

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If it is below 1.
    """
    return DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)


def too_small(budget: int, least: int, what: str) -> ValueError:
    """The error that says what a budget would have to be for something."""
    return ValueError(f"budget: got {budget:,} bytes, wanted at least {least:,} for {what}")
