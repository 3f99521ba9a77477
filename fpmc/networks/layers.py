"""What the architectures build from alike."""

from torch import nn

__all__ = ["linear"]


def linear(features_in: int, features_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer with a Xavier-uniform start and no offset."""
    layer = nn.Linear(features_in, features_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
