"""The processes that share a run, those of torchrun or one alone, and what any group adds up."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["ALONE", "Processes", "processes", "reduced"]


def reduced(value: Tensor, how: str, group: Any = None) -> Tensor:
    """What the processes of a group make of their values, entry by entry; all of them call it.

    Args:
        value: This process's; it may be overwritten.
        how: "SUM" or "MAX".
        group: One of :mod:`torch.distributed`'s process groups; None for all processes.
    """
    value = value.contiguous()
    distributed.all_reduce(value, getattr(distributed.ReduceOp, how), group)
    return value


@dataclass(frozen=True)
class Processes:
    """One process among those that share a run.

    Attributes:
        device: Where this one computes.
        rank: Which it is; the first, 0, writes files and shows progress.
        world: How many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def part(self, batch: Tensor) -> Tensor:
        """The share of a batch that is this process's, on its device."""
        return batch[self.rank :: self.world].to(self.device)

    def gathered(self, values: Tensor, n: int) -> Tensor:
        """The n values of all, of which each process has those of its part."""
        if self.world == 1:
            return values
        whole = values.new_zeros(n, *values.shape[1:])
        whole[self.rank :: self.world] = values
        return self.sum(whole)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes; the value may be overwritten."""
        return reduced(value, "SUM") if self.world > 1 else value

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes, so that all take the same decision."""
        if self.world == 1:
            return [float(value) for value in values]
        shared = torch.tensor(values, device=self.device, dtype=torch.float64)
        return reduced(shared, "MAX").tolist()

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        return self.sum(value).item() / self.world


ALONE = Processes(torch.device("cpu"))
"""One process, on the CPU."""


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join those that torchrun started, each with a GPU of its own on CUDA; or be one alone.

    If the script has initialised its process group itself, it stays when the block ends.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(device, distributed.get_rank(), distributed.get_world_size())
        return
    if world == 1:
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
