"""What the kernels share: how they are compiled, and the types that a precision stands for."""

import inspect
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from fpmc.engine.cuda.precisions import TF32_HALF, TF32_MASK, Precision

__all__ = ["as_operand", "exp", "kernel", "power_of_two", "types"]

power_of_two = triton.next_power_of_2

HALF, MASK = tl.constexpr(TF32_HALF), tl.constexpr(TF32_MASK)
NAMES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


def kernel(function: Callable) -> Callable:
    """Decorator: a Triton kernel, or a function that kernels call.

    Triton reads the function's source, so what an import hook wrapped around it to check its
    arguments is taken off.
    """
    return triton.jit(inspect.unwrap(function))


@kernel
def as_operand(a, operand: tl.constexpr, rounding: tl.constexpr):
    """A tile as an operand of a product.

    For float64 operands made from narrower ones (bytes, say) Triton looks for an instruction that
    there is not; a sum of one summand each hides from it what they are made from. For tf32 the GPU
    would cut digits off, towards zero: they are rounded before.
    """
    if operand == tl.float64:
        a = tl.sum(tl.expand_dims(a, -1), -1)
    elif operand == tl.float32 and rounding == "tf32":
        bits = (a.to(tl.int32, bitcast=True) + HALF) & MASK
        a = bits.to(tl.float32, bitcast=True)
    return a.to(operand)


@kernel
def exp(t):
    """e^t for t ≤ 0 by the float32 exponential: a weight is good to a few of its roundings.

    What t was subtracted from stays in its own type; where e^t matters t is small, so that its
    rounding is as well.
    """
    return tl.exp(t.to(tl.float32)).to(t.dtype)


def types(precision: Precision) -> dict[str, object]:
    """A kernel's keyword arguments ``dtype``, ``operand`` and ``rounding`` for this precision."""
    return {
        "dtype": NAMES[precision.dtype],
        "operand": NAMES[precision.operand],
        "rounding": precision.rounding,
    }
