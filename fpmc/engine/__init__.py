"""The sum over the source: a reference to test against, and what computes it fast.

:func:`plan` says which way an answer will be computed, and what that takes.
"""

from fpmc.engine.plan import Plan, plan
from fpmc.engine.precision import as_precision
from fpmc.engine.roofline import Peaks, measure_peaks
from fpmc.engine.run import denoise

__all__ = ["Peaks", "Plan", "as_precision", "denoise", "measure_peaks", "plan"]
