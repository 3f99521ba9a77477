"""The diffusion transformer, DiT.

Source: Peebles and Xie (2023), "Scalable Diffusion Models with Transformers", with its
adaLN-Zero blocks.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fpmc.checks import as_whole_number
from fpmc.networks.embedding import PositionalEmbedding
from fpmc.networks.layers import channels_in, linear

__all__ = ["DiT"]


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


def _zero_linear(features_in: int, features_out: int) -> nn.Linear:
    layer = nn.Linear(features_in, features_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each shifted, scaled and gated by the noise level.

    Args:
        width: Features of a token.
        heads: Attention heads.
        dropout: Probability of dropping an activation of the perceptron in training.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.qkv, self.proj = linear(width, 3 * width), linear(width, width)
        self.fc1, self.fc2 = linear(width, 4 * width), linear(4 * width, width)
        self.modulation = _zero_linear(width, 6 * width)

    def forward(
        self, x: Float[Tensor, "b t e"], condition: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b t e"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate1[:, None] * self._attend(_modulate(self.norm1(x), shift1, scale1))
        hidden = F.gelu(self.fc1(_modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.fc2(F.dropout(hidden, self.dropout, self.training))

    def _attend(self, x: Tensor) -> Tensor:
        b, t, e = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, e // self.heads).unbind(2)
        scores = torch.einsum("bqhc,bkhc->bhqk", q * (e // self.heads) ** -0.5, k)
        out = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(dim=-1), v)
        return self.proj(out.reshape(b, t, e))


class DiT(nn.Module):
    """The transformer F(x, c): images and one noise condition each, to images.

    Args:
        shape: The images' (c, h, w); h = w.
        xi: Whether ξ, noise of their shape, stands behind the images as further channels.
        patch: Side of the square of pixels that makes a token; divides the images' side.
        width: Features of a token, a multiple of 4 and of the number of heads.
        depth: Transformer blocks.
        heads: Attention heads per block.
        dropout: Probability of dropping an activation in training.

    Raises:
        TypeError: If a number is not a whole one.
        ValueError: If the patch does not divide the side, or the heads the width, or a number is
            too small.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        xi: bool = False,
        patch: int = 4,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        dropout: float = 0.12,
    ):
        super().__init__()
        for name, value in (("patch", patch), ("width", width), ("depth", depth), ("heads", heads)):
            as_whole_number(value, name, 8 if name == "width" else 1)
        c, side, other = shape
        if side != other or side % patch:
            raise ValueError(f"patch: got {patch}, wanted a divisor of the side of {tuple(shape)}")
        if width % heads or width % 4:
            raise ValueError(f"width: got {width}, wanted a multiple of 4 and of heads = {heads}")
        self.patch = patch
        self.map_noise = PositionalEmbedding(width)
        self.map_layer0, self.map_layer1 = linear(width, width), linear(width, width)
        self.embed = linear(channels_in(shape, xi) * patch**2, width)
        self.register_buffer("positions", _positions(side // patch, width), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(depth))
        self.norm = _norm(width)
        self.modulation = _zero_linear(width, 2 * width)
        self.out = _zero_linear(width, c * patch**2)

    def forward(
        self, x: Float[Tensor, "b i h w"], condition: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        size = x.shape[-2:]
        embedding = F.silu(self.map_layer0(self.map_noise(condition)))
        embedding = F.silu(self.map_layer1(embedding))
        tokens = F.unfold(x, self.patch, stride=self.patch).mT
        tokens = self.embed(tokens) + self.positions
        for block in self.blocks:
            tokens = block(tokens, embedding)
        tokens = _modulate(self.norm(tokens), *self.modulation(embedding).chunk(2, dim=1))
        return F.fold(self.out(tokens).mT, size, self.patch, stride=self.patch)


def _positions(n: int, width: int) -> Float[Tensor, "t e"]:
    """Sines and cosines of a token's row, then of its column, for n × n tokens."""
    frequencies = 1e-4 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(n)[:, None] * frequencies
    along = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat(
        [along.repeat_interleave(n, dim=0), along.repeat(n, 1)],
        dim=1,
    )
