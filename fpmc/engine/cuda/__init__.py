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

from fpmc.engine.cuda.inputs import prepare
from fpmc.engine.cuda.precisions import PRECISIONS, named
from fpmc.engine.cuda.sizes import Sizes, choose, need
from fpmc.engine.memory import too_small
from fpmc.engine.problem import Problem
from fpmc.engine.units import from_units
from fpmc.modes import without_autograd
from fpmc.operators import Box, Dense, Identity, Operator
from fpmc.source import Source

__all__ = ["Cuda", "Sizes", "TooLittleSharedMemoryError", "has_kernel"]

STORED = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_SIDE = 64
"""An image's tile of squares lies in registers."""

_TOO_SMALL: set[tuple[torch.device, str, bool]] = set()
"""Devices whose processors have too little memory for a kernel's tiles, as its compiler found."""


class TooLittleSharedMemoryError(RuntimeError):
    """A kernel's tiles do not fit a processor of the device; :meth:`Cuda.covers` now knows it."""


class Cuda:
    """The answers of a :class:`fpmc.engine.autograd.Backend`; it has no way back of its own."""

    def __init__(self, problem: Problem):
        self.problem = problem

    @staticmethod
    def covers(
        queries: Operator,
        responses: Operator,
        source: Source,
        device: torch.device,
        precision: str = "exact",
    ) -> bool:
        """Whether there is a kernel for it, all of it on one CUDA device, and Triton.

        A source that lies elsewhere is streamed.
        """
        home = source.images.device
        return (
            device.type == home.type == "cuda"
            and device.index in (None, home.index)
            and precision in PRECISIONS
            and (home, precision, isinstance(queries, Box)) not in _TOO_SMALL
            and has_kernel(queries, responses, source)
            and importlib.util.find_spec("triton") is not None
        )

    def sizes(self, batch: int, device: torch.device) -> Sizes | None:
        """How much is held at a time, and the working memory that takes; None if nothing fits."""
        return choose(self.problem, batch, device, named(self.problem.precision))

    @without_autograd
    def answer(
        self, z: Float[Tensor, "b c h w"], sizes: Sizes | None = None
    ) -> Float[Tensor, "b c h w"]:
        """x̂ of (10), with z's shape, type and device.

        Args:
            z: Noisy images, shape (b, c, h, w).
            sizes: What :meth:`sizes` said; asked for if left out.

        Raises:
            ValueError: If the budget is too small for a single noisy image.
            TooLittleSharedMemoryError: If the device has too little memory on its processors.
        """
        from triton.runtime.errors import OutOfResources

        (queries, _), source = self.problem.operators, self.problem.source
        precision = named(self.problem.precision)
        sizes = self.sizes(len(z), z.device) if sizes is None else sizes
        if sizes is None:
            raise too_small(self.problem.budget, need(self.problem, precision).least, "one image")
        mean, result = self._mean(z.device, sizes), torch.empty_like(z)
        try:
            with torch.cuda.device_of(z):
                for start in range(0, len(z), sizes.b):
                    part = slice(start, start + sizes.b)
                    inputs = prepare(z[part], self.problem.sigma, source, queries.shape, precision)
                    result[part] = from_units(mean(inputs), z[part], source)
        except OutOfResources as error:
            _TOO_SMALL.add((source.images.device, precision.name, isinstance(queries, Box)))
            raise TooLittleSharedMemoryError(str(error)) from error
        return result

    def _mean(self, device: torch.device, sizes: Sizes):
        """The posterior mean in stored units, a function of what kernels read."""
        from fpmc.engine.cuda import dense, squares

        (queries, responses), precision = self.problem.operators, named(self.problem.precision)
        if isinstance(queries, Box):
            return lambda inputs: squares.mean(inputs, queries, responses, sizes.splits, precision)
        matrices = dense.Matrices(queries, responses, device, precision)
        return lambda inputs: dense.mean(inputs, matrices, sizes, precision)


def has_kernel(queries: Operator, responses: Operator, source: Source) -> bool:
    """Whether there is a kernel for these operators and for images stored like these."""
    if not all(part.dtype in STORED and part.is_contiguous() for part in source.parts):
        return False
    one_hot = isinstance(responses, Identity)
    if isinstance(queries, Box):
        grid = responses.shape if one_hot else getattr(responses, "grid", None)
        return grid == queries.grid and max(queries.shape) <= LARGEST_SIDE
    return isinstance(queries, Dense) and (one_hot or isinstance(responses, Dense))
