"""What PyTorch's graph, its autocast and its inference mode have no part in."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["lasting", "not_differentiable", "without_autograd"]


def without_autograd(function: Callable) -> Callable:
    """The function without a graph, and in the types that it names, whatever autocast wants."""

    @functools.wraps(function)
    def call(*args, **options):
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **options)

    return call


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Where tensors are made that are kept, and may be part of a graph later: also, and without a
    graph of its own, inside ``torch.inference_mode``. A decorator, too.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def not_differentiable(value: Tensor, name: str, *inputs: Tensor) -> Tensor:
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
