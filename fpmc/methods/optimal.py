"""The optimal denoiser of a finite training set."""

from fpmc.collection import FPMC
from fpmc.operators import Ones
from fpmc.source import Source, as_source

__all__ = ["optimal"]


def optimal(source: Source, *, budget: int | None = None) -> FPMC:
    r"""The minimiser of the denoising objective over the source.

    .. math:: D^*(z, \sigma) = \sum_n w_n x_n, \qquad
              w_n = \operatorname{softmax}_n\big(-\|z - x_n\|^2 / 2\sigma^2\big)

    One estimator, q = 1 and r = 1.

    Args:
        source: S.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`.

    Source: Karras et al. (2022), appendix B.3; Niedoba et al. (2026), equations (5) and (6).
    """
    everything = Ones(as_source(source).shape[1:])
    return FPMC(everything, everything, source, budget=budget)
