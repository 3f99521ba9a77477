"""How compiled loops share a budget, the batch and the source out among threads."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Fit", "Need", "Share", "fit", "in_parts", "ranges", "shares", "side_by_side"]


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


class Fit(NamedTuple):
    """What fits a budget.

    Attributes:
        b: Noisy images at a time.
        threads: Threads.
        memory: Bytes that they take.
    """

    b: int
    threads: int
    memory: int


def fit(need: Need, batch: int, lanes: int, size: int, budget: int) -> Fit | None:
    """As many threads as fit the budget, then noisy images; None if not even one of each fits.

    Args:
        need: What they take.
        batch: Number of noisy images.
        lanes: Source images of a tile, which threads cannot share.
        size: Number of source images.
        budget: Bytes of working memory.
    """
    for threads in range(min(torch.get_num_threads(), -(-size // lanes)), 0, -1):
        once, per_z = threads * need.thread, need.z + threads * need.z_thread
        b = min(batch, (budget - once) // per_z)
        if b > 0:
            return Fit(b, threads, once + b * per_z)
    return None


def in_parts(compute: Callable[..., Tensor], b: int, *batches: Tensor) -> Tensor:
    """The answers for b images of every batch at a time, with the shape and type of the first."""
    answer = torch.empty_like(batches[0])
    for start in range(0, len(answer), b):
        part = slice(start, start + b)
        answer[part] = compute(*(batch[part] for batch in batches))
    return answer


def ranges(size: int, threads: int, lanes: int) -> list[tuple[int, int]]:
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


class Share(NamedTuple):
    """Neighbouring images of one part of the source.

    Attributes:
        part: Which part.
        begin: The first image, counted from the part's first.
        end: One more than the last.
    """

    part: int
    begin: int
    end: int


def shares(sizes: list[int], threads: int, lanes: int) -> list[list[Share]]:
    """Cut a source of several parts into whole tiles, for all threads as many as it goes.

    Args:
        sizes: Numbers of images of the parts.
        threads: Number of threads.
        lanes: Source images of a tile; none goes over the end of a part.

    Returns:
        For each thread, what of which part, in the order of the parts.
    """
    counts, found = [-(-size // lanes) for size in sizes], []
    for first, last in ranges(sum(counts), threads, 1):
        share, start = [], 0
        for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            begin, end = max(first - start, 0), min(last - start, count)
            if begin < end:
                share.append(Share(part, lanes * begin, min(size, lanes * end)))
            start += count
        found.append(share)
    return found


def side_by_side(work: Callable[..., None], jobs: list[tuple[Any, ...]]) -> None:
    """Do the work on every job's arguments at the same time, a thread for each but a single one."""
    if len(jobs) == 1:
        work(*jobs[0])
        return
    with ThreadPoolExecutor(len(jobs)) as pool:
        for finished in [pool.submit(work, *job) for job in jobs]:
            finished.result()
