r"""Points with a share of the source's covariance: weights by whitened distances, a linear part.

With a Gaussian of covariance :math:`C = t \Sigma` around each source image, the posterior mean is

.. math::
    D(z, \sigma) = G z + (I - G) \sum_n w_n x_n, \qquad
    G = C (C + \sigma^2 I)^{-1}, \qquad w_n \propto N(z; x_n, C + \sigma^2 I) ,

and the weights are a collection's with the keys :math:`\Phi = \sigma (C + \sigma^2 I)^{-1/2}`.
"""

from collections.abc import Mapping
from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_positive
from fpmc.collection import FPMC
from fpmc.denoiser import DropIn
from fpmc.gaussian import Gaussian
from fpmc.levels import Constant, Latest, nearest_level
from fpmc.operators import Ones
from fpmc.source import Source, as_source

__all__ = ["Wide"]


class Wide(DropIn):
    """The posterior mean with a Gaussian on each source image, called as ``denoiser(z, sigma)``.

    Args:
        source: S.
        share: t > 0, a number or a {sigma: number} mapping; the nearest on a logarithmic scale
            wins.
        gaussian: The source's mean and covariance Σ; computed if left out.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        TypeError: If the source is none, or a share no number.
        ValueError: If a share is not positive, or there is none.
    """

    def __init__(
        self,
        source: Source,
        share: float | Mapping[float, float],
        *,
        gaussian: Gaussian | None = None,
        budget: int | None = None,
    ):
        source = as_source(source)
        self.gaussian = gaussian or Gaussian.of_source(source, budget)
        if isinstance(share, Mapping):
            shares = {level: as_positive(t, "share") for level, t in share.items()}
            self._share = nearest_level(shares, "share")
        else:
            self._share = Constant(as_positive(share, "share"))
        whole = Ones(source.shape[1:])
        keys = Latest(self._keys)
        self._keyed = FPMC(whole, whole, source, features=keys, budget=budget)

    def __repr__(self) -> str:
        return f"Wide({self._keyed!r})"

    def _keys(self, sigma: float):
        return self.gaussian.whitening(self._share(sigma))(sigma)

    def with_precision(self, precision: str) -> "Wide":
        """The same, whose weights are computed as :meth:`fpmc.FPMC.with_precision` says."""
        other = copy(self)
        other._keyed = other._keyed.with_precision(precision)
        return other

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self._keyed.shape

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        t, mean = self._share(sigma), self._keyed(z, sigma)
        gain = self.gaussian.spectral(lambda values: t * values / (t * values + sigma**2))
        return mean + ((z - mean).flatten(1) @ gain.to(z)).view_as(z)

    def _move(self, device: torch.device) -> None:
        self._keyed = self._keyed.to(device)
