r"""Filtered posterior mean collections: analytical models of what diffusion networks do.

A collection is two non-negative linear operators Q and R and a source of images. With
:math:`\delta_n = (z - x_n)^2` per pixel,

.. math::
    \ell_{kn} = -\frac{(Q \delta_n)_k}{2\sigma^2}, \qquad
    w_{kn} = \operatorname{softmax}_n \ell_{kn}, \qquad
    \hat{x} = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1 .

:mod:`fpmc.operators` is where the structure of Q and R lives, :mod:`fpmc.engine` where the sum over
n is done, and :mod:`fpmc.methods` the papers' denoisers, each a choice of Q, R and source.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fpmc import (
    augment,
    blends,
    data,
    diffusion,
    distributed,
    distributional,
    features,
    finetuning,
    memorisation,
    methods,
    metrics,
    mixtures,
    networks,
    operators,
    sensitivity,
    source,
)
from fpmc.collection import FPMC, Posterior
from fpmc.source import Source

if TYPE_CHECKING:
    from fpmc import plotting

__version__ = "0.1.0"

__all__ = [
    "FPMC",
    "Posterior",
    "Source",
    "augment",
    "blends",
    "data",
    "diffusion",
    "distributed",
    "distributional",
    "features",
    "finetuning",
    "memorisation",
    "methods",
    "metrics",
    "mixtures",
    "networks",
    "operators",
    "plotting",
    "sensitivity",
    "source",
]


LATER = ("kernels", "plotting", "results", "widths")
"""Modules that are imported when they are asked for; plotting brings Matplotlib."""


def __getattr__(name: str) -> ModuleType:
    if name not in LATER:
        raise AttributeError(f"module 'fpmc' has no attribute {name!r}")
    return import_module(f"fpmc.{name}")
