"""Sums over windows along an axis: what squares of pixels are made of."""

from torch import Tensor
from torch.nn.functional import pad

__all__ = ["padded", "window_sum"]


def padded(a: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Zeros before and after, along an axis."""
    if before == after == 0:
        return a
    return pad(a, (0, 0) * (a.ndim - 1 - axis) + (before, after))


def window_sum(a: Tensor, axis: int, p: int) -> Tensor:
    """Sums over p neighbours along an axis, n to n − p + 1, by doubling the window's length."""
    length = a.shape[axis] - p + 1
    total, covered, power, doubled = None, 0, 1, a
    while True:
        if p & power:
            part = doubled.narrow(axis, covered, length)
            total = part if total is None else total + part
            covered += power
        if covered == p:
            return total
        fits = doubled.shape[axis] - power
        doubled = doubled.narrow(axis, 0, fits) + doubled.narrow(axis, power, fits)
        power *= 2
