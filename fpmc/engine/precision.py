"""How exactly an answer is computed, by name, and how far from exact it may be."""

import math

from fpmc.engine.problem import Problem

__all__ = ["PRECISIONS", "as_precision", "float32_holds", "tolerance"]

PRECISIONS = ("exact", "float32", "tf32", "bf16")

SQUARABLE = 1e15
"""Noise levels, their inverses and weighted distances whose squares float32 surely holds."""


def as_precision(precision: str) -> str:
    """Return the name of a precision.

    Raises:
        ValueError: If there is none of that name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    return precision


def tolerance(sigma: float) -> float:
    """How far a float32 answer may be from the exact one, relative to it (L2).

    Below σ = 0.02 log-weights reach 1e6, and the noisy image's own rounding shows.
    """
    return 1e-5 if sigma >= 0.02 else 1e-3


def float32_holds(problem: Problem, largest: float) -> bool:
    """Whether float32's range surely holds what lies between z and the answer.

    Args:
        problem: What is asked.
        largest: The largest absolute value of z's pixels.
    """
    sigma, d = problem.sigma, math.prod(problem.source.shape)
    ratio = (largest + 1) / min(sigma, 1.0)
    weighted = d * problem.queries.coverage().max().item() * ratio**2
    return 1 / SQUARABLE <= sigma <= SQUARABLE and weighted <= SQUARABLE**2
