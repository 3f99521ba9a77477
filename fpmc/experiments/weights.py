"""Which weights a network has, in eight digits."""

import contextlib
import os

import torch
from torch import nn

from fpmc import networks
from fpmc.data import fingerprint

__all__ = ["BEFORE_PACKING", "weights_hash"]

BEFORE_PACKING = "hash_before_packing"
"""Under this name a packed network's card has the hash of the weights that were packed."""


def weights_hash(network: nn.Module, file: str | os.PathLike | None = None) -> str:
    """The first 8 digits of the fingerprint of a network's parameters and buffers, as float32.

    Args:
        network: The network.
        file: Its name or file. Where its card tells what it was packed from, that hash is the
            answer: the rows of both are rows of one network.
    """
    if file is not None:
        with contextlib.suppress(ValueError, FileNotFoundError):  # a network of others has no card
            told = networks.card(file).get(BEFORE_PACKING)
            if told:
                return told
    weights = [value for _, value in sorted(network.state_dict().items())]
    flat = torch.cat([value.detach().flatten().float().cpu() for value in weights])
    return fingerprint(flat)[:8]
