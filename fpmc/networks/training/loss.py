r"""The losses, by which a network learns to answer with means or to draw, and their targets.

Source: Karras et al. (2022), table 1, column "Ours"; De Bortoli et al. (2025).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.distributional.scoring import energy_score, kernel_score
from fpmc.networks.preconditioning import Preconditioned

__all__ = [
    "Loss",
    "edm_loss",
    "energy_loss",
    "kernel_loss",
    "posterior_draws",
    "posterior_mean",
]


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
    error = network.denoise(network.noisy(x, sigma, noise), sigma)
    error = error - (x if target is None else target)
    return (weight * _level(network, sigma) * error.square().mean(dim=(1, 2, 3))).mean()


def energy_loss(
    network: Preconditioned,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Tensor,
    weight: Tensor | float = 1.0,
    targets: Float[Tensor, "t b c h w"] | None = None,
    xi: Float[Tensor, "b m c h w"] | None = None,
    *,
    beta: float,
    repulsion: float,
) -> Float[Tensor, ""]:
    r"""The generalised energy score of m draws for each noisy image, in the denoising loss's units.

    .. math:: \frac1b \sum_i \Big(\frac{\lambda(\sigma_i)}{D}\Big)^{\beta/2} \Big[
        \frac1m \sum_j \|\hat x_{ij} - x_i\|^\beta
        - \frac{\lambda}{2 m (m - 1)} \sum_{j \neq j'} \|\hat x_{ij} - \hat x_{ij'}\|^\beta \Big]

    with :math:`\hat x_{ij} = \hat x(x_i + \sigma_i \epsilon_i, \sigma_i, \xi_{ij})`, λ(σ) of
    :func:`edm_loss` and D dimensions. With β = 2, λ = 0 and without ξ it is that loss. All m draws
    of all images are one call of the network.

    Args:
        network: x̂: one that draws, or without ξ one that does not.
        x: Clean images in [-1, 1], shape (b, c, h, w).
        sigma: A noise level for each, shape (b,).
        noise: ε ~ N(0, I), shape (b, c, h, w).
        weight: A further factor for each, as in :func:`edm_loss`.
        targets: t draws from p(x | z) for each, over whose scores the loss is the mean, shape
            (t, b, c, h, w); x itself, which is one, if left out.
        xi: ξ ~ N(0, I), shape (b, m, c, h, w); left out, there is one answer, without any.
        beta: β, above 0 and up to 2.
        repulsion: λ, from 0 to 1.

    Source: De Bortoli et al. (2025).
    """
    each, targets = _draws(network, network.noisy(x, sigma, noise), sigma, x, targets, xi)
    score = energy_score(each, targets.flatten(0, 1), beta, repulsion).view(len(targets), -1)
    level = _level(network, sigma) ** (beta / 2)
    return (weight * level * (score.mean(0) / x[0].numel() ** (beta / 2))).mean()


def kernel_loss(
    network: Preconditioned,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Tensor,
    weight: Tensor | float = 1.0,
    targets: Float[Tensor, "t b c h w"] | None = None,
    xi: Float[Tensor, "b m c h w"] | None = None,
    *,
    kernel: str,
    bandwidth: float,
    repulsion: float,
) -> Float[Tensor, ""]:
    r"""The kernel score of m draws for each noisy image, with distances in the network's units.

    .. math:: \frac1b \sum_i \Big[ \frac1m \sum_j \rho\Big(\frac{\hat x_{ij} - x_i}{u_i}\Big)
        - \frac{\lambda}{2 m (m - 1)} \sum_{j \neq j'}
        \rho\Big(\frac{\hat x_{ij} - \hat x_{ij'}}{u_i}\Big) \Big], \qquad
        u_i = c_\text{out}(\sigma_i) \sqrt D

    with ρ = 1 − k of :func:`fpmc.distributional.kernel_score`. In these units the answer of an
    untrained network is about 1 from x at every noise level, so one bandwidth suits all.

    Args:
        network: x̂: one that draws, or without ξ one that does not.
        x: Clean images in [-1, 1], shape (b, c, h, w).
        sigma: A noise level for each, shape (b,).
        noise: ε ~ N(0, I), shape (b, c, h, w).
        weight: A further factor for each, as in :func:`edm_loss`.
        targets: As in :func:`energy_loss`.
        xi: As in :func:`energy_loss`.
        kernel: "rbf" or "imq".
        bandwidth: h > 0, in these units.
        repulsion: λ, from 0 to 1.

    Source: De Bortoli et al. (2025); Gneiting and Raftery (2007), section 5.
    """
    each, targets = _draws(network, network.noisy(x, sigma, noise), sigma, x, targets, xi)
    unit = (_level(network, sigma) / x[0].numel()).sqrt()[:, None, None, None]
    targets, each = targets * unit, (each.unflatten(1, (len(targets), -1)) * unit).flatten(1, 2)
    score = kernel_score(each, targets.flatten(0, 1), kernel, bandwidth=bandwidth, weight=repulsion)
    return (weight * score.view(len(targets), -1).mean(0)).mean()


def _draws(
    network: Preconditioned,
    z: Tensor,
    sigma: Tensor,
    x: Tensor,
    targets: Tensor | None,
    xi: Tensor | None,
) -> tuple[Float[Tensor, "m tb c h w"], Float[Tensor, "t b c h w"]]:
    """All draws by one call of the network, once for each target, and the targets."""
    m, more = 1 if xi is None else xi.shape[1], []
    if xi is not None:
        more = [xi.transpose(0, 1).flatten(0, 1)]
    draws = network.denoise(z.repeat(m, 1, 1, 1), sigma.repeat(m), *more).unflatten(0, (m, -1))
    targets = x[None] if targets is None else targets
    return draws[:, None].expand(m, len(targets), *x.shape).flatten(1, 2), targets


def _level(network: Preconditioned, sigma: Tensor) -> Tensor:
    """λ(σ), the inverse of c_out²; of σ_d² where F is x̂. Both let every noise level start equal."""
    if network.direct:
        return torch.full_like(sigma, network.sigma_data**-2)
    return (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2


def posterior_mean(
    images: Float[Tensor, "n c h w"], z: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    r"""The mean of the images given z: the optimal denoiser, with a noise level for each z.

    As :math:`\mathbb{E}[x \mid z]` is the best answer to z, the loss with it in place of x differs
    by a constant from the loss with x: the gradient is the same in expectation, without the
    scatter of x about it. Source: Xu, Tong and Jaakkola (2023), "Stable Target Field for Reduced
    Variance Score Estimation in Diffusion Models", here with the whole training set.
    """
    return (_posterior(images, z, sigma) @ images.flatten(1)).reshape(z.shape)


def posterior_draws(
    images: Float[Tensor, "n c h w"],
    z: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    t: int,
) -> Float[Tensor, "t b c h w"]:
    """Independent draws of the images given z, t for each, by the global generator.

    The image that z was made of is a draw from the same distribution. So a score averaged over
    these has the same gradient in expectation as the score for that image, and less scatter.
    """
    weights = _posterior(images, z, sigma).double()  # multinomial adds them up in their own type
    index = torch.multinomial(weights, t, replacement=True)  # (b, t)
    return images[index.T]


def _posterior(images: Tensor, z: Tensor, sigma: Tensor) -> Float[Tensor, "b n"]:
    """Each image's probability given z, all the same before."""
    x, flat = images.flatten(1), z.flatten(1)
    return ((flat @ x.T - x.square().sum(1) / 2) / sigma[:, None] ** 2).softmax(1)


class Loss(torch.nn.Module):
    """A loss as a module, so that gradients can be averaged over processes.

    Args:
        network: What is trained.
        options: β and the repulsion of :func:`energy_loss`, or the options of :func:`kernel_loss`;
            without any it is :func:`edm_loss`.
    """

    def __init__(self, network: Preconditioned, **options: float | str):
        super().__init__()
        self.network, self.options = network, options

    def forward(self, *batch: Tensor | None) -> Tensor:
        if "kernel" in self.options:
            return kernel_loss(self.network, *batch, **self.options)
        if self.options:
            return energy_loss(self.network, *batch, **self.options)
        return edm_loss(self.network, *batch)
