"""How the CPU kernels are compiled, and the functions of numbers that they share.

A kernel takes :data:`LANES` source images at a time, laid out last, so that every inner loop runs
along them and becomes vector instructions of whatever width there is. It allocates nothing (its
buffers come from the caller, who counts them) and releases the interpreter's lock, so that plain
threads run it side by side.

Without numba nothing is compiled, :data:`MISSING` says so, and no kernel may be called.
"""

import contextlib
import inspect
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fpmc.source import Source

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core.compiler import Compiler
    from numba.extending import intrinsic
except ImportError as error:
    MISSING = f"no compiled kernels, as numba cannot be imported ({error})"
else:
    MISSING = ""

    class Apart(Compiler):
        """Numba's compiler, told that arrays which a function is given do not overlap."""

        def define_pipelines(self):
            self.state.flags.noalias = True
            return super().define_pipelines()


__all__ = ["LANES", "MISSING", "compiled", "exp", "larger", "readable"]

LANES = 64
"""Source images at a time."""

STORED = (torch.uint8, torch.float32, torch.float64)
"""What the kernels read."""

LOWEST = np.float32(-87)
LOG2_E = np.float32(1.44269504)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
SIXTH, FIFTH, FOURTH, THIRD = (np.float32(1 / n) for n in (720, 120, 24, 6))
HALF, ONE = np.float32(0.5), np.float32(1)
BIAS, FRACTION_BITS = np.int32(127), np.int32(23)


def compiled(function: Callable) -> Callable:
    """Decorator: machine code, at the first call; it is kept for later sessions if it can be.

    Sums may be reordered and fused, and are taken to hold no NaN; they may be infinite. An array
    that is written must not overlap another argument: then no loop has to find out. Nor are the
    references to arrays counted, since the caller holds them all: a count is an atomic operation,
    and for a slice of a row there would be several. What an import hook wrapped around the function
    to check its arguments is taken off.
    """
    if MISSING:
        return function
    flags = {"reassoc", "contract", "nsz", "nnan"}
    options = {"pipeline_class": Apart, "_nrt": False, "nogil": True, "error_model": "numpy"}
    decorator = partial(njit, fastmath=flags, **options)
    function = inspect.unwrap(function)
    try:
        dispatcher = decorator(cache=True)(function)
    except RuntimeError:  # no folder that it could be kept in
        return decorator()(function)
    _forgive(dispatcher._cache)
    return dispatcher


def _forgive(cache) -> None:
    """Let a cache that cannot be read or written cost the time to compile, and nothing else.

    A full disk is an error of numba's own at the first call, and so is an index that names a class
    which has another name by now: it is unpickled before it is found to be of an older file.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_if_readable(*key):
        try:
            return load(*key)
        except Exception:  # whatever unpickling raises
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_if_there_is_room(*overload) -> None:
        with contextlib.suppress(OSError):
            save(*overload)

    cache.load_overload, cache.save_overload = load_if_readable, save_if_there_is_room


def readable(source: Source, device: torch.device) -> bool:
    """Whether there is compiled code to read the source: on the CPU, stored as a type it knows."""
    on_cpu = device.type == "cpu" and source.images.device.type == "cpu"
    return not MISSING and on_cpu and source.images.dtype in STORED


def _instruction(function: Callable) -> Callable:
    """Decorator: a function that writes LLVM's instructions itself."""
    if MISSING:
        return function
    return intrinsic(inspect.unwrap(function))


@_instruction
def larger(typing_context, a, b):
    """The larger of two numbers of one type; LLVM vectorises running maxima of it, not of max."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind])
        )
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return a(a, a), generate


@_instruction
def _float_of_bits(typing_context, bits):
    """The float32 that an int32's bits are."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def exp(t):
    """The exponential of a float32 t ≤ 0, to 3e-7 of itself; of t below −87, that of −87.

    t is a whole number n of log 2 and a rest of at most half of one. The rest's exponential is its
    Taylor polynomial of degree 6, and 2ⁿ is written into a float's exponent. log 2 comes in two
    parts, of which the first has few bits, so that n times it is exact (Cody and Waite, 1980).
    """
    t = larger(t, LOWEST)
    n = np.floor(t * LOG2_E + HALF)
    r = (t - n * LN_2_HIGH) - n * LN_2_LOW
    curve = (((SIXTH * r + FIFTH) * r + FOURTH) * r + THIRD) * r + HALF
    return ((curve * r + ONE) * r + ONE) * _float_of_bits((np.int32(n) + BIAS) << FRACTION_BITS)
