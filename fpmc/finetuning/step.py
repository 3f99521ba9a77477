r"""One step of tuning: the loss of a batch and its gradients to dense Q and R, in float32.

With :math:`u_{np} = \tilde g_p (x_n - \hat x)_p` and :math:`\tilde g = g \oslash R^\top 1`, both
summed over channels where an operator does not tell them apart, a noisy image takes five products
of size N P K:

.. math::
    \ell_{nk} &= -\tfrac{1}{2\sigma^2} (Q \delta_n)_k, &
    \hat x &= \Big[\sum_n (R^\top w_{n\cdot}) \odot x_n\Big] \oslash R^\top 1, &
    s_{nk} &= (R\, u_n)_k, \\
    \partial R_{kp} &= \sum_n w_{nk} u_{np}, &
    \partial Q_{kp} &= -\tfrac{1}{2\sigma^2} \sum_n e_{nk} \delta_{np}, &
    e_{nk} &= w_{nk} \Big(s_{nk} - \sum_m w_{mk} s_{mk}\Big) .

Only the first runs over the whole source. Posteriors concentrate: the other four run over the
images that carry weight for some estimator of a group, and what is left out is at most ``cut`` of
any estimator's weight. On a CPU groups are estimators that see alike
(:mod:`fpmc.finetuning.groups`), elsewhere all are one. As the loss needs nothing of other noisy
images but a factor, each goes forward and back in one go, and no product is made twice.

Since :math:`\sum_n e_{nk} = 0` and a softmax ignores constants, δ may lose what does not depend on
n: with a centre μ taken off z and x, :math:`x_n^2 - 2 z x_n` is left.

Source: Niedoba et al. (2026), equation (11), with λ = 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.checks import as_fraction
from fpmc.finetuning.sums import Sums
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["CUT", "Gradients", "gradients", "loss"]

CUT = 5e-4
"""What may be left out of an estimator's weight, unless the caller says otherwise: gradients are
within 1e-3 of float64's then.
"""


class Gradients(NamedTuple):
    """What a step finds.

    Attributes:
        loss: The mean squared error per dimension, over the batch.
        to_q: Its gradient to Q, shape (k, *), if it was wanted.
        to_r: Its gradient to R.
        share: Of the source, the images that an estimator's sums ran over, on average over
            estimators and batch.
    """

    loss: Float[Tensor, ""]
    to_q: Tensor | None
    to_r: Tensor | None
    share: float


def loss(
    z: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    q: Float[Tensor, "k ..."],
    r: Float[Tensor, "k ..."],
    source: Source,
    sigma: float,
    **options: object,
) -> Float[Tensor, ""]:
    """The loss of :func:`gradients` as a node of the graph, differentiable in q and r.

    Arguments and errors as there; ``wanted`` is what requires gradients.
    """
    return _Loss.apply(q, r, z, target, source, sigma, options)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, r, z, target, source, sigma, options):
        wanted = ctx.needs_input_grad[:2]
        found = gradients(z, target, q, r, source, sigma, wanted=wanted, **options)
        ctx.save_for_backward(found.to_q, found.to_r)
        return found.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor):
        to_q, to_r = ctx.saved_tensors
        scaled = (None if part is None else part * factor for part in (to_q, to_r))
        return *scaled, None, None, None, None, None


@without_autograd
def gradients(
    z: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    q: Float[Tensor, "k ..."],
    r: Float[Tensor, "k ..."],
    source: Source,
    sigma: float,
    *,
    without: Int[Tensor, " m"] | None = None,
    only: Int[Tensor, " n"] | None = None,
    wanted: tuple[bool, bool] = (True, True),
    cut: float = CUT,
    budget: int | None = None,
) -> Gradients:
    r"""The mean of :math:`\tfrac1D \|\hat x - y\|^2` over a batch, and its gradients to Q and R.

    Args:
        z: Noisy images, shape (b, c, h, w).
        target: y, what a network answers to them.
        q: Q, shape (k, h, w) or (k, c, h, w).
        r: R, likewise; every pixel needs a positive sum.
        source: S.
        sigma: The noise level σ > 0.
        without: Positions of source images that are left out.
        only: Rising positions of the source images that are summed over; all if left out.
        wanted: Whether Q's and R's gradients are.
        cut: The share of an estimator's weight that may be left out, from 0 to 1; 0 leaves out
            what float32 does not hold.
        budget: Bytes of working memory; 1 GiB if left out.

    Raises:
        ValueError: If the budget is too small for one noisy image, or nothing is left of the
            source.
    """
    cut, device = as_fraction(cut, "cut"), z.device
    options = {"wanted": wanted, "cut": cut, "budget": budget, "device": device}
    step = Sums(q, r, source, sigma, without, only, **options)
    total, share = 0.0, 0.0
    for z_b, y_b in zip(z, target, strict=True):
        error, part = step.add(z_b, y_b, 2 / z.numel())
        total, share = total + error, share + part
    to_q, to_r = (
        None if found is None else found.view(m.shape).to(m)
        for found, m in zip(step.gradients(), (q, r), strict=True)
    )
    return Gradients(total / z.numel(), to_q, to_r, share / len(z))
