r"""Translated squares on a CUDA device: products of patches and the softmax in one kernel.

What :mod:`fpmc.engine.streaming.translations` does for all patches of a few noisy images against
all of a few source images, without the array of their log-weights. For m² places of a square in an
image that array has :math:`m^4` numbers of each pair of images, and passes through the device's
memory half a dozen times; the products are not more work than that unless squares are large.

Products, log-weights and sums are float64; the exponentials are float32's, of differences taken in
float64, as in the other kernels.
"""

import importlib.util

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cuda import TooLittleSharedMemoryError
from fpmc.engine.cuda.precisions import named
from fpmc.engine.cuda.sizes import MOST_AT_ONCE, PROGRAMS, processors, span
from fpmc.engine.memory import FLOAT64
from fpmc.engine.softmax import OnlineSoftmax

__all__ = ["add", "covers", "memory"]

EXACT = named("exact")

_TOO_SMALL: set[torch.device] = set()
"""Devices whose processors have too little memory for the kernel's tiles."""


def covers(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs there, and keeps the digits of this type."""
    return (
        device.type == "cuda"
        and dtype != torch.float64
        and device not in _TOO_SMALL
        and importlib.util.find_spec("triton") is not None
    )


def memory(c: int, device: torch.device) -> tuple[int, int]:
    """Bytes that sums side by side take, of c values: once, and for each patch of z."""
    one = 2 * (c + 2) * FLOAT64  # and once more where they are put together
    return one * EXACT.tiles.pairs * PROGRAMS * processors(device), 2 * one


def _splits(rows: int, device: torch.device) -> int:
    """Parts of the source's patches that are summed side by side, at most, for so many rows."""
    blocks = -(-rows // EXACT.tiles.pairs)
    return max(1, min(PROGRAMS * processors(device) // blocks, MOST_AT_ONCE))


def add(
    softmax: OnlineSoftmax,
    z: Float[Tensor, "k d"],
    x: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"],
    values: Float[Tensor, "m c"],
    sigma: float,
) -> None:
    """Take patches of the source into the sums of patches of z.

    Args:
        softmax: The sums so far, with rows (k,) and totals (k, c).
        z: Patches of z, flattened; like all others float64.
        x: Patches of source images.
        bias: What ℓ has without z, of each patch of the source.
        values: The pixels that they answer with.
        sigma: σ.

    Raises:
        TooLittleSharedMemoryError: If the device has too little memory on its processors.
    """
    from triton.runtime.errors import OutOfResources

    from fpmc.engine.cuda import patches_kernels
    from fpmc.engine.cuda.kernels import power_of_two, types

    tiles, (count, d), (rows, c) = EXACT.tiles, x.shape, (len(z), values.shape[1])
    size = span(count, _splits(rows, z.device), tiles.columns)
    parts = -(-count // size)
    peak, total = z.new_empty(parts, rows), z.new_empty(parts, c + 1, rows)
    inputs = (a.contiguous() for a in (z, x, bias, values))
    try:
        with torch.cuda.device_of(z):
            patches_kernels.mean[-(-rows // tiles.pairs), parts](
                *inputs, peak, total, rows, count, d, size, z.new_tensor(sigma**-2),
                channels=c, pad_values=power_of_two(c + 1), block_m=tiles.pairs,
                block_n=tiles.columns, block_d=tiles.inner, num_warps=tiles.warps,
                num_stages=tiles.stages, **types(EXACT),
            )  # fmt: skip
    except OutOfResources as error:
        _TOO_SMALL.add(z.device)
        raise TooLittleSharedMemoryError(str(error)) from error
    found = OnlineSoftmax.of_splits(peak, total[:, c], total[:, :c].mT.contiguous())
    if softmax.peak is None:
        softmax.peak, softmax.mass, softmax.total = found.peak, found.mass, found.total
    else:
        softmax.merge(found)
