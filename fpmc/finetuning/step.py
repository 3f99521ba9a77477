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
images that carry weight for some estimator, and what is left out is at most ``cut`` of any
estimator's weight. As the loss needs nothing of other noisy images but a factor, each goes forward
and back in one go, and no product is made twice.

Since :math:`\sum_n e_{nk} = 0` and a softmax ignores constants, δ may lose what does not depend on
n: with a centre μ taken off z and x, :math:`x_n^2 - 2 z x_n` is left, whose part without z is
multiplied with Q once a step.

Source: Niedoba et al. (2026), equation (11), with λ = 1.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.checks import as_fraction, as_whole_number
from fpmc.engine.memory import DEFAULT_BUDGET
from fpmc.modes import without_autograd
from fpmc.source import Source

__all__ = ["CUT", "Gradients", "gradients", "loss"]

CUT = 5e-4
"""What may be left out of an estimator's weight, unless the caller says otherwise: gradients are
within 1e-3 of float64's then.
"""

TYPICAL = 3
"""How much less than of any estimator's weight is left out of all estimators' on average."""

ROWS = 1024
"""Source images at a time, so that what is made of them stays in a CPU's cache."""

COARSE = 2000.0
"""Parts of a log-weight up to which float32 holds their sum within some 1e-4."""

MOST = 0.8
"""Share of the source above which picking images out takes longer than it saves."""

FLOAT32 = 4


class Gradients(NamedTuple):
    """What a step finds.

    Attributes:
        loss: The mean squared error per dimension, over the batch.
        to_q: Its gradient to Q, shape (k, *), if it was wanted.
        to_r: Its gradient to R.
        share: Of the source, the images that carried weight, on average over the batch.
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
    step = _Step(q, r, source, sigma, without, only, as_fraction(cut, "cut"), budget, z.device)
    to_q, to_r = (
        torch.zeros(m.flatten(1).shape, device=z.device) if want else None
        for m, want in zip((q, r), wanted, strict=True)
    )
    total, images = 0.0, 0
    for z_b, y_b in zip(z, target, strict=True):
        error, count = step.add(z_b, y_b, 2 / z.numel(), to_q, to_r)
        total, images = total + error, images + count
    return Gradients(
        total / z.numel(),
        None if to_q is None else to_q.view(q.shape).to(q),
        None if to_r is None else to_r.view(r.shape).to(r),
        images / (len(z) * step.n),
    )


class _Step:
    """What a step's noisy images share: Q, R, the images and their squares, and room to work in."""

    def __init__(self, q, r, source, sigma, without, only, cut, budget, device):
        self.sigma, self.source, self.cut, self.only, self.device = sigma, source, cut, only, device
        self.n, dimensions = len(source) if only is None else len(only), math.prod(source.shape)
        q, self.r = (m.detach().float().flatten(1).to(device) for m in (q, r))
        self.q_t = q.T * (-0.5 / sigma**2)
        self.q_view, self.r_view = ((dimensions // m.shape[1], m.shape[1]) for m in (q, self.r))
        self.coverage = self._spread(self.r.sum(0))
        held = FLOAT32 * self.n * dimensions <= self._room(budget, dimensions)
        self.centre = source.read(slice(0, ROWS), device=device).mean(0).flatten()
        self.x = self._read(slice(0, self.n)) if held else None
        self.squares = torch.empty(self.n, q.shape[1], device=device)
        for rows in _split(self.n):
            x = self._images(rows).view(-1, *self.q_view)
            torch.sum(x.square(), 1, out=self.squares[rows])
        self.delta = torch.empty_like(self.squares)
        self.ell = torch.empty(self.n, len(q), device=device)
        self.prior, self.gone = self._prior(), self._left_out(without)
        largest = (self.squares.amax(0) @ self.q_t).abs().max().item()
        self.fine = largest > COARSE

    def _room(self, budget, dimensions: int) -> int:
        """Bytes that are left for the images."""
        budget = DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
        (k, p), kept = self.r.shape, self.q_t.shape[0]
        tile = min(ROWS, self.n) * (3 * dimensions + 3 * (p + kept))
        least = FLOAT32 * (self.n * (3 * k + 3 * kept) + tile + 8 * k * (p + kept))
        if least > budget:
            raise ValueError(
                f"budget: got {budget:,} bytes, wanted at least {least:,} for {self.n:,} source "
                f"images and {k} estimators"
            )
        return (budget - least) // 2

    def _left_out(self, without) -> Int[Tensor, " m"] | None:
        """Where the images are that are left out, if there are any."""
        if without is None or not len(without):
            return None
        gone = torch.zeros(len(self.source), dtype=torch.bool)
        gone[without.cpu()] = True
        gone = gone if self.only is None else gone[self.only.cpu()]
        if gone.all():
            raise ValueError("without: got all images of the source, wanted some to be left")
        return gone.nonzero().squeeze(1).to(self.device)

    def _prior(self) -> Float[Tensor, " n"] | None:
        """The source's log-weights; None if all are the same."""
        prior = self.source.log_weights
        if prior is None:
            return None
        prior = prior if self.only is None else prior[self.only.to(prior.device)]
        return prior.float().to(self.device)

    def _read(self, index) -> Float[Tensor, "n d"]:
        """Images less the centre."""
        if self.only is not None:
            index = self.only[index.cpu() if isinstance(index, Tensor) else index]
        return self.source.read(index, device=self.device).flatten(1) - self.centre

    def _images(self, index) -> Float[Tensor, "n d"]:
        if self.x is None:
            return self._read(index)
        return self.x[index] if isinstance(index, slice) else self.x.index_select(0, index)

    def add(self, z_b, y_b, scale, to_q, to_r) -> tuple[Tensor, int]:
        """Add a noisy image's gradients; its squared error, and how many images carried weight."""
        z = z_b.float().flatten() - self.centre
        found = self._concentrated(z, self._posteriors(z))
        x_hat = self._answer(found)
        error = x_hat + self.centre - y_b.float().flatten()
        if to_q is not None or to_r is not None:
            self._back(x_hat, scale * error, found, to_q, to_r)
        return error.square().sum(), len(found.w)

    def _posteriors(self, z) -> Float[Tensor, "n k"]:
        """The weights of all images, which sum to 1 over them."""
        factors = z.view(self.q_view)
        peaks = []
        for rows in _split(self.n):
            delta, x = self.delta[rows], self._images(rows).view(-1, *self.q_view)
            torch.addcmul(self.squares[rows], x[:, 0], factors[0], value=-2, out=delta)
            for c in range(1, len(factors)):
                delta.addcmul_(x[:, c], factors[c], value=-2)
            ell = torch.mm(delta, self.q_t, out=self.ell[rows])
            if self.prior is not None:
                ell += self.prior[rows].unsqueeze(1)
            peaks.append(ell.amax(0))
        if self.gone is not None:
            self.ell[self.gone] = -math.inf
            peaks = [self.ell.amax(0)]
        return _weights(self.ell, torch.stack(peaks).amax(0))

    def _concentrated(self, z, w) -> "_Found":
        """The images that carry weight for some estimator, and their weights among themselves."""
        scores = torch.maximum(w.amax(1), TYPICAL * w.mean(1))
        scores, order = scores.sort()
        drop = int((scores.cumsum(0) <= self.cut).sum())
        if self.n - drop > MOST * self.n and self.x is not None:
            return _Found(
                self.x, self.delta, self._refined(z, slice(0, self.n)) if self.fine else w
            )
        index = order[drop:].sort().values
        w = self._refined(z, index) if self.fine else w.index_select(0, index)
        return _Found(self._images(index), self.delta.index_select(0, index), w.div_(w.sum(0)))

    def _refined(self, z, index) -> Float[Tensor, "n k"]:
        """The weights of these images, from differences in float64."""
        q_t, x = self.q_t.double(), self._images(index)
        ell = torch.empty(len(x), q_t.shape[1], dtype=torch.float64, device=self.device)
        for rows in _split(len(x)):
            delta = (x[rows].double() - z.double()).square_()
            torch.mm(delta.view(-1, *self.q_view).sum(1), q_t, out=ell[rows])
        if self.prior is not None:
            ell += self.prior[index].double().unsqueeze(1)
        if self.gone is not None:
            gone = torch.zeros(self.n, dtype=torch.bool, device=self.device)
            gone[self.gone] = True
            ell[gone[index]] = -math.inf
        return _weights(ell, ell.amax(0))

    def _answer(self, found) -> Float[Tensor, " d"]:
        """Σ_n (Rᵀ w_n) ⊙ x_n ⊘ Rᵀ1."""
        rows = _split(len(found.w))
        sums = torch.zeros(rows[0].stop, *self.r_view, device=self.device)
        for part in rows:
            mixed, x = found.w[part] @ self.r, found.x[part].view(-1, *self.r_view)
            for c in range(self.r_view[0]):
                sums[: len(x), c].addcmul_(mixed, x[:, c])
        return sums.sum(0).flatten() / self.coverage

    def _back(self, x_hat, g, found, to_q, to_r) -> None:
        """Add the gradients of one noisy image."""
        scaled, w, average = g / self.coverage, found.w, 0
        offset = (scaled * x_hat).view(self.r_view).sum(0)
        s = torch.empty_like(w) if to_q is not None else None
        for rows in _split(len(w)):
            u = _weighted(found.x[rows], scaled, self.r_view).sub_(offset)
            if to_r is not None:
                to_r.addmm_(w[rows].T, u)
            if s is not None:
                torch.mm(u, self.r.T, out=s[rows])
                average = average + (w[rows] * s[rows]).sum(0)
        if s is not None:
            for rows in _split(len(w)):
                e = s[rows].sub_(average).mul_(w[rows])
                to_q.addmm_(e.T, found.delta[rows], alpha=-0.5 / self.sigma**2)

    def _spread(self, per_pixel: Tensor) -> Float[Tensor, " d"]:
        return per_pixel.expand(self.r_view).flatten()


class _Found(NamedTuple):
    """Of the images that carry weight: x less the centre, δ but for constants, and weights."""

    x: Float[Tensor, "n d"]
    delta: Float[Tensor, "n p"]
    w: Float[Tensor, "n k"]


def _weights(ell: Float[Tensor, "n k"], peak: Float[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """The softmax over the images, in place, float32; what would be e⁻⁶⁰ or less of the largest is
    that, as products of numbers that float32 hardly holds are slow.
    """
    if ell.dtype != torch.float32:
        ell, peak = ell.sub_(peak).float(), 0
    total = 0
    for rows in _split(len(ell)):
        total = total + ell[rows].sub_(peak).clamp_(min=-60).exp_().sum(0)
    return ell.mul_(1 / total)


def _weighted(x: Float[Tensor, "n d"], factor: Float[Tensor, " d"], view) -> Float[Tensor, "n p"]:
    """Σ_c factor ⊙ x per pixel; a product alone where there is nothing to sum."""
    channels, factors = x.view(-1, *view).unbind(1), factor.view(view)
    total = channels[0] * factors[0]
    for x_c, f_c in zip(channels[1:], factors[1:], strict=True):
        total.addcmul_(x_c, f_c)
    return total


def _split(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
