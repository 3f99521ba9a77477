"""What a packed network counts as: the one that it was packed from."""

import contextlib
import os
import re

from torch import nn

from fpmc import networks
from fpmc.networks.hashes import weights_hash

__all__ = ["BEFORE_PACKING", "PACKED", "hash_for_rows"]

BEFORE_PACKING = "hash_before_packing"
"""Under this name a packed network's card has the hash of the weights that were packed."""
PACKED = "hash_packed"
"""Under this one, that of its own: a network that was trained on is another."""


def hash_for_rows(network: nn.Module, file: str | os.PathLike) -> str:
    """The hash of a network's weights, or of those that it was packed from.

    The rows of both are rows of one network, unless it has been trained on since.

    Args:
        network: The network.
        file: Its name or file, whose card may tell what it was packed from.
    """
    own = weights_hash(network)
    with contextlib.suppress(ValueError, FileNotFoundError):  # a network of others has no card
        card = networks.card(file)
        told = str(card.get(BEFORE_PACKING))
        if re.fullmatch("[0-9a-f]{8}", told) and card.get(PACKED, own) == own:
            return told
    return own
