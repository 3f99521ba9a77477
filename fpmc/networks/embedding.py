"""Embeddings of the noise condition."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FourierEmbedding", "PositionalEmbedding"]


class PositionalEmbedding(nn.Module):
    """Sines, then cosines, of the condition at frequencies falling from 1 to 1e-4.

    Args:
        features: Length of the embedding, even, at least 4.

    Source: Vaswani et al. (2017), section 3.5, as DDPM++ uses it.
    """

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, condition: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        half = self.features // 2
        position = torch.arange(half, dtype=torch.float32, device=condition.device) / (half - 1)
        angle = condition[:, None] * (1e-4**position).to(condition.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of the condition at random frequencies drawn from N(0, 16²).

    Args:
        features: Length of the embedding, even.

    Source: Song et al. (2021), appendix C, as NCSN++ uses it.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(features // 2))

    def forward(self, condition: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        angle = condition[:, None] * (2 * math.pi * self.freqs).to(condition.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)
