"""Filtered posterior mean collections: analytical models of what diffusion networks do.

A collection is two non-negative linear operators and a source. With
:math:`\\delta_n = (z - x_n)^2` per pixel,

.. math:: \\ell_{kn} = -(Q \\delta_n)_k / 2\\sigma^2, \\quad w_{kn} = \\mathrm{softmax}_n\\, \\ell_{kn},
          \\quad \\hat x = [\\sum_n (R^\\top w_{\\cdot n}) \\odot x_n] \\oslash R^\\top 1 .

``operators`` is where the structure of Q and R lives, ``engine`` where the sum over n is done, and
``methods`` the papers' denoisers, each a choice of Q, R and source.
"""

from fpmc import data, diffusion, methods, metrics, operators
from fpmc.collection import FPMC, Posterior
from fpmc.source import Source

__version__ = "0.1.0"

__all__ = [
    "FPMC",
    "Posterior",
    "Source",
    "data",
    "diffusion",
    "methods",
    "metrics",
    "operators",
]
