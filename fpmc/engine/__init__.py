"""The sum over the source: a reference to test against, and what computes it fast.

:func:`plan` says which way an answer will be computed, and what that takes.
"""

from fpmc.engine.planning import Peaks, Plan, denoise, measure_peaks, plan

__all__ = ["Peaks", "Plan", "denoise", "measure_peaks", "plan"]
