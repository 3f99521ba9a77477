"""What a step of tuning does with images and weights besides products, in torch: any device.

See :mod:`fpmc.finetuning.sums`; :mod:`fpmc.finetuning.fused` is the same for a CPU.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LEAST", "Found", "Plain", "split", "weights"]

TYPICAL = 3
"""How much less than of any estimator's weight is left out of all estimators' on average."""

ROWS = 1024
"""Source images at a time, so that what is made of them stays in a CPU's cache."""

MOST = 0.8
"""Share of the source above which picking images out takes longer than it saves."""

LEAST = -40.0
"""Logarithm of the smallest weight, relative to the largest."""

FLOAT32 = 4


class Found(NamedTuple):
    """The images that carry weight for some estimator of a group.

    Attributes:
        group: The estimators' places.
        index: The images' positions among those that are summed over, rising; a slice for all.
        w: The estimators' weights of these images, which sum to 1 over them.
        x: The images less the centre, if they are at hand.
        delta: Their δ but for constants, if it is.
    """

    group: slice
    index: slice | Int[Tensor, " n"]
    w: Float[Tensor, "n k"]
    x: Float[Tensor, "n d"] | None = None
    delta: Float[Tensor, "n p"] | None = None


class Plain:
    """All estimators are one group here: a device with many cores does better with wide products.

    Args:
        read: Images less the centre at an index.
        n: How many there are.
        k: The number of estimators.
        q_view: Channels and pixels that Q tells apart.
        r_view: Those that R does.
        budget: Bytes.
        device: Where.

    Attributes:
        least: Bytes that are needed without the images themselves.
    """

    def __init__(self, read, n: int, k: int, q_view, r_view, budget: int, device: torch.device):
        self.read, self.n, self.q_view, self.r_view = read, n, q_view, r_view
        self.groups = [slice(0, k)]
        dimensions, (p, kept) = r_view[0] * r_view[1], (r_view[1], q_view[1])
        tile = min(ROWS, n) * (3 * dimensions + 3 * (p + kept))
        self.least = FLOAT32 * (n * (3 * k + 3 * kept) + tile + 8 * k * (p + kept))
        self.held = FLOAT32 * n * dimensions <= (budget - self.least) // 2
        self.device = device

    def open(self) -> Float[Tensor, " p"]:
        """Read the images; the largest of the centred images' squares for each pixel."""
        self.x = self.read(slice(0, self.n)) if self.held else None
        self.squares = torch.empty(self.n, self.q_view[1], device=self.device, dtype=torch.float32)
        for rows in split(self.n):
            x = self._images(rows).view(-1, *self.q_view)
            torch.sum(x.square(), 1, out=self.squares[rows])
        self.delta = torch.empty_like(self.squares)
        return self.squares.amax(0)

    def differences(self, z: Float[Tensor, " d"], rows: slice) -> Float[Tensor, "n p"]:
        """δ of some of the images, but for constants."""
        factors = z.view(self.q_view)
        delta, x = self.delta[rows], self._images(rows).view(-1, *self.q_view)
        torch.addcmul(self.squares[rows], x[:, 0], factors[0], value=-2, out=delta)
        for c in range(1, len(factors)):
            delta.addcmul_(x[:, c], factors[c], value=-2)
        return delta

    def found(self, ell: Float[Tensor, "n k"], peak: Float[Tensor, " k"], cut, fine) -> list[Found]:
        """The images that carry weight, where at most ``cut`` of any estimator's is left out.

        Args:
            ell: Log-weights, overwritten.
            peak: Each estimator's largest.
            cut: See above.
            fine: Whether weights are found again, from these images' positions.
        """
        w = weights(ell, peak)
        scores = torch.maximum(w.amax(1), TYPICAL * w.mean(1))
        scores, order = scores.sort()
        drop = int((scores.cumsum(0) <= cut).sum())
        if self.n - drop > MOST * self.n and not fine:
            return [Found(self.groups[0], slice(0, self.n), w, self.x, self.delta)]
        index = order[drop:].sort().values
        w, delta = (whole.index_select(0, index) for whole in (w, self.delta))
        x = None if self.x is None else self.x.index_select(0, index)
        return [Found(self.groups[0], index, w.div_(w.sum(0)), x, delta)]

    def mixed(self, found: Found, r: Float[Tensor, "k p"]) -> Float[Tensor, " d"]:
        """Σ_n (Rᵀ w_n) ⊙ x_n, of these estimators' rows of R."""
        rows = split(len(found.w))
        sums = torch.zeros(rows[0].stop, *self.r_view, device=self.device, dtype=torch.float32)
        for part in rows:
            mixed, x = found.w[part] @ r, self._piece(found, part).view(-1, *self.r_view)
            for c in range(self.r_view[0]):
                sums[: len(x), c].addcmul_(mixed, x[:, c])
        return sums.sum(0).flatten()

    def room(self, ell, found: Found) -> Float[Tensor, "n k"]:
        """Where s may be written."""
        return torch.empty_like(found.w)

    def answers(self, found: Found, rows: slice, factor, offset) -> Float[Tensor, "n p"]:
        """Σ_c factor ⊙ x_n − offset; a product alone where there is nothing to sum."""
        x, factors = self._piece(found, rows), factor.view(self.r_view)
        channels = x.view(-1, *self.r_view).unbind(1)
        total = channels[0] * factors[0]
        for x_c, f_c in zip(channels[1:], factors[1:], strict=True):
            total.addcmul_(x_c, f_c)
        return total.sub_(offset)

    def again(self, found: Found, rows: slice, z) -> Float[Tensor, "n p"]:
        """δ of some of the images that carry weight."""
        return found.delta[rows]

    def _piece(self, found: Found, rows: slice) -> Float[Tensor, "n d"]:
        """Some of the images that carry weight: from memory, or read again."""
        if found.x is not None:
            return found.x[rows]
        return self._images(rows if isinstance(found.index, slice) else found.index[rows])

    def _images(self, index) -> Float[Tensor, "n d"]:
        return self.read(index) if self.x is None else self.x[index]


def weights(ell: Float[Tensor, "n k"], peak: Float[Tensor, " k"]) -> Float[Tensor, "n k"]:
    """The softmax over the images, in place, float32; what would be less than e⁻⁴⁰ of the largest
    is that, as products of numbers that float32 hardly holds are slow.
    """
    if ell.dtype != torch.float32:
        ell, peak = ell.sub_(peak).float(), 0
    total = 0
    for rows in split(len(ell)):
        total = total + ell[rows].sub_(peak).clamp_(min=LEAST).exp_().sum(0)
    return ell.mul_(1 / total)


def split(n: int) -> list[slice]:
    """0 … n in slices that fit a CPU's cache."""
    return [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
