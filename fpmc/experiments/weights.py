"""Which weights a network has, in eight digits."""

import contextlib
import os
import re

import torch
from torch import nn

from fpmc import networks
from fpmc.data import fingerprint

__all__ = ["BEFORE_PACKING", "PACKED", "weights_hash"]

BEFORE_PACKING = "hash_before_packing"
"""Under this name a packed network's card has the hash of the weights that were packed."""
PACKED = "hash_packed"
"""Under this one, that of its own: a network that was trained on is another."""


def weights_hash(network: nn.Module, file: str | os.PathLike | None = None) -> str:
    """The first 8 digits of the fingerprint of a network's parameters and buffers, as float32.

    Args:
        network: The network.
        file: Its name or file. Where its card tells what it was packed from, that hash is the
            answer: the rows of both are rows of one network. Not if it has been trained on since.
    """
    own = _own_hash(network)
    if file is not None:
        with contextlib.suppress(ValueError, FileNotFoundError):  # a network of others has no card
            card = networks.card(file)
            told = str(card.get(BEFORE_PACKING))
            if re.fullmatch("[0-9a-f]{8}", told) and card.get(PACKED, own) == own:
                return told
    return own


def _own_hash(network: nn.Module) -> str:
    weights = [value for _, value in sorted(network.state_dict().items())]
    flat = torch.cat([value.detach().flatten().float().cpu() for value in weights])
    return fingerprint(flat)[:8]
