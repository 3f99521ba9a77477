"""The sums over the source that a step of tuning takes: see :mod:`fpmc.finetuning.step`."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.engine.memory import resolve, too_small
from fpmc.finetuning.groups import grouped
from fpmc.finetuning.plain import ROWS, Found, Plain, split, weights

__all__ = ["Sums"]

COARSE = 2000.0
"""Parts of a log-weight up to which float32 holds their sum within some 1e-4."""

DOUBT = 100
"""How much less is left out where float32 does not hold log-weights."""


class Sums:
    """What a step's noisy images share: Q, R, the images, and room to work in.

    Arguments as in :func:`fpmc.finetuning.step.gradients`. Estimators that see alike stand side by
    side here, not where they were given.

    Attributes:
        n: The number of source images that are summed over, those left out included.
    """

    def __init__(self, q, r, source, sigma, without, only, *, wanted, cut, budget, device):
        self.sigma, self.source, self.only, self.device = sigma, source, only, device
        self.n, dimensions = len(source) if only is None else len(only), math.prod(source.shape)
        if not self.n:
            raise ValueError("only: got no images, wanted some of the source")
        q, r = (m.detach().float().flatten(1).to(device) for m in (q, r))
        views = [(dimensions // m.shape[1], m.shape[1]) for m in (q, r)]
        self.r_view = views[1]
        self.coverage = r.sum(0).expand(self.r_view).flatten()
        self.centre = source.read(slice(0, ROWS), device=device).mean(0).flatten()
        from fpmc.finetuning.fused import Fused, fits  # numba takes long to import

        budget, self.order = resolve(budget), None
        if fits(source, device):
            self.order, groups = grouped(q)
            q, r = q[self.order], r[self.order]
            self.images = Fused(source, only, self.centre, groups, *views)
        else:
            self.images = Plain(self._read, self.n, len(q), *views, budget, device)
        if self.images.least > budget:
            what = f"{self.n:,} source images and {len(q)} estimators"
            raise too_small(budget, self.images.least, what)
        self.q_t, self.r = q.T.contiguous() * (-0.5 / sigma**2), r
        self.to_q, self.to_r = (
            torch.zeros_like(m) if want else None for m, want in zip((q, r), wanted, strict=True)
        )
        self.ell = torch.empty(self.n, len(q), device=device, dtype=torch.float32)
        self.prior, self.gone = self._prior(), self._left_out(without)
        self.fine = (self.images.open() @ self.q_t).abs().max().item() > COARSE
        self.cut = cut / DOUBT if self.fine else cut

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

    def add(self, z_b, y_b, scale: float) -> tuple[Tensor, float]:
        """Add a noisy image's gradients; its squared error, and what share of the source an
        estimator took, on average.
        """
        z = z_b.float().flatten() - self.centre
        found = self._concentrated(z)
        x_hat = self._answer(found)
        error = x_hat + self.centre - y_b.float().flatten()
        if self.to_q is not None or self.to_r is not None:
            factor = scale * error / self.coverage
            offset = (factor * x_hat).view(self.r_view).sum(0)
            for one in found:
                self._back(z, factor, offset, one)
        return error.square().sum(), sum(one.w.numel() for one in found) / self.ell.numel()

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Those to Q and R that were wanted, each a row for each estimator, where it was given."""
        return tuple(self._in_order(m) for m in (self.to_q, self.to_r))

    def _in_order(self, matrix: Tensor | None) -> Tensor | None:
        if matrix is None or self.order is None:
            return matrix
        return torch.empty_like(matrix).index_copy_(0, self.order, matrix)

    def _concentrated(self, z) -> list[Found]:
        """The images that carry weight, and their weights among themselves."""
        peaks = []
        for rows in split(self.n):
            ell = torch.mm(self.images.differences(z, rows), self.q_t, out=self.ell[rows])
            if self.prior is not None:
                ell += self.prior[rows].unsqueeze(1)
            peaks.append(ell.amax(0))
        if self.gone is not None:
            self.ell[self.gone] = -math.inf
            peaks = [self.ell.amax(0)]
        found = self.images.found(self.ell, torch.stack(peaks).amax(0), self.cut, self.fine)
        return [self._refined(z, one) for one in found] if self.fine else found

    def _refined(self, z, found: Found) -> Found:
        """The same with weights from differences in float64."""
        index, q_t = found.index, self.q_t[:, found.group].double()
        ell = torch.empty(len(index), q_t.shape[1], dtype=torch.float64, device=self.device)
        for rows in split(len(index)):
            delta = (self._read(index[rows]).double() - z.double()).square_()
            torch.mm(delta.view(len(delta), -1, len(q_t)).sum(1), q_t, out=ell[rows])
        if self.prior is not None:
            ell += self.prior[index].double().unsqueeze(1)
        if self.gone is not None:
            gone = torch.zeros(self.n, dtype=torch.bool, device=self.device)
            gone[self.gone] = True
            ell[gone[index]] = -math.inf
        w = weights(ell, ell.amax(0))
        return found._replace(w=w.div_(w.sum(0)))

    def _answer(self, found: list[Found]) -> Float[Tensor, " d"]:
        """Σ_n (Rᵀ w_n) ⊙ x_n ⊘ Rᵀ1, less the centre."""
        return sum(self.images.mixed(one, self.r[one.group]) for one in found) / self.coverage

    def _back(self, z, factor, offset, found: Found) -> None:
        """Add the gradients of one noisy image to the rows of some estimators."""
        w, r, average = found.w, self.r[found.group], 0
        s = self.images.room(self.ell, found) if self.to_q is not None else None
        for rows in split(len(w)):
            u = self.images.answers(found, rows, factor, offset)
            if self.to_r is not None:
                self.to_r[found.group].addmm_(w[rows].T, u)
            if s is not None:
                torch.mm(u, r.T, out=s[rows])
                average = average + (w[rows] * s[rows]).sum(0)
        if s is not None:
            to_q, factor = self.to_q[found.group], -0.5 / self.sigma**2
            for rows in split(len(w)):
                e = s[rows].sub_(average).mul_(w[rows])
                to_q.addmm_(e.T, self.images.again(found, rows, z), alpha=factor)
