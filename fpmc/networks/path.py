r"""A network for paths that knows where they start and end: a perceptron on their lowest sines.

A path of t places is the straight line between its ends and sines that vanish there,

.. math:: x_i = \Big(1 - \frac{i}{t - 1}\Big) x_0 + \frac{i}{t - 1} x_{t-1}
    + \sum_{k=1}^{K} a_k \sin\frac{\pi k i}{t - 1}, \qquad i = 0, \dots, t - 1,

for each coordinate. F gives the a_k, and so a smooth path with the right ends. It is x̂ itself: to
answer with what is missing to a share of z, as EDM's factors ask, F would have to undo the noise of
all t places, though a path has few degrees of freedom.

Source: Li and He (2025), "Back to Basics: Let Denoising Generative Models Denoise", on answering
with x̂ where data have few degrees of freedom; the modulation is that of Peebles and Xie (2023).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fpmc.checks import as_whole_number
from fpmc.networks.embedding import PositionalEmbedding
from fpmc.networks.layers import channels_in, linear

__all__ = ["Path"]


class Path(nn.Module):
    """The perceptron: paths and one noise condition each, to x̂.

    The first and the last place of the paths that come in are known, and so have no noise.

    Args:
        shape: The paths' (c, 1, t): coordinates, one row, places.
        xi: Whether ξ, noise of their shape, stands behind the paths as further channels.
        waves: K, sines for each coordinate that come in and that come out, from 1 to t − 2.
        width: Features, a multiple of 4, at least 8.
        depth: Blocks with a shortcut.

    Raises:
        TypeError: If a number is not a whole one, or xi neither true nor false.
        ValueError: If the shape is not one of paths, or a number is out of range.
    """

    direct = True
    """F is x̂, see :class:`fpmc.networks.Preconditioned`."""

    known: Bool[Tensor, "1 t"]

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        xi: bool = False,
        waves: int = 16,
        width: int = 128,
        depth: int = 3,
    ):
        super().__init__()
        c, h, t = shape
        if h != 1 or t < 3:
            raise ValueError(f"shape: got {tuple(shape)}, wanted (c, 1, t) with t of 3 or more")
        as_whole_number(waves, "waves", 1, t - 2)
        as_whole_number(width, "width", 8)
        as_whole_number(depth, "depth", 1)
        if width % 4:
            raise ValueError(f"width: got {width}, wanted a multiple of 4")
        along = torch.arange(t) / (t - 1)
        angles = math.pi * torch.arange(1, waves + 1)[:, None] * along
        self.register_buffer("sines", angles.sin(), persistent=False)  # (k, t)
        self.register_buffer("line", torch.stack([1 - along, along]), persistent=False)  # (2, t)
        known = torch.zeros(1, t, dtype=torch.bool)
        known[:, [0, -1]] = True
        self.register_buffer("known", known, persistent=False)
        self.map_noise = PositionalEmbedding(width)
        self.map_layer = linear(width, width)
        self.embed = linear(channels_in(shape, xi) * waves + 2 * c, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, c * waves)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.c, self.behind_xi = c, 2 * c  # the ends are the last columns of embed

    def forward(
        self, x: Float[Tensor, "b i 1 t"], condition: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c 1 t"]:
        ends = x[:, : self.c, 0][..., [0, -1]]  # (b, c, 2)
        inner = x[:, :, 0].masked_fill(self.known[0], 0)
        heights = inner @ self.sines.mT * (2 / (x.shape[-1] - 1)) ** 0.5  # of noise: variance 1
        features = self.embed(torch.cat([heights.flatten(1), ends.flatten(1)], dim=1))
        embedding = F.silu(self.map_layer(self.map_noise(condition)))
        for block in self.blocks:
            features = block(features, embedding)
        heights = self.out(self.norm(features)).unflatten(1, (self.c, -1))
        return (ends @ self.line + heights @ self.sines)[:, :, None]


class Block(nn.Module):
    """Two layers with a shortcut, shifted, scaled and gated by the noise level.

    Args:
        width: Features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1, self.fc2 = linear(width, 4 * width), linear(4 * width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "b e"], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b e"]:
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        hidden = F.gelu(self.fc1(self.norm(x) * (1 + scale) + shift), approximate="tanh")
        return x + (1 + gate) * self.fc2(hidden)
