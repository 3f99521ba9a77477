"""EDM's preconditioning: a denoiser made of a network whose inputs and targets have variance 1.

Source: Karras et al. (2022), equation (7) and table 1.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fpmc.denoiser import question

__all__ = ["SIGMA_DATA", "Preconditioned"]

SIGMA_DATA = 0.5
"""Standard deviation of the pixels of an image, as EDM assumes it."""


class Preconditioned(nn.Module):
    r"""A network as a denoiser.

    .. math:: D(z, \sigma) = c_\text{skip} z + c_\text{out} F(c_\text{in} z, \tfrac14 \ln\sigma)

    with :math:`c_\text{skip} = \sigma_d^2 / (\sigma^2 + \sigma_d^2)`,
    :math:`c_\text{out} = \sigma \sigma_d / \sqrt{\sigma^2 + \sigma_d^2}`,
    :math:`c_\text{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}`.

    A model may have pixels that are known, a mask ``known``, shape (h, w). They have no noise in z,
    come into F as they are, and are the same in x̂: it answers to what is known and to z. And where
    it is ``direct``, F is x̂.

    Called as ``denoiser(z, sigma)`` with z float (b, c, h, w) and σ > 0, one for all or one for
    each image, it gives x̂ with z's shape and type. It takes the arguments that
    :class:`fpmc.denoiser.DropIn` explains.

    Args:
        model: F, called with images (b, c, h, w) and conditions (b,).
        shape: The (c, h, w) of its images.
        sigma_data: σ_d.
        architecture: What :func:`fpmc.networks.build` made the model from, so that it can be
            saved.

    Raises:
        TypeError: When called, if z is not a floating-point tensor or sigma not a number.
        ValueError: When called, if z has a wrong shape or NaN, or sigma is not positive, or
            beyond what the parameters' type (z's, if there are none) can compute with.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        sigma_data: float = SIGMA_DATA,
        architecture: dict | None = None,
    ):
        super().__init__()
        self.model, self.shape, self.sigma_data = model, tuple(shape), sigma_data
        self.architecture = architecture

    def forward(
        self, z: Float[Tensor, "b c h w"], sigma: Any, class_labels: None = None
    ) -> Float[Tensor, "b c h w"]:
        return self._answer(*question(z, sigma, class_labels, self.shape))

    def _answer(
        self, z: Float[Tensor, "b c h w"], sigmas: list[float], xi: Tensor | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The answer to arguments that are checked."""
        if len(z) == 0:
            return z.clone()
        dtype, least, most = self._dtype(z), *self._limits(z)
        for sigma in (min(sigmas), max(sigmas)):
            if not least <= sigma <= most:
                raise ValueError(
                    f"sigma: got {sigma:g}, wanted {least:.1g} to {most:.1g}, with whose squares a "
                    f"network in {dtype} can compute"
                )
        levels = torch.tensor(sigmas, dtype=dtype, device=z.device)
        more = [] if xi is None else [xi.to(z.device, dtype)]
        return self.denoise(z.to(dtype), levels, *more).to(z.dtype)

    @property
    def sigma_min(self) -> float:
        """The lowest noise level that it can compute with."""
        return self._limits()[0]

    @property
    def sigma_max(self) -> float:
        """The highest."""
        return self._limits()[1]

    def round_sigma(self, sigma: Any) -> Tensor:
        """The nearest noise level that can be asked for: σ itself, as a tensor."""
        return torch.as_tensor(sigma)

    def _dtype(self, z: Tensor | None = None) -> torch.dtype:
        """What it computes in: its parameters' type; z's, or PyTorch's default, without any."""
        otherwise = torch.empty(0) if z is None else z
        return next(self.model.parameters(), otherwise).dtype

    def _limits(self, z: Tensor | None = None) -> tuple[float, float]:
        limits = torch.finfo(self._dtype(z))
        return limits.tiny, limits.max**0.5

    @property
    def known(self) -> Bool[Tensor, "h w"] | None:
        """The pixels that have no noise in z; None where all have."""
        return getattr(self.model, "known", None)

    @property
    def direct(self) -> bool:
        """Whether F is x̂."""
        return getattr(self.model, "direct", False)

    def noisy(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], noise: Tensor
    ) -> Float[Tensor, "b c h w"]:
        """What the network is asked about in training: x + σ ε, or x at pixels that are known."""
        z = x + sigma[:, None, None, None] * noise
        return z if self.known is None else torch.where(self.known, x, z)

    def denoise(
        self,
        z: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        xi: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """As a call, with one noise level per image and no checks: what training differentiates.

        Where there is ξ, the model takes it as it is, behind the scaled images.
        """
        spread = (sigma**2 + self.sigma_data**2).sqrt()[:, None, None, None]
        level = sigma[:, None, None, None]
        scaled, known = z / spread, self.known
        if known is not None:
            scaled = torch.where(known, z, scaled)
        inputs = scaled if xi is None else torch.cat([scaled, xi], dim=1)
        answer = self.model(inputs, sigma.log() / 4)
        x_hat = (self.sigma_data / spread) ** 2 * z + level * self.sigma_data / spread * answer
        if self.direct:
            x_hat = answer
        return x_hat if known is None else torch.where(known, z, x_hat)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, sigma_data={self.sigma_data}"

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters())
