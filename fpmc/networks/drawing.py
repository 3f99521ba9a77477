r"""Networks that draw from p(x | z) in place of answering with its mean: noise ξ comes in, too.

A network of means needs EDM's factors so that its targets have variance 1. One that draws needs
them even more plainly: a draw :math:`\hat x \sim p(x \mid z)` has with z the joint distribution
that x has, so that :math:`(\hat x - c_\text{skip} z) / c_\text{out}`, which F is to give, has
variance 1 as well, at every noise level. A mean has less.

Source: De Bortoli et al. (2025), "Distributional Diffusion Models with Scoring Rules"; Karras et
al. (2022), equation (7).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_images, kind
from fpmc.denoiser import question
from fpmc.distributional.bridge import normal
from fpmc.networks.preconditioning import Preconditioned

__all__ = ["Drawing"]


class Drawing(Preconditioned):
    r"""A network that draws from p(x | z), called as ``network(z, sigma, xi)``.

    .. math:: \hat x(z, \sigma, \xi) = c_\text{skip} z
        + c_\text{out} F(c_\text{in} z, \xi, \tfrac14 \ln\sigma), \qquad \xi \sim N(0, I)

    with the factors of :class:`fpmc.networks.Preconditioned`. z and σ are as there. ξ is noise of
    z's shape, or a :class:`torch.Generator` that draws it: the same ξ, the same x̂. It is made by
    :func:`fpmc.networks.build` with ``xi=True``, and is what :func:`fpmc.distributional.sample`
    takes.

    Raises:
        TypeError: When called, as there, or if ξ is left out or neither noise nor a generator.
        ValueError: When called, as there, or if ξ has another shape than z, or NaN.
    """

    def forward(
        self, z: Float[Tensor, "b c h w"], sigma: Any, xi: Any = None
    ) -> Float[Tensor, "b c h w"]:
        z, sigmas = question(z, sigma, None, self.shape)
        return self._answer(z, sigmas, _as_xi(xi, z))


def _as_xi(xi: Any, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    if isinstance(xi, torch.Generator):
        return normal(z, xi)
    if not isinstance(xi, Tensor):
        raise TypeError(
            f"xi: got {kind(xi)}, wanted noise of z's shape or a torch.Generator, as this network "
            "answers with draws"
        )
    xi = as_images(xi, "xi", tuple(z.shape[1:]), empty=True)
    if len(xi) != len(z):
        raise ValueError(f"xi: got {len(xi)} of them, wanted one for each of {len(z)} images")
    return xi
