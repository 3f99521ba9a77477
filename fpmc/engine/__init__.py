"""The sum over the source: a reference to test against, and what computes it fast.

:func:`plan` says which way an answer will be computed, and what that takes. Where things are:

- what is asked is a ``problem``; ``plan`` chooses the backend, by what ``choices`` says of each;
  ``run`` calls it, and ``autograd`` makes the answer differentiable;
- the online softmax is ``softmax``, the budget ``memory``, windows and lists of tiles ``sparsity``;
- a folder is a kind of backend: ``streaming`` for any operator and device (its ``vjp`` has the
  gradients of Q and R), ``cpu`` compiled by numba, ``cuda`` by Triton.
"""

from fpmc.engine.plan import Plan, plan
from fpmc.engine.precision import as_precision
from fpmc.engine.roofline import Peaks, measure_peaks
from fpmc.engine.run import denoise

__all__ = ["Peaks", "Plan", "as_precision", "denoise", "measure_peaks", "plan"]
