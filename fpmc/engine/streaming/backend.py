r"""The sum over the source, a tile at a time: any N, any device, bounded memory, differentiable.

Distances and log-weights are float64 whatever z's type, which is what float32 answers within 1e-5
take: a log-weight of 1,500 (half the number of dimensions of a 32 × 32 colour image) has a spacing
of 1.2e-4 in float32. What is rounded to float32 is a log-weight less the running maximum, which is
small where it matters, and the weights, which the responses mix in float32; every sum over tiles is
float64.

In float64 the distance under q = 1 may be expanded,
:math:`\|z\|^2 - 2 z^\top x + \|x\|^2`, into one matrix product: at σ = 0.002 what the expansion
cancels leaves an error in ℓ below :math:`2 D \varepsilon (\|z\|^2 + \|x\|^2) / 2\sigma^2` at worst,
5e-4 for 32 × 32 colour images with values in [-1, 1] and the unit roundoff ε = 1.1e-16.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine import sparsity
from fpmc.engine.problem import Problem
from fpmc.engine.streaming.arithmetic import Dtypes, dtypes, pixels_first
from fpmc.engine.streaming.forward import forward
from fpmc.engine.streaming.sizes import Tile, tile
from fpmc.engine.streaming.vjp import backward
from fpmc.modes import without_autograd
from fpmc.operators import Dense

__all__ = ["Streaming"]


class Streaming:
    """A :class:`fpmc.engine.autograd.Backend` for any Q and R on any device.

    Gradients are exact, whatever the problem's precision.
    """

    def __init__(self, problem: Problem):
        self.problem = problem

    def size(self, batch: int, like: Tensor, *, back: bool) -> Tile:
        """How much at a time, and whether what Q is applied to is kept for the second pass.

        Args:
            batch: Number of noisy images.
            like: A tensor with their type and device.
            back: Whether for the gradients.

        Raises:
            ValueError: If the budget is too small for a single pair of images.
        """
        (queries, responses), source = self.problem.operators, self.problem.source
        n, ranks = len(source), self.problem.ranks
        if ranks is not None:  # they add up as many noisy images at a time
            n = int(ranks.largest(torch.tensor(n, device=like.device)))
            if n == 0:
                raise ValueError("source: got no images on any rank, wanted some")
        again = isinstance(queries, Dense) and (back or not responses.partition)
        types = dtypes(like, exact=back or self.problem.exact)
        keep = again * (1 + back) * types.weights.itemsize
        arguments = (batch, n, source.shape, self.problem.operators)
        more = {"keep": keep, "held": self.problem.held}
        return tile(*arguments, self.problem.budget, like.device, **more)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        types = dtypes(z, exact=self.problem.exact)
        size, problem = self.size(len(z), z, back=False), self.ready(z, types)
        x_hat = torch.empty_like(z)
        for start in range(0, len(z), size.b):
            part = slice(start, start + size.b)
            x_hat[part] = forward(pixels_first(z[part]), problem, size, types).movedim(-1, 0)
        return x_hat

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        types, ranks = dtypes(z), self.problem.ranks
        if ranks is not None:
            wanted = to_q is not None, to_r is not None
            ranks.agree(z, call="gradients", gradient=gradient, wanted=wanted)
        size, problem = self.size(len(z), z, back=True), self.ready(z, types)
        to_z = torch.empty_like(z)
        for start in range(0, len(z), size.b):
            part = slice(start, start + size.b)
            arrays = [pixels_first(a[part]) for a in (z, gradient, x_hat)]
            to_z[part] = backward(*arrays, to_q, to_r, problem, size, types).movedim(-1, 0)
        if ranks is not None:
            for total in filter(torch.is_tensor, (to_q, to_r)):
                total.copy_(ranks.sum(total))
        return to_z

    def ready(self, z: Tensor, types: Dtypes) -> Problem:
        """The problem with Q and R ready to act on these types where z lies."""
        queries, responses = (
            sparsity.ready(op, z.new_empty(0, dtype=dtype))
            for op, dtype in zip(self.problem.operators, types, strict=True)
        )
        return replace(self.problem, queries=queries, responses=responses)
