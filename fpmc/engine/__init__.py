"""The sum over the source: a reference to test against, and what computes it fast.

:func:`plan` says which way an answer will be computed, and what that takes.
"""

from fpmc.engine.plan import Peaks, Plan, as_precision, denoise, measure_peaks, plan

__all__ = ["Peaks", "Plan", "as_precision", "denoise", "measure_peaks", "plan"]
