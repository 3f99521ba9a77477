r"""The sum over the source on a CUDA device: differences, products and softmax in one kernel.

=====================  ====================  =====================================================
Q                      R                     passes over the source
=====================  ====================  =====================================================
squares                one-hot               one
squares                squares               two; images of no weight are skipped in the second
dense                  one-hot               one
dense                  dense                 one product with Q and one with R if the log-weights of
                                             a noisy image fit the budget; otherwise Q twice
=====================  ====================  =====================================================

No array of pairs of images and pixels is made. The source is read as it is stored. The kernels are
Triton's, which comes with PyTorch on Linux: nothing of it is imported before it is needed.

Exact, the default, is float64 throughout, but for the exponentials, which are float32's, of
differences taken in float64. The other precisions (:mod:`fpmc.engine.cuda.precisions`) are for
who asks for them by name.
"""

import importlib.util

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.engine import memory
from fpmc.engine.cuda.inputs import answer, prepare
from fpmc.engine.cuda.precisions import named
from fpmc.engine.cuda.sizes import Sizes, choose, need
from fpmc.engine.streaming.backend import Streaming
from fpmc.modes import without_autograd
from fpmc.operators import Box, Dense, Identity, Operator
from fpmc.source import Source

__all__ = ["Fused", "Sizes", "covers", "denoise", "fits", "plan_sizes"]

STORED = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_SIDE = 64
"""An image's tile of squares lies in registers."""


class Fused(Streaming):
    """Answers come from the kernels, where :func:`fits` holds; the streaming engine goes back.

    A device with too little memory on its processors for a kernel's tiles streams, too.

    Args:
        sigma: The noise level σ > 0 of what will be asked.
        queries: Q.
        responses: R.
        source: S.
        budget: Bytes of working memory, enough for :func:`plan_sizes`.
        precision: "exact", "tf32" or "bf16".
    """

    def __init__(
        self,
        sigma: float,
        queries: Operator,
        responses: Operator,
        source: Source,
        budget: int | None = None,
        *,
        precision: str = "exact",
    ):
        super().__init__(sigma, queries, responses, source, budget, fast=precision != "exact")
        self.precision = precision

    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        from triton.runtime.errors import OutOfResources

        operators = (self.queries, self.responses)
        try:
            return denoise(z, self.sigma, *operators, self.source, self.budget, self.precision)
        except OutOfResources:
            return super().answer(z)


def covers(queries: Operator, responses: Operator, source: Source) -> bool:
    """Whether there is a kernel for these operators and for images stored like these."""
    images = source.images
    if images.dtype not in STORED or not images.is_contiguous():
        return False
    one_hot = isinstance(responses, Identity)
    if isinstance(queries, Box):
        same = responses.shape == queries.grid if one_hot else _grid(responses) == queries.grid
        return same and max(queries.shape) <= LARGEST_SIDE
    return isinstance(queries, Dense) and (one_hot or isinstance(responses, Dense))


def fits(queries: Operator, responses: Operator, source: Source, device: torch.device) -> bool:
    """Whether :func:`denoise` can answer: kernels for it, all of it on one CUDA device, Triton.

    A source that lies elsewhere is streamed by :mod:`fpmc.engine.streaming`.
    """
    home = source.images.device
    return (
        device.type == home.type == "cuda"
        and device.index in (None, home.index)
        and covers(queries, responses, source)
        and importlib.util.find_spec("triton") is not None
    )


def plan_sizes(
    queries: Operator,
    responses: Operator,
    source: Source,
    batch: int,
    device: torch.device,
    budget: int | None = None,
    precision: str = "exact",
) -> Sizes | None:
    """How much is held at a time, and the working memory that takes; None if nothing fits.

    Args:
        queries: Q.
        responses: R.
        source: S.
        batch: Number of noisy images.
        device: Where the sum runs.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: "exact", "tf32" or "bf16".

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If there is no such precision.
    """
    limit = memory.DEFAULT_BUDGET if budget is None else as_whole_number(budget, "budget", 1)
    return choose(queries, responses, source, batch, device, limit, named(precision))


@without_autograd
def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
    precision: str = "exact",
    sizes: Sizes | None = None,
) -> Float[Tensor, "b c h w"]:
    """The answer x̂ of (10), where :func:`fits` holds. Not differentiable.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q.
        responses: R.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: "exact", "tf32" or "bf16".
        sizes: What :func:`plan_sizes` said; asked for if left out.

    Returns:
        x̂ with z's shape, type and device.

    Raises:
        TypeError: If the budget is not a whole number.
        ValueError: If the budget is too small for a single noisy image, or there is no such
            precision.
    """
    from fpmc.engine.cuda import dense
    from fpmc.engine.cuda.squares import mean as squares_mean

    how = named(precision)
    if sizes is None:
        sizes = plan_sizes(queries, responses, source, len(z), z.device, budget, precision)
    if sizes is None:
        least = need(queries, responses, source, how).least
        raise ValueError(
            f"budget: got {budget or memory.DEFAULT_BUDGET:,} bytes, wanted at least {least:,}"
        )
    squares = isinstance(queries, Box)
    matrices = None if squares else dense.Matrices(queries, responses, z.device, how)
    result = torch.empty_like(z)
    with torch.cuda.device_of(z):
        for start in range(0, len(z), sizes.b):
            part = slice(start, start + sizes.b)
            inputs = prepare(z[part], sigma, source, queries.shape, how)
            if squares:
                mean = squares_mean(inputs, queries, responses, sizes.splits, how)
            else:
                mean = dense.mean(inputs, matrices, sizes, how)
            result[part] = answer(mean.view(z[part].shape), z, source)
    return result


def _grid(op: Operator) -> tuple[int, int] | None:
    return op.grid if isinstance(op, Box) else None
