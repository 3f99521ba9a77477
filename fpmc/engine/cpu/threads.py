"""What the CPU kernels share: units, threads, and the softmax sums that threads bring back."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine import memory
from fpmc.engine.cpu.compiled import MISSING
from fpmc.source import Source

__all__ = [
    "Need", "Share", "Sums", "answer", "in_parts", "in_units", "readable", "scaled", "share",
    "shares", "side_by_side",
]  # fmt: skip

STORED = (torch.uint8, torch.float32, torch.float64)


class Need(NamedTuple):
    """Bytes of working memory.

    Attributes:
        thread: For each thread.
        z: For each noisy image.
        z_thread: For each noisy image in each thread.
    """

    thread: int
    z: int
    z_thread: int


class Share(NamedTuple):
    """What a budget buys.

    Attributes:
        b: Noisy images at a time.
        threads: Threads.
        memory: Bytes that they take.
    """

    b: int
    threads: int
    memory: int


def share(need: Need, batch: int, lanes: int, size: int, budget: int | None) -> Share | None:
    """As many threads as fit the budget, then noisy images; None if not even one of each fits.

    Args:
        need: What they take.
        batch: Number of noisy images.
        lanes: Source images of a tile, which threads cannot share.
        size: Number of source images.
        budget: Bytes of working memory; 1 GiB if left out.
    """
    limit = memory.DEFAULT_BUDGET if budget is None else budget
    for threads in range(min(torch.get_num_threads(), -(-size // lanes)), 0, -1):
        once, per_z = threads * need.thread, need.z + threads * need.z_thread
        b = min(batch, (limit - once) // per_z)
        if b > 0:
            return Share(b, threads, once + b * per_z)
    return None


def in_parts(compute: Callable[..., Tensor], b: int, *batches: Tensor) -> Tensor:
    """The answers for b images of every batch at a time, with the shape and type of the first."""
    answer = torch.empty_like(batches[0])
    for start in range(0, len(answer), b):
        part = slice(start, start + b)
        answer[part] = compute(*(batch[part] for batch in batches))
    return answer


def readable(source: Source, device: torch.device) -> bool:
    """Whether there is compiled code to read the source: on the CPU, stored as a type it knows."""
    on_cpu = device.type == "cpu" and source.images.device.type == "cpu"
    stored = source.images.dtype in STORED and source.images.layout == torch.strided
    return not MISSING and on_cpu and stored


def scaled(
    z: Float[Tensor, "b c h w"], sigma: float, source: Source
) -> tuple[Float[Tensor, "b c h w"], float, np.ndarray]:
    """The noisy images in the units that the source is stored in, so that no image is converted.

    Returns:
        z, a float64 copy; −1 / 2σ² in those units; and log S(x_n), of no length if all are equal.
    """
    unit, _ = _units(source)
    log_weights = torch.empty(0) if source.log_weights is None else source.log_weights.cpu()
    return in_units(z, source), -0.5 / (sigma * unit) ** 2, log_weights.double().numpy()


def in_units(images: Float[Tensor, "b c h w"], source: Source) -> Float[Tensor, "b c h w"]:
    """Images in the units that the source is stored in, a float64 copy."""
    unit, shift = _units(source)
    return images.detach().to(torch.float64, copy=True).add_(shift).mul_(unit).contiguous()


def answer(mean: Float[Tensor, "b c h w"], z: Tensor, source: Source) -> Float[Tensor, "b c h w"]:
    """A posterior mean, back in [-1, 1], with z's type; overwritten."""
    unit, shift = _units(source)
    return mean.div_(unit).sub_(shift).to(z)


def _units(source: Source) -> tuple[float, float]:
    return (127.5, 1.0) if source.images.dtype == torch.uint8 else (1.0, 0.0)


class Sums:
    """A softmax's sums over a part of the source, per noisy image and estimator, in float64.

    Args:
        b: Number of noisy images.
        grid: The estimators' shape.
        shape: The shape of the weighted sum that goes with them, if one does.

    Attributes:
        peak: The largest log-weight, shape (b, *grid).
        mass: The sum of weights, relative to that of the peak, shape (b, *grid).
        total: The sum of weights times values, likewise, shape (b, *shape); the first axis of
            ``shape`` is the values' own, and the others are those of the grid.
    """

    def __init__(self, b: int, grid: tuple[int, ...], shape: tuple[int, ...] = (0,)):
        self.peak = torch.full((b, *grid), -torch.inf, dtype=torch.float64)
        self.mass = torch.zeros(b, *grid, dtype=torch.float64)
        self.total = torch.zeros(b, *shape, dtype=torch.float64)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same memory, for compiled code."""
        return self.peak.numpy(), self.mass.numpy(), self.total.numpy()

    def merge(self, other: "Sums") -> "Sums":
        """Take another part's sums in; they are overwritten."""
        top = torch.maximum(self.peak, other.peak)
        for part in (self, other):
            shrink = part.peak.sub_(top).exp_()
            part.mass.mul_(shrink)
            if part.total.numel():
                part.total.mul_(shrink.unsqueeze(1))
        self.peak = top
        self.mass += other.mass
        self.total += other.total
        return self

    def mean(self) -> Tensor:
        """The weighted mean of the values; the total is overwritten."""
        return self.total.div_(self.mass.unsqueeze(1))

    def log_norm(self) -> Tensor:
        """The logarithm of the sum of weights; the mass is overwritten."""
        return self.mass.log_().add_(self.peak)


def shares(size: int, threads: int, lanes: int) -> list[tuple[int, int]]:
    """Cut 0 … size into ranges of whole tiles, one for each thread, as equal as it goes.

    Args:
        size: Number of source images.
        threads: Number of threads.
        lanes: Source images of a tile.

    Returns:
        First image and one more than the last, for each thread; fewer if there are fewer tiles.
    """
    tiles = -(-size // lanes)
    threads = min(threads, tiles)
    cuts = [min(size, lanes * (tiles * i // threads)) for i in range(threads + 1)]
    return list(itertools.pairwise(cuts))


def side_by_side(work: Callable[..., None], jobs: list[tuple[Any, ...]]) -> None:
    """Do the work on every job's arguments at the same time, a thread for each."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for finished in [pool.submit(work, *job) for job in jobs]:
            finished.result()
