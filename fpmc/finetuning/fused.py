"""What a step of tuning does with images and weights besides products, compiled: for a CPU.

See :mod:`fpmc.finetuning.sums`. The images are read as they are stored, whole rows at a time and
again where they are needed again: uint8 in a cache is nearer than float32 in memory. Images are
picked for each group of estimators that see alike, :mod:`fpmc.finetuning.groups`: for each there
are fewer than for all together.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu.compiled import readable
from fpmc.engine.cpu.threads import ranges
from fpmc.finetuning import kernels
from fpmc.finetuning.kernels import BINS, BLOCK
from fpmc.finetuning.plain import ROWS, Found, split
from fpmc.source import Source

__all__ = ["Fused", "fits"]

PER_ROW = 8
"""What an image costs a group besides products, in estimators."""

FLOAT32 = 4


def fits(source: Source, device: torch.device) -> bool:
    """Whether the source can be read so: on a CPU, in one piece, where there is a compiler."""
    return readable(source, device) and len(source.parts) == 1 and source.parts[0].is_contiguous()


class Fused:
    """Arguments and methods as :class:`fpmc.finetuning.plain.Plain` has them, and these.

    Args:
        source: What is read.
        only: Positions of those that are summed over; all for None.
        centre: What is taken off them, shape (d,).
        groups: Where groups of estimators lie.
        q_view: Channels and pixels that Q tells apart.
        r_view: Those that R does.
    """

    def __init__(self, source: Source, only, centre, groups: list[slice], q_view, r_view):
        images = source.parts[0].numpy()
        whole = images.dtype == np.uint8
        self.scale = np.float32(1 / 127.5 if whole else 1)
        base = -1 - centre if whole else -centre
        self.q_x, self.r_x = (images.reshape(-1, *view) for view in (q_view, r_view))
        self.q_base, self.r_base = (base.view(view).numpy() for view in (q_view, r_view))
        self.rows = np.arange(len(images)) if only is None else only.cpu().numpy()
        self.n, self.groups = len(self.rows), groups
        self.ends = np.array([0, *(group.stop for group in groups)])
        k, (d, p), kept = groups[-1].stop, (math.prod(r_view), r_view[1]), q_view[1]
        tile = min(ROWS, self.n) * (p + kept)
        blocks = (self.n // BLOCK + 2) * 2 * k
        images = self.n * (4 * k + 6 * len(groups) + 4)
        bins = 2 * len(groups) * BINS
        self.least = FLOAT32 * (images + tile + blocks + bins + 8 * k * (p + kept) + 8 * d)
        threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.threads = threads

    def open(self) -> Float[Tensor, " p"]:
        """The largest of the centred images' squares for each pixel."""
        self.delta = torch.empty(min(ROWS, self.n), self.q_base.shape[1], dtype=torch.float32)
        self.tile = torch.empty(min(ROWS, self.n), self.r_base.shape[1], dtype=torch.float32)
        self.w = torch.empty(self.n * self.groups[-1].stop, dtype=torch.float32)
        zero = torch.zeros(self.q_base.size, dtype=torch.float32)
        return torch.stack([self.differences(zero, rows).amax(0) for rows in split(self.n)]).amax(0)

    @property
    def q_view(self) -> tuple[int, int]:
        """Channels and pixels that Q tells apart."""
        return self.q_base.shape

    def differences(self, z: Float[Tensor, " d"], rows: slice) -> Float[Tensor, "n p"]:
        """δ of some of the images, but for constants; overwritten by the next."""
        return self._differences(z, self.rows[rows])

    def again(self, found: Found, rows: slice, z) -> Float[Tensor, "n p"]:
        """δ of some of the images that carry weight; likewise."""
        return self._differences(z, self.rows[found.index[rows].numpy()])

    def _differences(self, z, rows: np.ndarray) -> Float[Tensor, "n p"]:
        out, twice = self.delta[: len(rows)], (2 * z).view(self.q_view).numpy()
        into = out.numpy()

        def work(begin: int, end: int) -> None:
            part = slice(begin, end)
            arrays = (self.q_x, rows[part], self.scale, self.q_base, twice, into[part])
            kernels.differences(*arrays)

        self._side_by_side(work, len(rows))
        return out

    def found(self, ell: Float[Tensor, "n k"], peak: Float[Tensor, " k"], cut, fine) -> list[Found]:
        """The images that carry weight for each group of estimators; see there."""
        weights, peaks = ell.numpy(), peak.numpy()
        totals = torch.zeros(-(-self.n // BLOCK), ell.shape[1], dtype=torch.float32)
        sums = totals.numpy()
        self._side_by_side(
            lambda begin, end: kernels.weigh(weights, peaks, begin, end, sums), self.n
        )
        scores = torch.empty(self.n, len(self.groups), dtype=torch.float32)
        share, into = (1 / totals.sum(0)).numpy(), scores.numpy()

        def rate(begin: int, end: int) -> None:
            lanes = np.empty((2, kernels.LANES), np.float32)
            kernels.rate(weights, share, self.ends, begin, end, lanes, into)

        self._side_by_side(rate, self.n)
        gathered, used = [], 0
        for group, index in self._picked(scores, cut):
            shape = len(index), group.stop - group.start
            w = self.w[used : used + math.prod(shape)].view(shape)
            gathered.append(self._gathered(ell, peak, group, index, w))
            used += w.numel()
        return gathered

    def _picked(self, scores: Float[Tensor, "n g"], cut: float):
        """Groups of estimators and the images that they keep; all in one, if that is faster."""
        sums = torch.zeros(len(self.groups), BINS, dtype=torch.float64)
        bins = torch.empty(scores.shape, dtype=torch.int32)
        bits = scores.view(torch.int32)
        kernels.tally(scores.numpy(), bits.numpy(), bins.numpy(), sums.numpy())
        first = (sums.cumsum(1) <= cut).sum(1)
        keep = bins >= first
        any_of_them = keep.any(1)
        sizes = torch.tensor([group.stop - group.start for group in self.groups])
        apart = (keep.sum(0) * (sizes + PER_ROW)).sum()
        if any_of_them.sum() * (sizes.sum() + PER_ROW) <= apart:
            return [(slice(0, self.groups[-1].stop), any_of_them.nonzero().squeeze(1))]
        kept = keep.T.contiguous()
        return [
            (group, own.nonzero().squeeze(1)) for group, own in zip(self.groups, kept, strict=True)
        ]

    def _gathered(self, ell, peak, group: slice, index, w: Float[Tensor, "n k"]) -> Found:
        """The weights of these images, which sum to 1 over them, written to w.

        They are NaN where the peak is, which compiled passes would lose.
        """
        totals = torch.zeros(-(-len(index) // BLOCK), w.shape[1], dtype=torch.float32)
        arrays = (ell.numpy(), index.numpy(), group.start)
        into = (w.numpy(), totals.numpy())
        self._side_by_side(
            lambda begin, end: kernels.gather(*arrays, begin, end, *into), len(index)
        )
        return Found(group, index, w.mul_(1 / totals.sum(0) + 0 * peak[group]))

    def mixed(self, found: Found, r: Float[Tensor, "k p"]) -> Float[Tensor, " d"]:
        """Σ_n (Rᵀ w_n) ⊙ x_n."""
        total = torch.zeros(-(-ROWS // BLOCK), *self.r_base.shape, dtype=torch.float32)
        into, covered = total.numpy(), 0
        for part in split(len(found.w)):
            rows = self.rows[found.index[part].numpy()]
            mixed = torch.mm(found.w[part], r, out=self.tile[: len(rows)])
            covered, weight = covered + mixed.sum(0), mixed.numpy()

            def work(begin: int, end: int, weight=weight, rows=rows) -> None:
                own = into[begin // BLOCK]
                kernels.mix(self.r_x, rows[begin:end], weight[begin:end], own)

            self._side_by_side(work, len(rows))
        return (total.sum(0) * self.scale + covered * torch.from_numpy(self.r_base)).flatten()

    def room(self, ell, found: Found) -> Float[Tensor, "n k"]:
        """Where s may be written: to what the log-weights took."""
        return ell.flatten()[: found.w.numel()].view(found.w.shape)

    def answers(self, found: Found, rows: slice, factor, offset) -> Float[Tensor, "n p"]:
        """Σ_c factor ⊙ x_n − offset; overwritten by the next."""
        factor, at = factor.view(self.r_base.shape), self.rows[found.index[rows].numpy()]
        offset = (offset - (factor * torch.from_numpy(self.r_base)).sum(0)).numpy()
        factor = (factor * float(self.scale)).numpy()
        out = self.tile[: len(at)]
        into = out.numpy()

        def work(begin: int, end: int) -> None:
            kernels.answers(self.r_x, at[begin:end], factor, offset, into[begin:end])

        self._side_by_side(work, len(at))
        return out

    def _side_by_side(self, work: Callable[[int, int], None], size: int) -> None:
        """Do the work on all of 0 … size, a range of whole blocks for each thread."""
        parts = ranges(size, self.threads, BLOCK)
        if self.pool is None or len(parts) == 1:
            for part in parts:
                work(*part)
            return
        for done in [self.pool.submit(work, *part) for part in parts]:
            done.result()
