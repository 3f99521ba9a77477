"""The optimizers of training: Adam, and Muon for the matrices with Adam for the rest."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["OPTIMIZERS", "optimizer"]

SMALLEST = 16
"""Least number of rows and of columns of a matrix that Muon takes."""


class _Muon:
    """Muon for weights that are matrices, convolutions as (c_out, c_in · h · w); Adam for the rest.

    Muon's rate is scaled by the matrix's shape so that its updates are as large as Adam's at the
    same rate. Matrices with a side below :data:`SMALLEST`, as those into and out of an image's few
    channels, are Adam's.

    Source: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks"; of the
    scaling, Liu et al. (2025), "Muon is Scalable for LLM Training".
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float):
        every = list(parameters)
        self.weights = [p for p in every if p.ndim > 1 and min(p.flatten(1).shape) >= SMALLEST]
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.weights]
        taken = set(map(id, self.weights))
        rest = [p for p in every if id(p) not in taken]
        options = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        self.muon = torch.optim.Muon([{"params": self.matrices}], lr=rate, **options)
        self.adam = torch.optim.Adam([{"params": rest}], lr=rate)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups + self.adam.param_groups

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None
        self.adam.zero_grad()

    def step(self) -> None:
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


OPTIMIZERS = {"adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate), "muon": _Muon}
"""What each name makes of parameters and a learning rate."""


def optimizer(name: str, network: nn.Module, rate: float) -> torch.optim.Optimizer | _Muon:
    """The optimizer of a network's parameters.

    Args:
        name: "adam" or "muon".
        network: Whose weights lie in memory as they are indexed; they are changed in place.
        rate: The learning rate, which ``param_groups`` holds as "lr".

    Raises:
        ValueError: If there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: got {name!r}, wanted one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](network.parameters(), rate)
