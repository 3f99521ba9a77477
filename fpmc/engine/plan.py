r"""Which way an answer is computed: chosen from the operators' structure, the sizes and the budget.

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
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_device, as_whole_number
from fpmc.engine import cuda, memory
from fpmc.engine.autograd import differentiable
from fpmc.engine.cpu import squares, whole_image
from fpmc.engine.cpu.compiled import LANES, MISSING
from fpmc.engine.cpu.threads import Share, share
from fpmc.engine.cuda import Fused, Sizes
from fpmc.engine.streaming.backend import Streaming
from fpmc.operators import Box, Dense, Ones, Operator, Windowed, as_pair
from fpmc.source import Source, as_source

__all__ = ["Peaks", "Plan", "as_precision", "denoise", "measure_peaks", "plan"]

PRECISIONS = ("exact", "float32", "tf32", "bf16")

FEW = 48
"""Noisy images up to which reading the source as it is stored beats matrix products."""

FARTHEST = 1e15
"""Noise levels, their inverses and weighted distances whose squares float32 surely holds."""

EXP = 15
"""Operations that an exponential counts for."""


class Peaks(NamedTuple):
    """What a device can do.

    Attributes:
        flops: Operations a second, of a float64 matrix product.
        flops32: The same, of a float32 one.
        bytes: Bytes a second, of a copy, read and written.
    """

    flops: float
    flops32: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """How a call will be computed; ``print`` it.

    Attributes:
        path: "squares", "whole image", "cuda" or "streaming".
        reason: Why this one.
        b: Noisy images at a time.
        n: Source images at a time.
        threads: Threads.
        memory: Working memory in bytes, at most; for streaming, the budget.
        flops: Floating-point operations of the whole call in float64, of dense matrices all, though
            a CUDA device leaves tiles of zeros out.
        flops32: The same in float32.
        bytes: Bytes of the source and its copies that pass through main memory.
        device: Where.
    """

    path: str
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
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    budget: int | None = None,
    precision: str = "exact",
) -> Plan:
    """Choose how to compute an answer. Nothing is computed, and nothing depends on pixels' values.

    (Noisy images with pixels so far out that running sums would lose digits are an exception: they
    are streamed, see :func:`fpmc.engine.cpu.squares.safe`. What float32's range does not hold is
    another: it is computed exactly, whatever the precision.)

    Args:
        queries: Q.
        responses: R, with as many estimators.
        source: S.
        batch: Number of noisy images.
        dtype: Their type; float64 asks for more digits than the compiled squares give.
        device: Where they are.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: As in :func:`denoise`.

    Raises:
        TypeError: If the batch or the budget is not a whole number, or S no source.
        ValueError: If the budget is too small for a single pair of images, Q and R do not fit the
            images or each other, or there is no such precision or device.
    """
    batch, device, source = as_whole_number(batch, "batch", 1), as_device(device), as_source(source)
    queries, responses = map(_simplest, as_pair(queries, responses, source.shape))
    budget = None if budget is None else as_whole_number(budget, "budget", 1)
    fast = as_precision(precision) != "exact"
    on_cpu, plain = device.type == "cpu", "no structure but matrices"
    reason = MISSING if on_cpu and MISSING and not isinstance(queries, Dense) else plain
    if whole_image.fits(queries, responses, source, device):
        reason = f"the whole image, and more than {FEW} noisy images: matrix products"
        if batch <= FEW:
            size = share(whole_image.need(source), batch, 1, len(source), budget)
            if size is not None:
                return _whole(source, batch, size)
            reason = "the whole image, but the budget is too small for the compiled path"
    elif squares.fits(queries, responses, source, device):
        reason = "squares, but float64 is wanted"
        if dtype != torch.float64:
            need = squares.need(queries, responses, source)
            size = share(need, batch, LANES, len(source), budget)
            if size is not None:
                return _squares(queries, responses, source, batch, size)
            reason = "squares, but the budget is too small for the compiled path"
    elif _fusible(precision, dtype) and cuda.fits(queries, responses, source, device):
        arguments = (queries, responses, source, batch)
        size = cuda.plan_sizes(*arguments, device, budget, precision)
        if size is not None:
            return _cuda(*arguments, device, size, double=not fast)
        reason = "the budget is too small for the CUDA kernels"
    streaming = Streaming(1.0, queries, responses, source, budget, fast=fast)
    return _streaming(streaming, batch, torch.empty(0, dtype=dtype, device=device), reason)


def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
    precision: str = "exact",
) -> Float[Tensor, "b c h w"]:
    """The collection's answer x̂ of (10), by the path that :func:`plan` chooses.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q, with K estimators.
        responses: R, with the same K; every pixel needs a positive sum.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: "exact", or what products are computed in: "float32", or on a CUDA device
            "tf32" or "bf16", of which elsewhere "float32" takes the place. Squares and whole
            images on a CPU are always exact, and so are answers that float32's range does not
            hold the way to.

    Returns:
        x̂ with z's shape, type and device, differentiable in z and in the matrices of dense Q and R
        (in reverse mode, not by ``torch.func``).

    Raises:
        ValueError: If the budget is too small for a single pair of images.
    """
    queries, responses = _simplest(queries), _simplest(responses)
    if precision != "exact" and not _within_float32(z, sigma, queries):
        precision = "exact"
    where = {"dtype": z.dtype, "device": z.device, "budget": budget, "precision": precision}
    chosen = plan(queries, responses, source, len(z), **where)
    path = Streaming(sigma, queries, responses, source, budget, fast=precision != "exact")
    if chosen.path == "cuda":
        path = Fused(sigma, queries, responses, source, budget, precision=precision)
    elif chosen.path == "whole image":
        path = whole_image.WholeImage(sigma, queries, responses, source, budget)
    elif chosen.path == "squares" and squares.safe(z, sigma, queries.p):
        path = squares.Squares(sigma, queries, responses, source, budget)
    return differentiable(z, queries, responses, path)


def as_precision(precision: str) -> str:
    """Return the name of a precision.

    Raises:
        ValueError: If there is none of that name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    return precision


@lru_cache(maxsize=4)
def measure_peaks(device: str | torch.device = "cpu") -> Peaks:
    """Time matrix products and a copy, the best of three each, with the threads there are.

    Args:
        device: Where.
    """
    device = torch.device(device)
    long = torch.ones(2**23, dtype=torch.float64, device=device)
    copy = torch.empty_like(long)
    return Peaks(
        *(_product_rate(dtype, device) for dtype in (torch.float64, torch.float32)),
        2 * long.nbytes / _fastest(lambda: copy.copy_(long), device),
    )


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a matrix product."""
    a = torch.ones(1536, 1536, dtype=dtype, device=device)
    product = torch.empty_like(a)
    return 2 * len(a) ** 3 / _fastest(lambda: torch.mm(a, a, out=product), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, the best of three."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _simplest(op: Operator) -> Operator:
    """The operator; if it is a square that is as large as the image, the whole image."""
    return Ones(op.shape) if isinstance(op, Box) and op.k == 1 else op


def _within_float32(z: Tensor, sigma: float, queries: Operator) -> bool:
    """Whether float32's range surely holds what lies between z and the answer."""
    largest = (z.detach().abs().max().item() + 1) / min(sigma, 1.0)
    weighted = math.prod(z.shape[1:]) * queries.coverage().max().item() * largest**2
    return 1 / FARTHEST <= sigma <= FARTHEST and weighted <= FARTHEST**2


def _fusible(precision: str, dtype: torch.dtype) -> bool:
    """Whether the CUDA kernels compute in this precision, with digits enough for this type."""
    return precision in ("tf32", "bf16") or (precision == "exact" and dtype != torch.float64)


def _whole(source: Source, batch: int, size: Share) -> Plan:
    per_pair = 5 * math.prod(source.shape) + EXP  # a difference, its square, a weighted sum
    return Plan(
        path="whole image",
        reason="each source image is read as it is stored, once for all noisy images at a time",
        b=size.b,
        n=1,
        threads=size.threads,
        memory=size.memory,
        flops=len(source) * batch * per_pair,
        flops32=0,
        bytes=-(-batch // size.b) * source.images.nbytes,
        device=torch.device("cpu"),
    )


def _squares(queries: Box, responses: Operator, source: Source, batch: int, size: Share) -> Plan:
    c, h, w = source.shape
    passes = 1 if responses.partition else 2
    per_pass = (3 * c + 1) * h * w + 5 * queries.k  # δ and two running sums; log-weights
    spread = 0 if responses.partition else 4 * h * w
    return Plan(
        path="squares",
        reason=f"running sums, {_passes(passes)}",
        b=size.b,
        n=LANES,
        threads=size.threads,
        memory=size.memory,
        flops=len(source) * batch * passes * per_pass,
        flops32=len(source) * batch * (passes * EXP * queries.k + spread + 2 * c * h * w),
        bytes=-(-batch // size.b) * passes * source.images.nbytes,
        device=torch.device("cpu"),
    )


def _cuda(
    queries: Operator,
    responses: Operator,
    source: Source,
    batch: int,
    device: torch.device,
    size: Sizes,
    double: bool,
) -> Plan:
    d, passes = math.prod(source.shape), 1 if responses.partition else 2
    kept = isinstance(queries, Dense) and size.n == len(source)
    applied = 1 if kept else passes
    operations = applied * (3 * d + _operations(queries, d)) + _operations(responses, d) + 2 * d
    operations *= len(source) * batch
    weights = len(source) * batch * passes * EXP * queries.k
    return Plan(
        path="cuda",
        reason=f"differences, products and softmax in one kernel, {_passes(passes)}",
        b=size.b,
        n=size.n or len(source),
        threads=1,
        memory=size.memory,
        flops=operations if double else 0,
        flops32=weights + (0 if double else operations),
        bytes=-(-batch // size.b) * passes * source.images.nbytes,
        device=device,
    )


def _streaming(streaming: Streaming, batch: int, like: Tensor, reason: str) -> Plan:
    """What the streaming engine will do with a batch of noisy images like this one."""
    source, numbers = streaming.source, streaming.numbers(like)
    size = streaming.size(batch, like.device, numbers, back=False)
    queries, responses = streaming.ready(like, numbers)
    d, passes = math.prod(source.shape), 1 if responses.partition else 2
    applied = 1 if size.kept else passes
    differences = 0 if isinstance(queries, Ones) else 3 * d
    first = applied * (differences + _operations(queries, d)) + passes * 2 * queries.k
    second = passes * EXP * queries.k + _operations(responses, d) + 2 * d
    is_double = [dtype == torch.float64 for dtype in numbers]
    pairs, counts = len(source) * batch, (first, second)
    if isinstance(queries, Windowed):
        whole_matrix = queries.k * math.prod(queries.shape)
        reason += f" on windows, {100 * queries.size / whole_matrix:.0f} % of the matrix"
    if size.kept:
        reason += "; Q is applied once, and what it gives is kept"
    return Plan(
        path="streaming",
        reason=f"{reason}; {_passes(passes)}",
        b=size.b,
        n=size.n,
        threads=torch.get_num_threads(),
        memory=memory.DEFAULT_BUDGET if streaming.budget is None else streaming.budget,
        flops=pairs * sum(n for n, double in zip(counts, is_double, strict=True) if double),
        flops32=pairs * sum(n for n, double in zip(counts, is_double, strict=True) if not double),
        bytes=-(-batch // size.b) * passes * len(source) * 4 * d * numbers.log_weights.itemsize,
        device=like.device,
    )


def _passes(passes: int) -> str:
    return "one pass over the source" if passes == 1 else "two passes over the source"


def _operations(op: Operator, d: int) -> int:
    """What an operator takes for one pair of images of d dimensions."""
    if isinstance(op, Dense):
        return 2 * op.matrix.numel()
    if isinstance(op, Windowed):
        return 2 * op.size
    if isinstance(op, Box):
        return 4 * math.prod(op.shape) * op.p.bit_length()
    return 2 * d if isinstance(op, Ones) else 0
