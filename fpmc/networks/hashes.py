"""Which weights a network has, in eight digits."""

import torch
from torch import nn

from fpmc.data import fingerprint

__all__ = ["weights_hash"]


def weights_hash(network: nn.Module) -> str:
    """The first 8 digits of the fingerprint of a network's parameters and buffers, as float32.

    They count in the order of their names.
    """
    weights = [value for _, value in sorted(network.state_dict().items())]
    flat = torch.cat([value.detach().flatten().float().cpu() for value in weights])
    return fingerprint(flat)[:8]
