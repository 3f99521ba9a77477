"""Random collections, comparison with the reference, and a meter of working memory."""

import contextlib

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpmc import networks
from fpmc.engine import reference
from fpmc.networks.training.loop import Loop
from fpmc.operators import Box, Dense, Identity, Ones

OF_IMAGES = tuple(name for name in networks.ARCHITECTURES if name != "path")
"""The architectures that take images; tests of the other one are in test_paths."""


def relative(answer, exact):
    """‖answer − exact‖ / ‖exact‖."""
    answer, exact = answer.double().cpu().flatten(), exact.double().cpu().flatten()
    return ((answer - exact).norm() / exact.norm()).item()


def rows(op, channels):
    """An operator's q or r vectors, shape (k, c·h·w)."""
    dense = op.dense()
    if dense.ndim == 3:
        dense = dense[:, None].expand(-1, channels, -1, -1)
    return dense.flatten(1)


def exact(z, sigma, queries, responses, source):
    """The reference's answer, with z's shape, float64."""
    images = source.read(slice(None), torch.float64).flatten(1)
    answer = reference.collection(
        z.flatten(1),
        images,
        rows(queries, z.shape[1]),
        rows(responses, z.shape[1]),
        sigma,
        source.log_weights,
    )
    return answer.view_as(z)


def images(n, shape, seed, dtype=torch.float32):
    """Random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator, dtype=dtype) * 2 - 1


def matrix(k, shape, seed, dtype=torch.float64):
    """A random non-negative matrix with a row per estimator, a third of it zeros."""
    values = images(k, shape, seed, dtype)
    return (values + 0.3).clamp(min=0)


def collections(shape, seed):
    """(Q, R) of every structure, on images of this shape (c, h, w)."""
    c, h, w = shape
    pixels = (h, w)
    p = min(h, w) // 2 + 1
    return {
        "optimal": (Ones(pixels), Ones(pixels)),
        "optimal, per dimension": (Ones(shape), Ones(shape)),
        "PSPC-Square": (Box(pixels, p), Box(pixels, p)),
        "LS": (Box(pixels, p, "clip"), Identity(pixels)),
        "dense": (Dense(matrix(5, pixels, seed)), Dense(matrix(5, pixels, seed + 1) + 0.01)),
        "dense, per dimension": (Dense(matrix(c * h * w, shape, seed)), Identity(shape)),
        "mixed": (Dense(matrix(h * w, shape, seed)), Identity(pixels)),
    }


@contextlib.contextmanager
def threads(n):
    """So many of torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work, folder, n):
    """Call work(rank, folder) in n processes, forked from one that has imported what they need."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([work.__module__])
    torch.multiprocessing.start_processes(work, (folder,), n, start_method="forkserver")


class PeakMemory(TorchDispatchMode):
    """The largest sum of bytes that tensors made inside the block held at one time."""

    def __init__(self):
        super().__init__()
        self.live = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            t.untyped_storage()._cdata
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.live:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@contextlib.contextmanager
def interrupted_after(steps, monkeypatch):
    """The training inside is interrupted after so many steps."""
    advance, count = Loop._advance, iter(range(steps))

    def stop(self, share):
        if next(count, None) is None:
            raise KeyboardInterrupt
        advance(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_advance", stop)
        with pytest.raises(KeyboardInterrupt):
            yield
