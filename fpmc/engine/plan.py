r"""Which backend answers, and which one goes back: the one place that chooses.

====================  ==================================  ==========================================
path                  for                                 cost
====================  ==================================  ==========================================
squares               Box Q, Box or Identity R, on a CPU  b N P, whatever the squares' side
whole image           Ones Q and R, on a CPU, small b     b N D
cuda                  squares and matrices, on CUDA       2 b N P K for each product with a matrix
streaming             everything else                     the same, on windows where Q and R vanish
                                                          outside
====================  ==================================  ==========================================

The first two are compiled, the third is Triton's; their answers have float32's accuracy, or
float64's for the whole image. The last is PyTorch, and also goes back for the third.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fpmc.checks import as_device, as_noise_level, as_whole_number
from fpmc.engine import roofline
from fpmc.engine.cuda import Cuda
from fpmc.engine.precision import as_precision, float32_holds
from fpmc.engine.problem import Problem
from fpmc.engine.roofline import Cost, Peaks, measure_peaks
from fpmc.engine.sparsity import Windowed
from fpmc.engine.streaming import Streaming
from fpmc.engine.streaming.arithmetic import dtypes
from fpmc.operators import Box, Dense, Ones, Operator, as_pair
from fpmc.source import Source, as_source

__all__ = ["Plan", "choose", "plan", "simplest"]

FEW = 48
"""Noisy images up to which reading the source as it is stored beats matrix products."""


@dataclass(frozen=True)
class Plan:
    """How a call will be computed; ``print`` it.

    Attributes:
        path: The backend that answers: "squares", "whole image", "cuda" or "streaming".
        back: The backend that computes gradients.
        reason: Why this path.
        b: Noisy images at a time.
        n: Source images at a time.
        threads: Threads.
        memory: Working memory in bytes, at most; for streaming, the budget.
        flops: Floating-point operations of the answer in float64, of dense matrices all, though a
            CUDA device leaves tiles of zeros out.
        flops32: The same in float32.
        bytes: Bytes of the source and its copies that pass through main memory.
        device: Where.
    """

    path: str
    back: str
    reason: str
    b: int
    n: int
    threads: int
    memory: int
    flops: float
    flops32: float
    bytes: float
    device: torch.device

    def seconds(self, peaks: Peaks | None = None) -> float:
        """The least that the call can take: the longer of its operations and its memory traffic.

        (On a CUDA device it can take less, if dense matrices have tiles of zeros.)

        Args:
            peaks: What the device can do; measured if left out, once, in less than a second.
        """
        peaks = measure_peaks(self.device) if peaks is None else peaks
        arithmetic = self.flops / peaks.flops + self.flops32 / peaks.flops32
        return max(arithmetic, self.bytes / peaks.bytes)

    def __str__(self) -> str:
        peaks = measure_peaks(self.device)
        return (
            f"{self.path}: {self.reason}\n"
            f"{self.b} noisy images against {self.n} source images at a time, "
            f"{self.threads} threads, at most {self.memory / 2**20:.1f} MiB\n"
            f"{self.flops:.3g} operations in float64, {self.flops32:.3g} in float32, "
            f"{self.bytes:.3g} bytes\n"
            f"at least {self.seconds(peaks):.2g} s at {peaks.flops:.2g} and {peaks.flops32:.2g} "
            f"operations and {peaks.bytes:.2g} bytes a second"
        )


def plan(
    queries: Operator,
    responses: Operator,
    source: Source,
    batch: int,
    *,
    sigma: float | None = None,
    largest: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    budget: int | None = None,
    precision: str = "exact",
) -> Plan:
    """Choose how to compute an answer. Nothing is computed.

    Args:
        queries: Q.
        responses: R, with as many estimators.
        source: S.
        batch: Number of noisy images.
        sigma: Their noise level, if it is known.
        largest: The largest absolute value of their pixels, if it is known. With both, the plan
            knows of pixels so far out that running sums or float32 would lose digits; without, they
            are taken for noisy images of their level.
        dtype: Their type; float64 asks for more digits than the compiled squares give.
        device: Where they are.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: As in :func:`fpmc.engine.denoise`.

    Raises:
        TypeError: If the batch or the budget is not a whole number, or S no source.
        ValueError: If the budget is too small for a single pair of images, Q and R do not fit the
            images or each other, or there is no such precision or device.
    """
    batch, device, source = as_whole_number(batch, "batch", 1), as_device(device), as_source(source)
    largest = None if sigma is None else largest
    problem = Problem(
        *as_pair(queries, responses, source.shape),
        source,
        1.0 if sigma is None else as_noise_level(sigma),
        budget,
        as_precision(precision),
    )
    problem = simplest(problem, largest)
    return choose(problem, batch, torch.empty(0, dtype=dtype, device=device), largest)


def simplest(problem: Problem, largest: float | None) -> Problem:
    """The problem with the whole image for a square as large, exact where float32 cannot hold it.

    Args:
        problem: What is asked.
        largest: The largest absolute value of the noisy images; None if it is not known.
    """
    queries, responses = (
        Ones(op.shape) if isinstance(op, Box) and op.k == 1 else op for op in problem.operators
    )
    exact = problem.exact or not (largest is None or float32_holds(problem, largest))
    precision = "exact" if exact else problem.precision
    return replace(problem, queries=queries, responses=responses, precision=precision)


class _Choice(NamedTuple):
    """What a path would do; or, if it cannot, the reason alone."""

    reason: str
    b: int = 0
    n: int = 0
    threads: int = 1
    memory: int = 0
    cost: Cost = Cost(0, 0, 0)
    back: str = "streaming"


def choose(problem: Problem, batch: int, like: Tensor, largest: float | None) -> Plan:
    """The first path that is for these operators, if it fits; streaming otherwise.

    Args:
        problem: What is asked.
        batch: Number of noisy images.
        like: A tensor with their type and device.
        largest: The largest absolute value of their pixels; None if it is not known.
    """
    path, choice = "streaming", _Choice("no structure but matrices")
    if like.device.type == "cuda":
        path, choice = "cuda", _cuda(problem, batch, like)
    elif like.device.type == "cpu" and not isinstance(problem.queries, Dense):
        from fpmc.engine.cpu import squares, whole_image
        from fpmc.engine.cpu.compiled import MISSING

        arguments = (*problem.operators, problem.source, like.device)
        if whole_image.WholeImage.covers(*arguments):
            path, choice = "whole image", _whole_image(problem, batch)
        elif squares.Squares.covers(*arguments):
            path, choice = "squares", _squares(problem, batch, like, largest)
        elif MISSING:
            choice = _Choice(MISSING)
    if not choice.b:
        path, choice = "streaming", _streaming(problem, batch, like, choice.reason)
    own = {
        name: getattr(choice, name) for name in ("back", "reason", "b", "n", "threads", "memory")
    }
    return Plan(path, **own, **choice.cost._asdict(), device=like.device)


def _whole_image(problem: Problem, batch: int) -> _Choice:
    from fpmc.engine.cpu.whole_image import WholeImage

    if batch > FEW:
        return _Choice(f"the whole image, and more than {FEW} noisy images: matrix products")
    path = WholeImage(problem)
    size = path.fit(batch, back=False)
    if size is None:
        return _Choice("the whole image, but the budget is too small for the compiled path")
    reason = "each source image is read as it is stored, once for all noisy images at a time"
    cost = roofline.whole_image(problem, batch, size.b)
    back = "whole image" if path.fit(batch, back=True) else "streaming"
    return _Choice(reason, size.b, 1, size.threads, size.memory, cost, back)


def _squares(problem: Problem, batch: int, like: Tensor, largest: float | None) -> _Choice:
    from fpmc.engine.cpu.squares import Squares, safe

    if like.dtype == torch.float64:
        return _Choice("squares, but float64 is wanted")
    c, queries = problem.source.shape[0], problem.queries
    if largest is not None and not safe(largest, problem.sigma, queries, c):
        return _Choice("squares, but pixels so far out that running sums lose digits")
    path = Squares(problem)
    size = path.fit(batch, back=False)
    if size is None:
        return _Choice("squares, but the budget is too small for the compiled path")
    cost = roofline.squares(problem, batch, size.b)
    back = "squares" if path.fit(batch, back=True) else "streaming"
    reason = f"running sums, {_passes(problem.responses)}"
    return _Choice(reason, size.b, path.lanes, size.threads, size.memory, cost, back)


def _cuda(problem: Problem, batch: int, like: Tensor) -> _Choice:
    reason = "no structure but matrices"
    wide = problem.exact and like.dtype == torch.float64
    arguments = (*problem.operators, problem.source, like.device, problem.precision)
    if wide or not Cuda.covers(*arguments):
        return _Choice(reason)
    size = Cuda(problem).sizes(batch, like.device)
    if size is None:
        return _Choice("the budget is too small for the CUDA kernels")
    cost = roofline.cuda(problem, batch, size.b, kept=size.n == len(problem.source))
    reason = f"differences, products and softmax in one kernel, {_passes(problem.responses)}"
    return _Choice(reason, size.b, size.n or len(problem.source), 1, size.memory, cost)


def _streaming(problem: Problem, batch: int, like: Tensor, reason: str) -> _Choice:
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
    return _Choice(reason, size.b, size.n, torch.get_num_threads(), problem.budget, cost)


def _passes(responses: Operator) -> str:
    return f"{'one pass' if responses.partition else 'two passes'} over the source"
