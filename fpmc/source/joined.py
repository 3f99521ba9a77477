"""Images in several tensors, one behind the other, as if they were one; none of them is copied."""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = ["Joined"]


class Joined:
    """Tensors of images (n_i, c, h, w) that are read as one of Σ n_i.

    Args:
        parts: The tensors, of one dtype and shape (c, h, w), on one device.
    """

    def __init__(self, parts: tuple[Tensor, ...]):
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def shape(self) -> torch.Size:
        """(Σ n_i, c, h, w)."""
        return torch.Size((len(self), *self.parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """That of all parts."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Where all parts lie."""
        return self.parts[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device) -> "Joined":
        """The same images on a device."""
        return Joined(tuple(part.to(device) for part in self.parts))

    def part(self, start: int, stop: int) -> "Joined":
        """The images from one position to another, in as many tensors; none is copied."""
        found = [
            part[max(start, first) - first : min(stop, last) - first]
            for part, (first, last) in zip(self.parts, pairwise([0, *self.ends]), strict=True)
            if max(start, first) < min(stop, last)
        ]
        return Joined(tuple(found or [self.parts[0][:0]]))

    def __getitem__(self, index: Any) -> Tensor:
        """Images at an index: a slice, or a list or tensor of positions, which are copied.

        Raises:
            IndexError: If a position is out of range.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and start < stop:
                return self._run(start, stop)
            index = range(start, stop, step)
        index = torch.as_tensor(index, device=self.device)
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        return self._at(index.long())

    def _run(self, start: int, stop: int) -> Tensor:
        """The images from one position to another."""
        found = self.part(start, stop).parts
        return found[0] if len(found) == 1 else torch.cat(found)

    def _at(self, index: Tensor) -> Tensor:
        n = len(self)
        index = torch.where(index < 0, index + n, index)
        if len(index) and not (index.min() >= 0 and index.max() < n):
            raise IndexError(f"index: got positions out of range, wanted {-n} to {n - 1}")
        found = torch.empty(len(index), *self.shape[1:], dtype=self.dtype, device=self.device)
        for part, (first, last) in zip(self.parts, pairwise([0, *self.ends]), strict=True):
            here = ((index >= first) & (index < last)).nonzero()[:, 0]
            found[here] = part[index[here] - first]
        return found
