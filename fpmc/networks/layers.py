"""What the architectures build from alike."""

from torch import nn

__all__ = ["channels_in", "linear"]


def channels_in(shape: tuple[int, int, int], xi: bool) -> int:
    """Channels that a network for images (c, h, w) takes: c, and as many of ξ behind them.

    Raises:
        TypeError: If xi is neither true nor false.
    """
    if not isinstance(xi, bool):
        raise TypeError(f"xi: got {xi!r}, wanted True or False")
    return shape[0] * (2 if xi else 1)


def linear(features_in: int, features_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer with a Xavier-uniform start and no offset."""
    layer = nn.Linear(features_in, features_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
