"""The sums of programs that ran side by side, put together in a fixed order."""

from torch import Tensor

__all__ = ["merge"]


def merge(peak: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
    """Put the splits' softmax sums together; overwritten. No answer depends on who ended first.

    Args:
        peak: Each estimator's largest log-weight, shape (splits, b, *grid).
        sums: Sums of weights relative to that of the peak, or of weights times values, shape
            (splits, b, *more, *grid).

    Returns:
        The same over all splits, without the first axis.
    """
    top = peak.amax(0)
    shrink = peak.sub_(top).exp_()
    return top, *(part.mul_(_between(shrink, part.ndim)).sum(0) for part in sums)


def _between(shrink: Tensor, ndim: int) -> Tensor:
    """Axes of length one after the first two."""
    s, b, *grid = shrink.shape
    return shrink.view(s, b, *(1,) * (ndim - shrink.ndim), *grid)
