"""What each path would do with a problem, or why it cannot."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fpmc.engine import roofline
from fpmc.engine.cuda import Cuda
from fpmc.engine.problem import Problem
from fpmc.engine.roofline import Cost
from fpmc.engine.sparsity import Windowed
from fpmc.engine.streaming import Streaming
from fpmc.engine.streaming.arithmetic import dtypes
from fpmc.engine.streaming.orbit import Orbit
from fpmc.engine.streaming.translations import regions, sizes
from fpmc.operators import Operator

__all__ = [
    "Choice", "cuda", "displacements", "orbit", "patches", "squares", "streaming",
    "translations", "whole_image",
]  # fmt: skip

FEW = 48
"""Noisy images up to which reading the source as it is stored beats matrix products."""


class Choice(NamedTuple):
    """What a path would do; or, if it cannot, the reason alone."""

    reason: str
    b: int = 0
    n: int = 0
    threads: int = 1
    memory: int = 0
    cost: Cost = Cost(0, 0, 0)
    back: str = "streaming"


def displacements(problem: Problem, batch: int, like: Tensor, largest: float | None) -> Choice:
    """Of compiled sums over displacements."""
    from fpmc.engine.cpu.compiled import MISSING
    from fpmc.engine.cpu.displacements import Displacements
    from fpmc.engine.cpu.squares import safe

    if like.device.type != "cpu":
        return Choice("translated squares, not on a CPU")
    if MISSING:
        return Choice(MISSING)
    if not Displacements.covers(problem.source, like.device):
        return Choice("translated squares, of images that compiled code does not read")
    if like.dtype == torch.float64:
        return Choice("translated squares, but float64 is wanted")
    if largest is not None and not safe(
        largest, problem.sigma, problem.queries, problem.source.shape[0]
    ):
        return Choice("translated squares, but pixels so far out that running sums lose digits")
    path = Displacements(problem)
    size = path.fit(batch, back=False)
    if size is None:
        return Choice("translated squares, but the budget is too small for the compiled path")
    cost = roofline.displacements(problem, batch, size.b)
    back = "displacements" if path.fit(batch, back=True) else "translations"
    reason = "running sums over the squared differences of each displacement, one pass"
    return Choice(reason, size.b, path.lanes, size.threads, size.memory, cost, back)


def translations(problem: Problem, batch: int, like: Tensor, reason: str) -> Choice:
    """Of matrix products of all patches with all patches."""
    classes = regions(problem)
    b, _, n = sizes(problem, batch, classes[0], like.device, back=False)
    cost = roofline.translations(problem, classes, batch, b)
    reason += "; matrix products of all patches of a boundary class with all others"
    threads = torch.get_num_threads()
    return Choice(reason, b, n, threads, problem.budget, cost, "translations")


def patches(problem: Problem, batch: int, like: Tensor, reason: str) -> Choice:
    """Of the CUDA kernel for patches; with the reason of another if there is none for them."""
    from fpmc.engine.cuda.patches import covers

    if not covers(like.device, like.dtype):
        return Choice(reason)
    classes = regions(problem)
    try:
        b, _, n = sizes(problem, batch, classes[0], like.device, back=False, fused=True)
    except ValueError:
        return Choice("translated squares, but the budget is too small for the CUDA kernel")
    cost = roofline.translations(problem, classes, batch, b)
    reason = "products of all patches of a boundary class with all others and softmax in one kernel"
    return Choice(reason, b, n, 1, problem.budget, cost, "patches")


def orbit(problem: Problem, batch: int, like: Tensor) -> Choice:
    """Of Fourier transforms."""
    b, n = Orbit(problem).size(batch, like.device, back=False)
    cost = roofline.orbit(problem, batch, b)
    reason = "whole images, and all cyclic translations by Fourier transforms"
    return Choice(reason, b, n, torch.get_num_threads(), problem.budget, cost, "orbit")


def whole_image(problem: Problem, batch: int) -> Choice:
    """Of the compiled whole image."""
    from fpmc.engine.cpu.whole_image import WholeImage

    if batch > FEW:
        return Choice(f"the whole image, and more than {FEW} noisy images: matrix products")
    path = WholeImage(problem)
    size = path.fit(batch, back=False)
    if size is None:
        return Choice("the whole image, but the budget is too small for the compiled path")
    reason = "each source image is read as it is stored, once for all noisy images at a time"
    cost = roofline.whole_image(problem, batch, size.b)
    back = "whole image" if path.fit(batch, back=True) else "streaming"
    return Choice(reason, size.b, 1, size.threads, size.memory, cost, back)


def squares(problem: Problem, batch: int, like: Tensor, largest: float | None) -> Choice:
    """Of compiled squares."""
    from fpmc.engine.cpu.squares import Squares, safe

    if like.dtype == torch.float64:
        return Choice("squares, but float64 is wanted")
    c, queries = problem.source.shape[0], problem.queries
    if largest is not None and not safe(largest, problem.sigma, queries, c):
        return Choice("squares, but pixels so far out that running sums lose digits")
    path = Squares(problem)
    size = path.fit(batch, back=False)
    if size is None:
        return Choice("squares, but the budget is too small for the compiled path")
    cost = roofline.squares(problem, batch, size.b)
    back = "squares" if path.fit(batch, back=True) else "streaming"
    reason = f"running sums, {_passes(problem.responses)}"
    return Choice(reason, size.b, path.lanes, size.threads, size.memory, cost, back)


def cuda(problem: Problem, batch: int, like: Tensor) -> Choice:
    """Of the CUDA kernels."""
    reason = "no structure but matrices"
    wide = problem.exact and like.dtype == torch.float64
    arguments = (*problem.operators, problem.source, like.device, problem.precision)
    if wide or not Cuda.covers(*arguments):
        return Choice(reason)
    size = Cuda(problem).sizes(batch, like.device)
    if size is None:
        return Choice("the budget is too small for the CUDA kernels")
    cost = roofline.cuda(problem, batch, size.b, kept=size.n == len(problem.source))
    reason = f"differences, products and softmax in one kernel, {_passes(problem.responses)}"
    return Choice(reason, size.b, size.n or len(problem.source), 1, size.memory, cost)


def streaming(problem: Problem, batch: int, like: Tensor, reason: str) -> Choice:
    """What the streaming engine will do with a batch of noisy images like this one."""
    path, types = Streaming(problem), dtypes(like, exact=problem.exact)
    size, ready = path.size(batch, like, back=False), path.ready(like, types)
    queries, responses = ready.operators
    if isinstance(queries, Windowed):
        part = queries.size / (queries.k * math.prod(queries.shape))
        reason += f" on windows, {100 * part:.0f} % of the matrix"
    if size.kept:
        reason += "; Q is applied once, and what it gives is kept"
    cost = roofline.streaming(ready, types, batch, size)
    reason = f"{reason}; {_passes(responses)}"
    return Choice(reason, size.b, size.n, torch.get_num_threads(), problem.budget, cost)


def _passes(responses: Operator) -> str:
    return f"{'one pass' if responses.partition else 'two passes'} over the source"
