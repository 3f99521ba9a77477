"""An answer as a node of PyTorch's graph: whatever computes it, gradients come by recomputation."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.problem import Problem
from fpmc.modes import without_autograd
from fpmc.operators import Dense

__all__ = ["Backend", "differentiable"]


FIRST = (
    "an FPMC has first derivatives only, in reverse mode: got a call for the gradient of its "
    "gradient, or for a derivative in forward mode"
)
"""What a call for others is told."""


@runtime_checkable
class Backend(Protocol):
    """A way to compute a :class:`fpmc.engine.problem.Problem`'s answer, and to go back."""

    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x̂ of (10), with z's shape, type and device."""

    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The vector-Jacobian product: the gradient with respect to z.

        Those with respect to the matrices of Q and R are added to to_q and to_r.

        Args:
            z: What was asked.
            x_hat: What was answered.
            gradient: The gradient with respect to x_hat.
            to_q: Where Q's gradient is added, float64, if it is wanted.
            to_r: Where R's is.
        """


def differentiable(
    z: Float[Tensor, "b c h w"],
    problem: Problem,
    answer: Callable[[Tensor], Tensor],
    vjp: Callable[..., Tensor],
) -> Float[Tensor, "b c h w"]:
    """The answer, differentiable in z and in the matrices of dense Q and R.

    Args:
        z: Noisy images, shape (b, c, h, w).
        problem: What is asked.
        answer: A backend's :meth:`Backend.answer`.
        vjp: A backend's :meth:`Backend.vjp`, the same's or another's.

    Returns:
        x̂ with z's shape, type and device. Differentiable once, by reverse mode, not by torch.func.
    """
    matrices = (op.matrix if isinstance(op, Dense) else None for op in problem.operators)
    return _Collection.apply(z, *matrices, answer, vjp)


class _Collection(torch.autograd.Function):
    @staticmethod
    @without_autograd
    def forward(ctx, z, q_matrix, r_matrix, answer, vjp):
        x_hat = answer(z)
        ctx.save_for_backward(z, x_hat, q_matrix, r_matrix)
        ctx.vjp = vjp
        return x_hat

    @staticmethod
    def backward(ctx, gradient):
        wanted = ctx.needs_input_grad[:3]
        return *_Gradients.apply(*ctx.saved_tensors, gradient, ctx.vjp, wanted), None, None

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError(FIRST)


class _Gradients(torch.autograd.Function):
    """The gradients of an answer, as a node too: to differentiate them is an error.

    Outside the graph they would be taken for constants, and second derivatives lack a term.
    """

    @staticmethod
    @without_autograd
    def forward(ctx, z, x_hat, q_matrix, r_matrix, gradient, vjp, wanted):
        matrices = q_matrix, r_matrix
        sums = [
            torch.zeros_like(matrix, dtype=torch.float64) if want else None
            for matrix, want in zip(matrices, wanted[1:], strict=True)
        ]
        to_z = vjp(z.detach(), x_hat.detach(), gradient.detach(), *sums)
        to_q, to_r = (
            None if total is None else total.to(matrix)
            for total, matrix in zip(sums, matrices, strict=True)
        )
        return (to_z if wanted[0] else None), to_q, to_r

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError(FIRST)
