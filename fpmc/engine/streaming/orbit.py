r"""The whole image, over all cyclic translations of the source's images.

With T the translation by t, the products that distances are made of are a correlation, and the
answer is a sum of convolutions,

.. math:: \ell_{nt} = \frac{(z \star x_n)(t) - \|x_n\|^2 / 2}{\sigma^2} + \text{const}, \qquad
          \hat{x} = \sum_n w_n * x_n ,

so that all translations together cost a few fast Fourier transforms of an image: h w log(h w) where
one after the other they cost (h w)². All of it is float64. A correlation is off by a few roundings
of ‖z‖ ‖x‖, at every t alike, as the products of :mod:`fpmc.engine.streaming.backend` are.

The gradient with respect to z is, with :math:`s_{nt} = (g \star x_n)(t) - g^\top \hat x`, the same
sum with w s in place of w, over σ².
"""

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.fft import irfft2, rfft2

from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, too_small
from fpmc.engine.problem import Problem, log_weights
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.modes import without_autograd

__all__ = ["Orbit"]


class Orbit:
    """A :class:`fpmc.engine.autograd.Backend` for whole images that are translated cyclically."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self._log_norms: list[Tensor] = []

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        answer = torch.empty_like(z)
        self._log_norms = []
        for part, n in self._parts(z, back=False):
            softmax = OnlineSoftmax()
            for f, ell in self.tiles(z[part], n):
                shape = ell.shape
                weights = softmax.weigh(softmax.take(ell.flatten(1))).view(shape)
                softmax.add(_mix(weights, f, z.shape[2:]))
            answer[part] = softmax.mean().to(z)
            self._log_norms.append(softmax.log_norm())
        return answer

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        to_z, log_norms = torch.empty_like(z), torch.cat(self._log_norms)
        for part, n in self._parts(z, back=True):
            g = gradient[part].double()
            average = (g * x_hat[part]).flatten(1).sum(1).view(-1, 1, 1, 1)
            log_norm, g, total = log_norms[part].view(-1, 1, 1, 1), rfft2(g), 0
            for f, ell in self.tiles(z[part], n):
                weights = ell.sub_(log_norm).exp_()
                weights *= _correlate(g, f, z.shape[2:]).sub_(average)
                total = total + _mix(weights, f, z.shape[2:])
            to_z[part] = total.mul_(self.problem.sigma**-2).to(z)
        return to_z

    def size(self, batch: int, device: torch.device, *, back: bool) -> tuple[int, int]:
        """Noisy and source images at a time, in the budget, and on a CPU in cache.

        Raises:
            ValueError: If the budget is too small for a pair of images.
        """
        source, budget = self.problem.source, self.problem.budget
        c, h, w = source.shape
        half = 2 * h * (w // 2 + 1)  # numbers of a spectrum
        per_z = (6 if back else 4) * c * (h * w + half) * FLOAT64
        per_x = 3 * c * (h * w + half) * FLOAT64
        per_pair = (3 if back else 2) * (h * w + 2 * half) * FLOAT64
        least = per_z + per_x + per_pair
        if budget < least:
            raise too_small(budget, least, f"one pair of images of shape {source.shape}")
        cached = CACHE_FRIENDLY // 8 if device.type == "cpu" else budget
        b = max(1, min(batch, 16, (budget - per_x - per_pair) // (per_z + per_pair)))
        room = min(budget - b * per_z, max(cached, per_x + b * per_pair))
        return b, max(1, min(len(source), room // (per_x + b * per_pair)))

    def _parts(self, z: Tensor, *, back: bool) -> Iterator[tuple[slice, int]]:
        """Parts of the batch, each with the number of source images at a time."""
        b, n = self.size(len(z), z.device, back=back)
        for start in range(0, len(z), b):
            yield slice(start, min(start + b, len(z))), n

    def tiles(
        self, z: Float[Tensor, "b c h w"], n: int
    ) -> Iterator[tuple[Complex[Tensor, "n c h half"], Float[Tensor, "b n h w"]]]:
        """For each n images of the source: their spectra, and log-weights by translation."""
        source, sigma, z = self.problem.source, self.problem.sigma, rfft2(z.double())
        prior = log_weights(source, torch.empty(0, dtype=torch.float64, device=z.device))
        for start in range(0, len(source), n):
            index = slice(start, min(start + n, len(source)))
            x = source.read(index, torch.float64, z.device)
            bias = x.flatten(1).square().sum(1).mul_(-0.5 / sigma**2)
            if prior is not None:
                bias += prior[index]
            f = rfft2(x)
            ell = _correlate(z, f, source.shape[1:]).mul_(sigma**-2)
            yield f, ell.add_(bias.view(-1, 1, 1))


def _correlate(a: Tensor, f: Tensor, size: tuple[int, int]) -> Float[Tensor, "b n h w"]:
    """Σ_i a(i) x(i − t) at every t, summed over channels, from both spectra."""
    total = 0
    for ours, theirs in zip(a.unbind(1), f.unbind(1), strict=True):
        total = theirs.conj() * ours.unsqueeze(1) + total
    return irfft2(total, size)


def _mix(weights: Tensor, f: Tensor, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Σ_n Σ_t weights(t) x(i − t), from the images' spectra."""
    return irfft2(torch.einsum("bnhw,nchw->bchw", rfft2(weights), f), size)
