"""The U-Net's blocks: convolutions that also change the side, and residual blocks of them.

The names and shapes of all parameters are those of the published EDM checkpoints.

Source: Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential
Equations", appendix H; Karras et al. (2022), appendix F.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fpmc.networks.layers import linear

__all__ = ["NEARLY_ZERO", "Block", "Convolution", "group_norm"]

NEARLY_ZERO = 1e-5
"""Gain of the last layer of every residual branch at the start."""


class Convolution(nn.Conv2d):
    """A convolution that keeps the side, doubles it first, or halves it first.

    Args:
        c_in: Channels in.
        c_out: Channels out.
        kernel: Side of the kernel, odd.
        resample: "up" doubles the side, "down" halves it, before the convolution.
        taps: The one-dimensional resampling filter.
        filter_last: Halve after the convolution instead, without padding between the two.
        gain: Factor of the Xavier-uniform start.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        resample: Literal["up", "down"] | None = None,
        taps: Sequence[float] = (1, 1),
        filter_last: bool = False,
        gain: float = 1.0,
    ):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.resample, self.filter_last = resample, filter_last
        nn.init.xavier_uniform_(self.weight, gain)
        nn.init.zeros_(self.bias)
        if resample:
            row = torch.tensor(taps, dtype=torch.float32)
            row = row / row.sum()
            self.register_buffer("resample_filter", row.outer(row)[None, None])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        if not self.resample:
            return super().forward(x)
        margin = (self.resample_filter.shape[-1] - 1) // 2
        if self.filter_last:
            x = F.conv2d(x, self.weight, padding=self.padding[0] + margin)
            return self._halve(x, 0) + self.bias[:, None, None]
        x = self._double(x, margin) if self.resample == "up" else self._halve(x, margin)
        return super().forward(x)

    def _halve(self, x: Tensor, margin: int) -> Tensor:
        c = x.shape[1]
        kernel = self.resample_filter.expand(c, 1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=margin, groups=c)

    def _double(self, x: Tensor, margin: int) -> Tensor:
        c = x.shape[1]
        kernel = 4 * self.resample_filter.expand(c, 1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=margin, groups=c)


def group_norm(channels: int) -> nn.GroupNorm:
    """As many groups as divide the channels: at most 32, of at least four channels each."""
    most = max(1, min(32, channels // 4))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Block(nn.Module):
    """A residual block: two convolutions, the noise level added between, attention if wanted.

    Args:
        c_in: Channels in.
        c_out: Channels out.
        embedding: Features of the noise level's embedding.
        resample: "up" or "down" doubles or halves the side.
        taps: The resampling filter.
        attention: Whether every pixel attends to every other at the end.
        dropout: Probability of dropping an activation in training.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        *,
        resample: Literal["up", "down"] | None = None,
        taps: Sequence[float] = (1, 1),
        attention: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.c_in, self.c_out, self.dropout = c_in, c_out, dropout
        self.norm0 = group_norm(c_in)
        self.conv0 = Convolution(c_in, c_out, 3, resample=resample, taps=taps)
        self.affine = linear(embedding, c_out)
        self.norm1 = group_norm(c_out)
        self.conv1 = Convolution(c_out, c_out, 3, gain=NEARLY_ZERO)
        same = c_in == c_out and not resample
        self.skip = None if same else Convolution(c_in, c_out, 1, resample=resample, taps=taps)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(c_out)
            self.qkv = Convolution(c_out, 3 * c_out, 1, gain=math.sqrt(0.2))
            self.proj = Convolution(c_out, c_out, 1, gain=NEARLY_ZERO)

    def forward(
        self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b k i j"]:
        y = self.conv0(F.silu(self.norm0(x)))
        y = F.silu(self.norm1(y + self.affine(embedding)[:, :, None, None]))
        y = self.conv1(F.dropout(y, self.dropout, self.training))
        x = (y + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        if self.attention:
            x = (self.proj(self._attend(self.qkv(self.norm2(x)))) + x) * math.sqrt(0.5)
        return x

    def _attend(self, qkv: Tensor) -> Tensor:
        b, _, h, w = qkv.shape
        q, k, v = qkv.reshape(b, self.c_out, 3, h * w).unbind(2)
        weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(self.c_out)).softmax(dim=2)
        return torch.einsum("bqk,bck->bcq", weights, v).reshape(b, self.c_out, h, w)
