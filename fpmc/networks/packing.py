r"""Weights in ten bits each, for files of networks that would otherwise be large.

In row-major order, every 32 weights are a block with the scale :math:`s = \max_i |w_i|`, and

.. math:: w_i \approx \frac{s}{511} c_i, \qquad c_i \in \{-511, \dots, 511\},

so that a weight moves by at most s / 1022. A block takes 32 · 10 bits and a scale in float16: 10.5
bits a weight.
"""

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

__all__ = ["pack", "unpack"]

BITS, BLOCK = 10, 32
LARGEST = 2 ** (BITS - 1) - 1


def pack(weights: Tensor) -> tuple[UInt8[Tensor, "bytes"], Float16[Tensor, "blocks"]]:
    """The codes, 40 bytes a block, and the scales of weights of any shape.

    Args:
        weights: At most 65504 in size, what a scale can be. The last block is filled up with zeros.
    """
    flat = weights.detach().flatten().double().cpu()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).half()
    steps = scales.double()[:, None] / LARGEST
    codes = (blocks / steps.where(steps > 0, 1.0)).round().clamp(-LARGEST, LARGEST)
    codes = codes.nan_to_num() + LARGEST  # a block that is not finite is told by its scale
    high_first = codes.numpy().astype(">u2").view(np.uint8).reshape(-1, 2)
    bits = np.unpackbits(high_first, axis=1)[:, 16 - BITS :]
    return torch.from_numpy(np.packbits(bits)), scales


def unpack(
    packed: UInt8[Tensor, "bytes"], scales: Float16[Tensor, "blocks"], shape: torch.Size
) -> Tensor:
    """The weights, float32, of this shape.

    Raises:
        ValueError: If the codes or the scales are not as many as the shape takes.
    """
    blocks = -(-shape.numel() // BLOCK)
    if scales.shape != (blocks,) or packed.shape != (blocks * BLOCK * BITS // 8,):
        raise ValueError(
            f"got {tuple(packed.shape)} bytes and {tuple(scales.shape)} scales, wanted those of "
            f"weights of {tuple(shape)}"
        )
    bits = np.unpackbits(packed.numpy()).reshape(-1, BITS)
    padded = np.pad(bits, ((0, 0), (16 - BITS, 0)))
    codes = np.packbits(padded, axis=1).view(">u2").astype(np.int32) - LARGEST
    values = torch.from_numpy(codes).view(-1, BLOCK) * (scales.double()[:, None] / LARGEST)
    return values.float().flatten()[: shape.numel()].view(shape)
