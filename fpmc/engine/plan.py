r"""Which backend answers, and which one goes back: the one place that chooses.

====================  ==================================  ==========================================
path                  for                                 cost
====================  ==================================  ==========================================
squares               Box Q, Box or Identity R, on a CPU  b N P, whatever the squares' side
whole image           Ones Q and R, on a CPU, small b     b N D
cuda                  squares and matrices, on CUDA       2 b N P K for each product with a matrix
streaming             everything else                     the same, on windows where Q and R vanish
                                                          outside
displacements         translated squares, on a CPU        b N P (2m − 1)², m² the places of a square
patches               translated squares, on CUDA         2 b N m⁴ c p²
translations          other translated squares            the same
orbit                 whole images, translated            b N P log P
====================  ==================================  ==========================================

The first two and the displacements are compiled, "cuda" and the patches are Triton's; their answers
have float32's accuracy, or float64's for the whole image. The others are PyTorch; streaming also
goes back for "cuda", and PyTorch for the patches. Translated are those estimators that also see the
source's images moved.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpmc.checks import as_device, as_noise_level, as_whole_number
from fpmc.engine import choices
from fpmc.engine.precision import as_precision, float32_holds
from fpmc.engine.problem import Problem
from fpmc.engine.roofline import Peaks, measure_peaks
from fpmc.features import Features
from fpmc.operators import Box, Dense, Ones, Operator, as_pair
from fpmc.source import Source, as_source

__all__ = ["Plan", "choose", "plan", "simplest"]


@dataclass(frozen=True)
class Plan:
    """How a call will be computed; ``print`` it.

    Attributes:
        path: The backend that answers: "squares", "whole image", "cuda", "streaming",
            "displacements", "patches", "translations" or "orbit".
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
    translated: bool = False,
    features: Features | None = None,
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
        translated: Likewise.
        features: Likewise.

    Raises:
        TypeError: If the batch or the budget is not a whole number, or S no source.
        ValueError: If the budget is too small for a single pair of images, Q and R do not fit the
            images or each other, or there is no such precision or device.
    """
    batch, device, source = as_whole_number(batch, "batch", 1), as_device(device), as_source(source)
    largest = None if sigma is None else largest
    problem = Problem(
        *as_pair(queries, responses, source.shape, features),
        source,
        1.0 if sigma is None else as_noise_level(sigma),
        budget,
        as_precision(precision),
        translated,
        features=features,
    )
    problem = simplest(problem, largest)
    return choose(problem, batch, torch.empty(0, dtype=dtype, device=device), largest)


def simplest(problem: Problem, largest: float | None) -> Problem:
    """The problem with the whole image for a square as large, exact where float32 cannot hold it.

    Squares that cannot move within the image are not translated.

    Args:
        problem: What is asked.
        largest: The largest absolute value of the noisy images; None if it is not known.
    """
    if problem.translated:
        if not _immobile(problem.queries):
            return problem
        problem = replace(problem, translated=False, precision="exact")
    queries, responses = (
        Ones(op.shape) if isinstance(op, Box) and op.k == 1 else op for op in problem.operators
    )
    exact = problem.exact or not (largest is None or float32_holds(problem, largest))
    precision = "exact" if exact else problem.precision
    return replace(problem, queries=queries, responses=responses, precision=precision)


def choose(problem: Problem, batch: int, like: Tensor, largest: float | None) -> Plan:
    """The first path that is for these operators, if it fits; streaming otherwise.

    Args:
        problem: What is asked.
        batch: Number of noisy images.
        like: A tensor with their type and device.
        largest: The largest absolute value of their pixels; None if it is not known.
    """
    if problem.translated:
        return _plan(*_translated(problem, batch, like, largest), like)
    path, choice = "streaming", choices.Choice("no structure but matrices")
    if problem.features is not None:
        choice = choices.Choice("keys that are features")
    elif problem.ranks is not None:
        choice = choices.Choice("a part of a source")
    elif like.device.type == "cuda":
        path, choice = "cuda", choices.cuda(problem, batch, like)
    elif like.device.type == "cpu" and not isinstance(problem.queries, Dense):
        from fpmc.engine.cpu import squares, whole_image
        from fpmc.engine.cpu.compiled import MISSING

        arguments = (*problem.operators, problem.source, like.device)
        if whole_image.WholeImage.covers(*arguments):
            path, choice = "whole image", choices.whole_image(problem, batch)
        elif squares.Squares.covers(*arguments):
            path, choice = "squares", choices.squares(problem, batch, like, largest)
        elif MISSING:
            choice = choices.Choice(MISSING)
    if not choice.b:
        path, choice = "streaming", choices.streaming(problem, batch, like, choice.reason)
    return _plan(path, choice, like)


def _translated(
    problem: Problem, batch: int, like: Tensor, largest: float | None
) -> tuple[str, choices.Choice]:
    """The same, where estimators also see the source translated."""
    if isinstance(problem.queries, Ones):
        return "orbit", choices.orbit(problem, batch, like)
    choice = choices.displacements(problem, batch, like, largest)
    if choice.b:
        return "displacements", choice
    choice = choices.patches(problem, batch, like, choice.reason)
    if choice.b:
        return "patches", choice
    return "translations", choices.translations(problem, batch, like, choice.reason)


def _immobile(queries: Operator) -> bool:
    return isinstance(queries, Box) and set(queries.shape) == {queries.p}


def _plan(path: str, choice: choices.Choice, like: Tensor) -> Plan:
    own = {
        name: getattr(choice, name) for name in ("back", "reason", "b", "n", "threads", "memory")
    }
    return Plan(path, **own, **choice.cost._asdict(), device=like.device)
