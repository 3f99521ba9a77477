"""Images made of others, and the order they come in: any beginning of it is balanced."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fpmc.checks import as_whole_number

__all__ = ["LABELS", "Augmented", "balanced"]

LABELS = 9
"""Numbers of a label: see :class:`Augmented`."""


@dataclass(frozen=True)
class Augmented:
    """Images made of others, or of noise, in an order whose every beginning is balanced.

    ``fpmc.source.union(source, augmented)`` is a source of both, if the source's images are those
    that these were made of.

    Attributes:
        images: Pixel values, uint8, shape (m, c, h, w).
        parents: The position of the image that each was made of, int64, shape (m,); −1 for those
            that were made of none.
        parameters: What was done to it, float64, shape (m, 9), as the label on which EDM's networks
            are conditioned: horizontal flip (1 or 0), vertical flip, w of a scaling by 2^(0.2 w),
            cos φ − 1 and sin φ of a turn by φ, two that are 0 (an anisotropic scaling, which is
            not done here), and a translation to the right and down in units of an eighth of the
            side (of whole pixels: to the right and up). Zeros mean untouched.
    """

    images: UInt8[Tensor, "m c h w"]
    parents: Int[Tensor, " m"]
    parameters: Float[Tensor, "m 9"]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, n: int) -> "Augmented":
        """The first n: as many of each image as of any other, or one more; nothing is copied.

        Raises:
            TypeError: If n is not a whole number.
            ValueError: If there are fewer.
        """
        n = as_whole_number(n, "n", 1, len(self))
        return Augmented(self.images[:n], self.parents[:n], self.parameters[:n])


def balanced(
    drawn: Float[Tensor, "draws n k"], generator: torch.Generator
) -> tuple[Int[Tensor, " m"], Float[Tensor, "m k"]]:
    """Parents and parameters of all draws but repeated ones, every image's first, then its second.

    In every round the images come in one random order: of a set that is smaller than there are
    images, no two have the same parent.

    Args:
        drawn: Parameters, for each draw of each of n images.
        generator: Of the order.
    """
    order = torch.randperm(drawn.shape[1], generator=generator)
    drawn = drawn[:, order]
    new = _new(drawn)
    turn = torch.where(new, new.cumsum(0), len(drawn) + 1).flatten()  # which distinct draw it is
    place = turn.argsort(stable=True)[: int(new.sum())]
    return order.repeat(len(drawn))[place], drawn.flatten(0, 1)[place]


def _new(drawn: Float[Tensor, "draws n k"]) -> Bool[Tensor, "draws n"]:
    """Which draws of an image are exactly none of those before."""
    found = [
        ~(drawn[:i] == drawn[i]).all(-1).any(0) if i else drawn.new_ones(drawn.shape[1]).bool()
        for i in range(len(drawn))
    ]
    return torch.stack(found)
