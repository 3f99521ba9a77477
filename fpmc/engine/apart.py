"""What PyTorch's graph and its autocast have no part in."""

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["apart", "constant"]


def apart(function: Callable) -> Callable:
    """The function without a graph, and in the types that it names, whatever autocast wants."""

    @functools.wraps(function)
    def call(*args, **options):
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **options)

    return call


def constant(value: Tensor, name: str, *inputs: Tensor) -> Tensor:
    """The value, whose gradient with respect to the inputs is an error, not zero.

    Args:
        value: What was computed from the inputs, without a graph.
        name: What the error calls it.
        inputs: Tensors that a gradient may be asked for.
    """
    return _Constant.apply(value, name, *inputs)


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, name, *inputs):
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(f"{ctx.name}: not differentiable, got a call for its gradient")
