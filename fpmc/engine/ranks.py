"""The processes that share a sum over the source: what they add up, and what must be equal."""

import hashlib
from typing import Any

import torch
from torch import Tensor, distributed

from fpmc.operators import Dense, Operator
from fpmc.processes import reduced

__all__ = ["Ranks"]

MOST = 12
"""Values that are compared at once: a fixed number, so that ranks in different calls notice."""


class Ranks:
    """The processes of a group, each of which sums over a part of the source of its own.

    Every method is called by all of them, in the same order.

    Args:
        group: One of :mod:`torch.distributed`'s process groups; None for all processes.
        source: What is known of the whole source, which must be equal, too.

    Attributes:
        rank: This process's number in the group.
        world: How many there are.

    Raises:
        RuntimeError: If no process group was initialised.
        ValueError: If this process is not in the group.
    """

    def __init__(self, group: Any = None, source: tuple = ()):
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                "process group: got none, wanted torch.distributed.init_process_group() to be "
                "called first, in processes that torchrun started"
            )
        self.group, self.source = group, _digest(source)
        self.rank, self.world = distributed.get_rank(group), distributed.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: got one that this process is not in, wanted its own")

    def largest(self, value: Tensor) -> Tensor:
        """The largest over the ranks, entry by entry; the value may be overwritten."""
        return reduced(value, "MAX", self.group)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks; the value may be overwritten."""
        return reduced(value, "SUM", self.group)

    def agree(self, like: Tensor, **values: Any) -> None:
        """See that all ranks ask the same, by comparing short hashes in one all-reduce.

        Args:
            like: A tensor where the ranks' tensors lie.
            values: At most eleven tensors, operators, or what has a ``repr``, by name.

        Raises:
            ValueError: On all ranks, if one has another value; it names what differs.
        """
        values = {"source": self.source, **values}
        found = torch.zeros(MOST, dtype=torch.int64)
        found[: len(values)] = torch.tensor([_digest(value) for value in values.values()])
        most, least = self.largest(torch.cat([found, ~found]).to(like.device)).cpu().chunk(2)
        different = (most != ~least)[: len(values)].tolist()
        if any(different) or bool((most != ~least).any()):
            names = [name for name, other in zip(values, different, strict=True) if other]
            raise ValueError(
                f"{', '.join(names) or 'call'}: got other values on other ranks of "
                f"{self.world}, wanted the same on all: torch.distributed.broadcast gives a "
                "tensor of one rank to the others"
            )


def _digest(value: Any) -> int:
    """A hash, from −2⁶³ to 2⁶³ − 1."""
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, value)
    return int.from_bytes(digest.digest(), signed=True)


def _feed(digest: Any, value: Any) -> None:
    """Take in a tensor's type, shape and bytes; of an operator, its matrix or its rows' sum."""
    if isinstance(value, tuple):
        for part in value:
            _feed(digest, part)
        return
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return
    digest.update(repr(value).encode())
    if isinstance(value, Operator):
        _feed(digest, value.matrix if isinstance(value, Dense) else value.coverage())
