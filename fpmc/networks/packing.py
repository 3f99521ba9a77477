r"""Weights in few bits each, for files of networks that would otherwise be large.

In row-major order, every 32 weights are a block with the scale :math:`s = \max_i |w_i|`, and

.. math:: w_i \approx \frac{s}{c} c_i, \qquad c_i \in \{-c, \dots, c\}, \qquad c = 2^{k - 1} - 1,

so that a weight moves by at most s / 2c: with k = 10 bits, s / 1022. A block takes 32 k bits and a
scale in float16: k + ½ bits a weight.
"""

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from fpmc.checks import as_whole_number

__all__ = ["BITS", "pack", "unpack"]

BITS, BLOCK = 10, 32


def pack(
    weights: Tensor, bits: int = BITS
) -> tuple[UInt8[Tensor, "bytes"], Float16[Tensor, "blocks"]]:
    """The codes, 4 k bytes a block, and the scales of weights of any shape.

    Args:
        weights: At most 65504 in size, what a scale can be. The last block is filled up with zeros.
        bits: k, from 2 to 16.
    """
    largest = _largest(bits)
    flat = weights.detach().flatten().double().cpu()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).half()
    steps = scales.double()[:, None] / largest
    codes = (blocks / steps.where(steps > 0, 1.0)).round().clamp(-largest, largest)
    codes = codes.nan_to_num() + largest  # a block that is not finite is told by its scale
    high_first = codes.numpy().astype(">u2").view(np.uint8).reshape(-1, 2)
    return torch.from_numpy(np.packbits(np.unpackbits(high_first, axis=1)[:, 16 - bits :])), scales


def unpack(
    packed: UInt8[Tensor, "bytes"],
    scales: Float16[Tensor, "blocks"],
    shape: torch.Size,
    bits: int = BITS,
) -> Tensor:
    """The weights, float32, of this shape.

    Raises:
        ValueError: If the codes or the scales are not as many as the shape takes.
    """
    blocks, largest = -(-shape.numel() // BLOCK), _largest(bits)
    if scales.shape != (blocks,) or packed.shape != (blocks * BLOCK * bits // 8,):
        raise ValueError(
            f"got {tuple(packed.shape)} bytes and {tuple(scales.shape)} scales, wanted those of "
            f"weights of {tuple(shape)}"
        )
    each = np.unpackbits(packed.numpy()).reshape(-1, bits)
    padded = np.pad(each, ((0, 0), (16 - bits, 0)))
    codes = np.packbits(padded, axis=1).view(">u2").astype(np.int32) - largest
    values = torch.from_numpy(codes).view(-1, BLOCK) * (scales.double()[:, None] / largest)
    return values.float().flatten()[: shape.numel()].view(shape)


def _largest(bits: int) -> int:
    """The largest code."""
    return 2 ** (as_whole_number(bits, "bits", 2, 16) - 1) - 1
