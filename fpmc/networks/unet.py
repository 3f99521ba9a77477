"""EDM's U-Net, in the configurations DDPM++ and NCSN++.

The names and shapes of all parameters are those of the published EDM checkpoints.

Source: Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential
Equations", section 4.3 and appendix H; Karras et al. (2022), appendix F.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fpmc.checks import as_whole_number
from fpmc.networks.blocks import NEARLY_ZERO, Block, Convolution, group_norm
from fpmc.networks.embedding import FourierEmbedding, PositionalEmbedding
from fpmc.networks.layers import channels_in, linear

__all__ = ["UNet"]


class UNet(nn.Module):
    """The U-Net F(x, c): images and one noise condition each, to images.

    Args:
        shape: The images' (c, h, w); h = w.
        xi: Whether ξ, noise of their shape, stands behind the images as further channels.
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
        xi: bool = False,
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
        _check(shape, channels, multipliers, blocks, augmentations)
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

        c, side, _ = shape
        inputs = channels_in(shape, xi)
        levels = [(side >> i, channels * factor) for i, factor in enumerate(multipliers)]
        own = taps if encoder == "residual" else None
        self.enc, skips = _encoder(block, inputs, channels, levels, blocks, attention, own)
        self.dec = _decoder(block, c, skips, levels, blocks, attention)

    def forward(
        self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, " b"]
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


def _check(
    shape: Sequence[int],
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    augmentations: int,
) -> None:
    """See that the numbers of a U-Net are possible."""
    _, side, width = shape
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


def _encoder(
    block: Callable[..., Block],
    c: int,
    now: int,
    levels: Sequence[tuple[int, int]],
    blocks: int,
    attention: Sequence[int],
    taps: Sequence[float] | None,
) -> tuple[nn.ModuleDict, list[int]]:
    """The layers that halve the side, and the channels of what each leaves for the decoder.

    Args:
        block: Makes a residual block from channels in and out.
        c: Channels of the input.
        now: Channels after the first layer.
        levels: Side and channels of each resolution, the largest first.
        blocks: Residual blocks per resolution.
        attention: Sides at which they attend.
        taps: The filter of the image's own halved copies; none without these.
    """
    layers, auxiliary, skips = nn.ModuleDict(), c, []
    for level, (at, wide) in enumerate(levels):
        if level == 0:
            layers[f"{at}x{at}_conv"] = Convolution(c, now, 3)
        else:
            layers[f"{at}x{at}_down"] = block(now, now, resample="down")
            if taps is not None:
                layers[f"{at}x{at}_aux_residual"] = Convolution(
                    auxiliary, now, 3, resample="down", taps=taps, filter_last=True
                )
                auxiliary = now
        skips.append(now)
        for i in range(blocks):
            layers[f"{at}x{at}_block{i}"] = block(now, wide, attention=at in attention)
            now = wide
            skips.append(now)
    return layers, skips


def _decoder(
    block: Callable[..., Block],
    c: int,
    skips: Sequence[int],
    levels: Sequence[tuple[int, int]],
    blocks: int,
    attention: Sequence[int],
) -> nn.ModuleDict:
    """The layers that double the side; arguments as those of the encoder, which left the skips."""
    layers, left, now = nn.ModuleDict(), list(skips), skips[-1]
    for level, (at, wide) in reversed(list(enumerate(levels))):
        if level == len(levels) - 1:
            layers[f"{at}x{at}_in0"] = block(now, now, attention=True)
            layers[f"{at}x{at}_in1"] = block(now, now)
        else:
            layers[f"{at}x{at}_up"] = block(now, now, resample="up")
        for i in range(blocks + 1):
            attends = i == blocks and at in attention
            layers[f"{at}x{at}_block{i}"] = block(now + left.pop(), wide, attention=attends)
            now = wide
    side = levels[0][0]
    layers[f"{side}x{side}_aux_norm"] = group_norm(now)
    layers[f"{side}x{side}_aux_conv"] = Convolution(now, c, 3, gain=NEARLY_ZERO)
    return layers
