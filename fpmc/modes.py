"""What PyTorch's graph, autocast, inference mode and functional transforms have no part in."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = [
    "is_transformed",
    "lasting",
    "not_differentiable",
    "opaque",
    "refuse_tracing",
    "refuse_transforms",
    "without_autograd",
]


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


def opaque(reason: str) -> Callable[[Callable], Callable]:
    """Decorator: what torch.compile calls as it is, and looks no further into.

    It is ``torch.compiler.disable``, which imports PyTorch's compiler, and so takes longer than all
    the rest of this package; here that waits until somebody compiles something.

    Args:
        reason: What an error says where the caller demands one graph (``fullgraph=True``).
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **options):
            if "torch._dynamo" not in sys.modules:
                return function(*args, **options)
            return torch.compiler.disable(function, reason=reason)(*args, **options)

        call._torchdynamo_disable, call._torchdynamo_disable_msg = True, reason
        return call

    return decorate


def is_transformed(value: Any) -> bool:
    """Whether it is a tensor inside a transform of ``torch.func``, such as ``vmap`` or ``grad``."""
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


def refuse_tracing(value: Tensor, name: str) -> None:
    """Say that a value must be read, which is not there while PyTorch only traces a graph.

    So it is of meta and fake tensors, and inside ``torch.export``, ``make_fx`` and
    ``torch.func.linearize``.

    Raises:
        TypeError: If it cannot be read.
    """
    is_fake = isinstance(value, FakeTensor)
    if value.is_meta or is_fake or get_proxy_mode() is not None:
        raise TypeError(
            f"{name}: got a tensor without values, or one that is traced, wanted a plain one: an "
            "fpmc denoiser reads values; of a network, network.denoise(z, sigmas) can be traced"
        )


def refuse_transforms(value: Any, name: str) -> None:
    """Say that a value must be read, which transforms of ``torch.func`` do not allow.

    Nor does ``torch.jit.trace``, which takes what is read for constants.

    Raises:
        TypeError: If it is a tensor inside one.
    """
    if torch.jit.is_tracing():
        raise TypeError(
            f"{name}: got a tensor inside torch.jit.trace, wanted a plain one: what is read of it "
            "would become a constant"
        )
    if is_transformed(value):
        raise TypeError(
            f"{name}: got a tensor inside a transform of torch.func, wanted a plain one: gradients "
            "are those of backward() and torch.autograd.grad, sensitivity.maps has Jacobians"
        )


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
