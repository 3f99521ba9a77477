"""The sum over the source: a reference to test against, and what computes it fast.

:func:`plan` says which way an answer will be computed, and what that takes.
"""

from fpmc.engine.planning import Peaks, Plan, as_precision, denoise, measure_peaks, plan
from fpmc.engine.pruning import Pruned, denoise_pruned

__all__ = [
    "Peaks", "Plan", "Pruned", "as_precision", "denoise", "denoise_pruned", "measure_peaks", "plan",
]  # fmt: skip
