"""The sums over the source that a step of tuning takes: see :mod:`fpmc.finetuning.step`."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.engine.memory import resolve, too_small

__all__ = ["Sums"]

TYPICAL = 3
"""How much less than of any estimator's weight is left out of all estimators' on average."""

ROWS = 1024
"""Source images at a time, so that what is made of them stays in a CPU's cache."""

COARSE = 2000.0
"""Parts of a log-weight up to which float32 holds their sum within some 1e-4."""

DOUBT = 100
"""How much less is left out where float32 does not hold log-weights."""

MOST = 0.8
"""Share of the source above which picking images out takes longer than it saves."""

LEAST = -40.0
"""Logarithm of the smallest weight, relative to the largest."""

FLOAT32 = 4


class Sums:
    """What a step's noisy images share: Q, R, the images and their squares, and room to work in.

    Arguments as in :func:`fpmc.finetuning.step.gradients`.

    Attributes:
        n: The number of source images that are summed over, those left out included.
    """

    def __init__(self, q, r, source, sigma, without, only, *, cut, budget, device):
        self.sigma, self.source, self.only, self.device = sigma, source, only, device
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
        self.cut = cut / DOUBT if self.fine else cut

    def _room(self, budget, dimensions: int) -> int:
        """Bytes that are left for the images."""
        budget = resolve(budget)
        (k, p), kept = self.r.shape, self.q_t.shape[0]
        tile = min(ROWS, self.n) * (3 * dimensions + 3 * (p + kept))
        least = FLOAT32 * (self.n * (3 * k + 3 * kept) + tile + 8 * k * (p + kept))
        if least > budget:
            raise too_small(budget, least, f"{self.n:,} source images and {k} estimators")
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
        if self.n - drop > MOST * self.n and not self.fine:
            return _Found(slice(0, self.n), self.x, self.delta, w)
        index = order[drop:].sort().values
        w = self._refined(z, index) if self.fine else w.index_select(0, index)
        x = None if self.x is None else self.x.index_select(0, index)
        return _Found(index, x, self.delta.index_select(0, index), w.div_(w.sum(0)))

    def _refined(self, z, index) -> Float[Tensor, "n k"]:
        """The weights of these images, from differences in float64."""
        q_t, z = self.q_t.double(), z.double()
        ell = torch.empty(len(index), q_t.shape[1], dtype=torch.float64, device=self.device)
        for rows in _split(len(index)):
            delta = (self._images(index[rows]).double() - z).square_()
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
            mixed, x = found.w[part] @ self.r, self._piece(found, part).view(-1, *self.r_view)
            for c in range(self.r_view[0]):
                sums[: len(x), c].addcmul_(mixed, x[:, c])
        return sums.sum(0).flatten() / self.coverage

    def _back(self, x_hat, g, found, to_q, to_r) -> None:
        """Add the gradients of one noisy image."""
        scaled, w, average = g / self.coverage, found.w, 0
        offset = (scaled * x_hat).view(self.r_view).sum(0)
        s = torch.empty_like(w) if to_q is not None else None
        for rows in _split(len(w)):
            u = _weighted(self._piece(found, rows), scaled, self.r_view).sub_(offset)
            if to_r is not None:
                to_r.addmm_(w[rows].T, u)
            if s is not None:
                torch.mm(u, self.r.T, out=s[rows])
                average = average + (w[rows] * s[rows]).sum(0)
        if s is not None:
            for rows in _split(len(w)):
                e = s[rows].sub_(average).mul_(w[rows])
                to_q.addmm_(e.T, found.delta[rows], alpha=-0.5 / self.sigma**2)

    def _piece(self, found, rows) -> Float[Tensor, "n d"]:
        """Some of the images that carry weight: from memory, or read again."""
        if found.x is not None:
            return found.x[rows]
        return self._images(rows if isinstance(found.index, slice) else found.index[rows])

    def _spread(self, per_pixel: Tensor) -> Float[Tensor, " d"]:
        return per_pixel.expand(self.r_view).flatten()


class _Found(NamedTuple):
    """Of the images that carry weight: where they are, x less the centre if that fits the budget, δ
    but for constants, and weights.
    """

    index: slice | Int[Tensor, " n"]
    x: Float[Tensor, "n d"] | None
    delta: Float[Tensor, "n p"]
    w: Float[Tensor, "n k"]


def _weights(ell: Float[Tensor, "n k"], peak: Float[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """The softmax over the images, in place, float32; what would be less than e⁻⁴⁰ of the largest
    is that, as products of numbers that float32 hardly holds are slow.
    """
    if ell.dtype != torch.float32:
        ell, peak = ell.sub_(peak).float(), 0
    total = 0
    for rows in _split(len(ell)):
        total = total + ell[rows].sub_(peak).clamp_(min=LEAST).exp_().sum(0)
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
