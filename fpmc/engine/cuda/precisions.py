r"""How exactly the kernels compute, and the tiles that go with it.

==========  ==================================  =========  =====================================
precision   operands of the matrix products     the rest   for
==========  ==================================  =========  =====================================
exact       float64                             float64    every answer, unless asked otherwise
tf32        float32, rounded to 11 bits         float32    answers seen by eye, or averaged
bf16        bfloat16, 8 bits                    float32    the same, at twice the speed
==========  ==================================  =========  =====================================

The products are the GPU's tensor cores' in all three. What a reduced precision loses is a part of
each log-weight: with u = 2⁻¹¹ or 2⁻⁸ the rounding of an operand, and c_p the constant that
:func:`fpmc.engine.cuda.inputs.offset` takes from each pixel's difference, ℓ_kn is off by up to
:math:`\frac{2u}{2\sigma^2} \sum_p q_{kp} |\delta_{np} - c_p|`. At low noise that is small for the
images near z, which have the weight, and large for those far from it, which have none; where z is
near no image, it is large for all, and so is float32's own rounding of ℓ. On crops of photographs
from σ = 0.02 to 80 the answer of a dense Q, relative to the exact one, is off by less than 2e-3
(tf32) or 2e-2 (bf16): tested. Of squares it may be off by more: by 2.4e-3 and 2.7e-2 for LS with
p = 15 at σ = 0.1 on CIFAR-10 (JPEG) (results/cifar10-jpeg/engine/kernels.csv).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NOISY", "PRECISIONS", "TF32_HALF", "TF32_MASK", "Precision", "Tiles", "named"]

TF32_HALF, TF32_MASK = 2**12, -(2**13)
"""Half of the last of a tf32 number's digits, and its digits, in a float32's bits."""

NOISY = 8
"""Noisy images that share a tile of the source, and the matrix's tile, at most."""


@dataclass(frozen=True)
class Tiles:
    """The part of a matrix product that a program holds.

    Attributes:
        pairs: Pairs of a noisy and a source image: rows.
        columns: Estimators, or pixels where estimators are summed over: columns.
        inner: What is summed over, at a time.
        warps: Groups of 32 threads.
        stages: Tiles on their way from memory.
    """

    pairs: int
    columns: int
    inner: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Precision:
    """A way to compute.

    Attributes:
        name: What a user calls it.
        dtype: The type of differences, log-weights, weights and sums.
        operand: The type of the matrix products' operands.
        rounding: What Triton is told about the products, of float32 operands.
        tiles: Of the products with dense matrices.
    """

    name: str
    dtype: torch.dtype
    operand: torch.dtype
    rounding: str
    tiles: Tiles

    @property
    def reduced(self) -> bool:
        """Whether log-weights are rounded, so that a constant taken from each pixel helps."""
        return self.dtype != torch.float64

    def rounded(self, a: Tensor) -> Tensor:
        """A matrix as an operand; tf32's is rounded here, as the GPU would cut its digits off."""
        a = a.to(self.operand)
        if self.rounding != "tf32" or self.operand != torch.float32:
            return a
        bits = a.view(torch.int32) + TF32_HALF
        return bits.bitwise_and_(TF32_MASK).view(torch.float32)


PRECISIONS = {
    precision.name: precision
    for precision in (
        # With 128 threads, or twice as many columns, sums and differences overflow the registers.
        Precision("exact", torch.float64, torch.float64, "ieee", Tiles(64, 64, 16, 8, 2)),
        # A difference is made once for 256 estimators: 512 operations of the tensor cores for the
        # eight or so that it takes, which are 16 times slower. The sums take 128 registers.
        Precision("tf32", torch.float32, torch.float32, "tf32", Tiles(128, 256, 32, 8, 3)),
        # Half the bytes: twice as many pixels at a time.
        Precision("bf16", torch.float32, torch.bfloat16, "tf32", Tiles(128, 256, 64, 8, 3)),
    )
}


def named(precision: str) -> Precision:
    """The precision of this name.

    Raises:
        ValueError: If there is none.
    """
    if precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision: got {precision!r}, wanted one of {names}")
    return PRECISIONS[precision]
