r"""Which way an answer is computed: chosen from the operators' structure, the sizes and the budget.

====================  ==================================  ==========================================
path                  for                                 cost
====================  ==================================  ==========================================
squares               Box Q, Box or Identity R, on a CPU  b N P, whatever the squares' side
whole image           Ones Q and R, on a CPU, small b     b N D
streaming             everything else                     2 b N P K for each product with a matrix
====================  ==================================  ==========================================

The first two are compiled; their answers have float32's accuracy, or float64's for the whole image.
The third is PyTorch in float64, and also what goes back: every gradient is its.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.engine import boxes, streaming, tiling, whole
from fpmc.engine.compiled import LANES
from fpmc.engine.parallel import Need
from fpmc.engine.tiling import FLOAT64, tile
from fpmc.operators import Box, Dense, Ones, Operator
from fpmc.source import Source

__all__ = ["Peaks", "Plan", "denoise", "measure_peaks", "plan"]

FEW = 48
"""Noisy images up to which reading the source as it is stored beats matrix products."""

EXP = 15
"""Operations that an exponential counts for."""


class Peaks(NamedTuple):
    """What a device can do.

    Attributes:
        flops: Operations a second, of a float64 matrix product.
        bytes: Bytes a second, of a copy, read and written.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """How a call will be computed; ``print`` it.

    Attributes:
        path: "squares", "whole image" or "streaming".
        reason: Why this one.
        b: Noisy images at a time.
        n: Source images at a time.
        threads: Threads.
        memory: Working memory in bytes, at most; for streaming, the budget.
        flops: Floating-point operations of the whole call.
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
    bytes: float
    device: torch.device

    def seconds(self, peaks: Peaks | None = None) -> float:
        """The least that the call can take: the longer of its operations and its memory traffic.

        Args:
            peaks: What the device can do; measured if left out, once, in less than a second.
        """
        peaks = measure_peaks(self.device) if peaks is None else peaks
        return max(self.flops / peaks.flops, self.bytes / peaks.bytes)

    def __str__(self) -> str:
        peaks = measure_peaks(self.device)
        return (
            f"{self.path}: {self.reason}\n"
            f"{self.b} noisy images against {self.n} source images at a time, "
            f"{self.threads} threads, at most {self.memory / 2**20:.1f} MiB\n"
            f"{self.flops:.3g} operations, {self.bytes:.3g} bytes\n"
            f"at least {self.seconds(peaks):.2g} s at {peaks.flops:.2g} operations and "
            f"{peaks.bytes:.2g} bytes a second"
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
) -> Plan:
    """Choose how to compute an answer. Nothing is computed, and nothing depends on values.

    (Noisy images with pixels so far out that running sums would lose digits are the exception:
    they are streamed, see :func:`fpmc.engine.boxes.safe`.)

    Args:
        queries: Q.
        responses: R, with as many estimators.
        source: S.
        batch: Number of noisy images.
        dtype: Their type; float64 asks for more digits than the compiled squares give.
        device: Where they are.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.

    Raises:
        TypeError: If the batch or the budget is not a whole number.
        ValueError: If the budget is too small for a single pair of images.
    """
    batch, device = as_whole_number(batch, "batch", 1), torch.device(device)
    limit = tiling.DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    reason = "no structure but matrices"
    if whole.fits(queries, responses, source, device):
        reason = f"the whole image, and more than {FEW} noisy images: matrix products"
        if batch <= FEW:
            size = _share(whole.need(source), batch, 1, len(source), limit)
            if size is not None:
                return _whole(source, batch, *size)
            reason = "the whole image, but the budget is too small for the compiled path"
    elif boxes.fits(queries, responses, source, device):
        reason = "squares, but float64 is wanted"
        if dtype != torch.float64:
            need = boxes.need(queries, responses, source)
            size = _share(need, batch, LANES, len(source), limit)
            if size is not None:
                return _squares(queries, responses, source, batch, *size)
            reason = "squares, but the budget is too small for the compiled path"
    return _streaming(queries, responses, source, batch, device, limit, reason)


def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """The collection's answer x̂ of (10), by the path that :func:`plan` chooses.

    Arguments, result, gradients and errors as in :func:`fpmc.engine.streaming.denoise`.
    """
    chosen = plan(queries, responses, source, len(z), dtype=z.dtype, device=z.device, budget=budget)
    compute = None
    if chosen.path == "whole image":
        compute = partial(whole.denoise, sigma=sigma, source=source)
    elif chosen.path == "squares" and boxes.safe(z, sigma, queries.p):
        operators = {"queries": queries, "responses": responses}
        compute = partial(boxes.denoise, sigma=sigma, source=source, **operators)
    if compute is not None:
        compute = partial(_in_parts, partial(compute, threads=chosen.threads), chosen.b)
    return streaming.denoise(z, sigma, queries, responses, source, budget, compute)


@lru_cache(maxsize=4)
def measure_peaks(device: str | torch.device = "cpu") -> Peaks:
    """Time a float64 matrix product and a copy, the best of three each, with the threads there are.

    Args:
        device: Where.
    """
    device = torch.device(device)
    a = torch.ones(1536, 1536, dtype=torch.float64, device=device)
    long = torch.ones(2**23, dtype=torch.float64, device=device)
    product, copy = torch.empty_like(a), torch.empty_like(long)
    return Peaks(
        2 * len(a) ** 3 / _fastest(lambda: torch.mm(a, a, out=product), device),
        2 * long.nbytes / _fastest(lambda: copy.copy_(long), device),
    )


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


def _in_parts(compute: Callable[[Tensor], Tensor], b: int, z: Tensor) -> Tensor:
    """The answers to b noisy images at a time."""
    answer = torch.empty_like(z)
    for start in range(0, len(z), b):
        answer[start : start + b] = compute(z[start : start + b])
    return answer


def _share(
    need: Need, batch: int, lanes: int, size: int, limit: int
) -> tuple[int, int, int] | None:
    """As many threads as fit the budget, then noisy images: the latter, threads, and bytes."""
    for threads in range(min(torch.get_num_threads(), -(-size // lanes)), 0, -1):
        once, per_z = threads * need.thread, need.z + threads * need.z_thread
        b = min(batch, (limit - once) // per_z)
        if b > 0:
            return b, threads, once + b * per_z
    return None


def _whole(source: Source, batch: int, b: int, threads: int, memory: int) -> Plan:
    per_pair = 5 * math.prod(source.shape) + EXP  # a difference, its square, a weighted sum
    return Plan(
        path="whole image",
        reason="each source image is read as it is stored, once for all noisy images at a time",
        b=b,
        n=1,
        threads=threads,
        memory=memory,
        flops=len(source) * batch * per_pair,
        bytes=-(-batch // b) * source.images.nbytes,
        device=torch.device("cpu"),
    )


def _squares(
    queries: Box, responses: Operator, source: Source, batch: int, b: int, threads: int, memory: int
) -> Plan:
    c, h, w = source.shape
    passes = 1 if responses.partition else 2
    per_pass = (3 * c + 1) * h * w + (EXP + 5) * queries.k  # δ and two running sums; weights
    spread = 0 if responses.partition else 4 * h * w
    return Plan(
        path="squares",
        reason=f"running sums, {_passes(passes)}",
        b=b,
        n=LANES,
        threads=threads,
        memory=memory,
        flops=len(source) * batch * (passes * per_pass + spread + 2 * c * h * w),
        bytes=-(-batch // b) * passes * source.images.nbytes,
        device=torch.device("cpu"),
    )


def _streaming(
    queries: Operator,
    responses: Operator,
    source: Source,
    batch: int,
    device: torch.device,
    limit: int,
    reason: str,
) -> Plan:
    size = tile(batch, len(source), source.shape, (queries, responses), limit, device)
    d, passes = math.prod(source.shape), 1 if responses.partition else 2
    differences = 0 if isinstance(queries, Ones) else 3 * d
    per_pass = differences + _operations(queries, d) + (EXP + 4) * queries.k
    return Plan(
        path="streaming",
        reason=f"{reason}; {_passes(passes)}",
        b=size.b,
        n=size.n,
        threads=torch.get_num_threads(),
        memory=limit,
        flops=len(source) * batch * (passes * per_pass + _operations(responses, d) + 2 * d),
        bytes=-(-batch // size.b) * passes * len(source) * 4 * d * FLOAT64,
        device=device,
    )


def _passes(passes: int) -> str:
    return "one pass over the source" if passes == 1 else "two passes over the source"


def _operations(op: Operator, d: int) -> int:
    """What an operator takes for one pair of images of d dimensions."""
    if isinstance(op, Dense):
        return 2 * op.matrix.numel()
    if isinstance(op, Box):
        return 4 * math.prod(op.shape) * op.p.bit_length()
    return 2 * d if isinstance(op, Ones) else 0
