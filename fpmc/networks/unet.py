"""EDM's U-Net, in the configurations DDPM++ and NCSN++.

The names and shapes of all parameters are those of the published EDM checkpoints.

Source: Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential
Equations", section 4.3 and appendix H; Karras et al. (2022), appendix F.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fpmc.checks import as_whole_number
from fpmc.networks.embedding import FourierEmbedding, PositionalEmbedding
from fpmc.networks.layers import linear

__all__ = ["Block", "Convolution", "UNet"]

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


class UNet(nn.Module):
    """The U-Net F(x, c): images and one noise condition each, to images.

    Args:
        shape: The images' (c, h, w); h = w.
        channels: Channels at full resolution, before the multipliers.
        multipliers: Factor of the channels at each resolution; each but the first halves the side.
        blocks: Residual blocks per resolution in the encoder; the decoder has one more.
        attention: Sides at which blocks end in attention.
        dropout: Probability of dropping an activation in training.
        augmentations: Length of an augmentation condition that the network was trained with; its
            weights are kept, and the condition is 0: no augmentation.
        embedding: "positional" (DDPM++) or "fourier" (NCSN++).
        encoder: "standard" (DDPM++), or "residual" (NCSN++): every resolution of the encoder
            also receives the image's own filtered and halved copy.
        taps: Resampling filter: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.

    Raises:
        TypeError: If a number is not a whole one.
        ValueError: If the images' side cannot be halved that often, a number is too small, or
            there is no such embedding or encoder.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        augmentations: int = 0,
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "residual"] = "standard",
        taps: Sequence[float] = (1, 1),
    ):
        super().__init__()
        c, side, width = shape
        if side != width or side % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"shape: got {tuple(shape)}, wanted square images whose side can be halved "
                f"{len(multipliers) - 1} times"
            )
        as_whole_number(channels, "channels", 4)
        for value in multipliers:
            as_whole_number(value, "multipliers", 1)
        as_whole_number(blocks, "blocks", 1)
        as_whole_number(augmentations, "augmentations", 0)
        if channels % 2:
            raise ValueError(f"channels: got {channels}, wanted an even number")
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding: got {embedding!r}, wanted 'positional' or 'fourier'")
        if encoder not in ("standard", "residual"):
            raise ValueError(f"encoder: got {encoder!r}, wanted 'standard' or 'residual'")
        features = 4 * channels
        if embedding == "positional":
            self.map_noise, noise = PositionalEmbedding(channels), channels
        else:
            self.map_noise, noise = FourierEmbedding(2 * channels), 2 * channels
        if augmentations:
            self.map_augment = linear(augmentations, noise, bias=False)
        self.map_layer0 = linear(noise, features)
        self.map_layer1 = linear(features, features)

        def block(c_in: int, c_out: int, **options) -> Block:
            return Block(c_in, c_out, features, taps=taps, dropout=dropout, **options)

        self.enc = nn.ModuleDict()
        now, auxiliary, skips = channels, c, []
        for level, multiplier in enumerate(multipliers):
            at = side >> level
            if level == 0:
                self.enc[f"{at}x{at}_conv"] = Convolution(c, now, 3)
            else:
                self.enc[f"{at}x{at}_down"] = block(now, now, resample="down")
                if encoder == "residual":
                    self.enc[f"{at}x{at}_aux_residual"] = Convolution(
                        auxiliary, now, 3, resample="down", taps=taps, filter_last=True
                    )
                    auxiliary = now
            skips.append(now)
            for i in range(blocks):
                wide = channels * multiplier
                self.enc[f"{at}x{at}_block{i}"] = block(now, wide, attention=at in attention)
                now = wide
                skips.append(now)

        self.dec = nn.ModuleDict()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            at = side >> level
            if level == len(multipliers) - 1:
                self.dec[f"{at}x{at}_in0"] = block(now, now, attention=True)
                self.dec[f"{at}x{at}_in1"] = block(now, now)
            else:
                self.dec[f"{at}x{at}_up"] = block(now, now, resample="up")
            for i in range(blocks + 1):
                wide = channels * multiplier
                attends = i == blocks and at in attention
                self.dec[f"{at}x{at}_block{i}"] = block(now + skips.pop(), wide, attention=attends)
                now = wide
        self.dec[f"{side}x{side}_aux_norm"] = group_norm(now)
        self.dec[f"{side}x{side}_aux_conv"] = Convolution(now, c, 3, gain=NEARLY_ZERO)

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        embedding = F.silu(self.map_layer0(self.map_noise(condition)))
        embedding = F.silu(self.map_layer1(embedding))
        auxiliary, skips = x, []
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = auxiliary = skips[-1] = (x + layer(auxiliary)) * math.sqrt(0.5)
                continue
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if isinstance(layer, Block):
                if x.shape[1] != layer.c_in:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
            elif isinstance(layer, nn.GroupNorm):
                x = F.silu(layer(x))
            else:
                x = layer(x)
        return x
