r"""The denoising loss, and what stands in it for the image.

Source: Karras et al. (2022), table 1, column "Ours".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.networks.preconditioning import Preconditioned

__all__ = ["Loss", "edm_loss", "posterior_mean"]


def edm_loss(
    network: Preconditioned,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Tensor,
    weight: Tensor | float = 1.0,
    target: Tensor | None = None,
) -> Float[Tensor, ""]:
    r"""The denoising loss, weighted so that every noise level starts out equal.

    .. math:: \frac1b \sum_i \lambda(\sigma_i) \, \text{mean}
              \big(D(x_i + \sigma_i \epsilon_i, \sigma_i) - x_i\big)^2, \qquad
              \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2}

    Args:
        network: D.
        x: Clean images in [-1, 1], shape (b, c, h, w).
        sigma: A noise level for each, shape (b,).
        noise: ε ~ N(0, I), shape (b, c, h, w).
        weight: A further factor for each, shape (b,): density over that of the draw, for noise
            levels that were drawn from another distribution.
        target: What stands in the loss in place of x as the answer, shape (b, c, h, w).
    """
    level = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
    error = network.denoise(x + sigma[:, None, None, None] * noise, sigma)
    error = error - (x if target is None else target)
    return (weight * level * error.square().mean(dim=(1, 2, 3))).mean()


def posterior_mean(
    images: Float[Tensor, "n c h w"], z: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    r"""The mean of the images given z: the optimal denoiser, with a noise level for each z.

    As :math:`\mathbb{E}[x \mid z]` is the best answer to z, the loss with it in place of x differs
    by a constant from the loss with x: the gradient is the same in expectation, without the
    scatter of x about it. Source: Xu, Tong and Jaakkola (2023), "Stable Target Field for Reduced
    Variance Score Estimation in Diffusion Models", here with the whole training set.
    """
    x, flat = images.flatten(1), z.flatten(1)
    logits = (flat @ x.T - x.square().sum(1) / 2) / sigma[:, None] ** 2
    return (logits.softmax(1) @ x).reshape(z.shape)


class Loss(torch.nn.Module):
    """The loss as a module, so that gradients can be averaged over processes."""

    def __init__(self, network: Preconditioned):
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        return edm_loss(self.network, *batch)
