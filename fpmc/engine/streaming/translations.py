r"""Squares that also see the source's patches at the places of their boundary class.

A translation set turns the source of an estimator k into
:math:`S_k = \{T x_n : T \in \mathcal{T}_k\}`. An estimator sees a patch of z, and a patch of
:math:`T x_n` is another patch of :math:`x_n`: so the posterior runs over the patches at several
places, and a region's estimators share them. For all of a region's patches at once, the distances
are one matrix product,

.. math:: -\frac{\|z_k - x_{nk'}\|^2}{2\sigma^2} = \frac{z_k^\top x_{nk'} - \|x_{nk'}\|^2 / 2}
          {\sigma^2} + \text{const}(k),

with :math:`z_k` the patch of z at k and :math:`x_{nk'}` that of :math:`x_n` at k', flattened. All
of it is float64; the expansion cancels no more than it does in
:mod:`fpmc.engine.streaming.backend`.

The gradient with respect to :math:`z_k` is, with :math:`v_{nk'}` the pixel that is mixed and
:math:`s = g_k^\top (v_{nk'} - \hat x_k)`, of which the posterior's mean is 0,
:math:`\sum_{nk'} w\, s\, x_{nk'} / \sigma^2`.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.memory import CACHE_FRIENDLY, FLOAT64, too_small
from fpmc.engine.problem import Problem, log_weights
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.streaming.regions import Region, boundary_classes
from fpmc.modes import without_autograd

__all__ = ["Sizes", "Translations", "regions", "sizes", "tiles"]


class Sizes(NamedTuple):
    """b noisy images at a time; of those, so many patches against all patches of n images."""

    b: int
    rows: int
    n: int


class Translations:
    """A :class:`fpmc.engine.autograd.Backend` for clipped squares whose source is translated.

    For a region, a noisy and a source image it takes the square of the number of places times the
    number of values of a patch multiplications, and the square of the number of places
    exponentials.

    Args:
        problem: What is asked.
        local: What answers the same squares without translations, differentiably: a pixel in a
            corner shares its source patches with no other.
        fused: Whether the kernel of :mod:`fpmc.engine.cuda.patches` takes the products.
    """

    def __init__(self, problem: Problem, local: Callable[[Tensor], Tensor], *, fused: bool = False):
        self.problem, self.local, self.fused = problem, local, fused
        self._log_norms: list[Tensor] = []

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        answer = self.local(z)
        self._log_norms = []
        for region in regions(self.problem):
            parts = []
            for part, size in self._parts(z, region, back=False):
                softmaxes = self._sum(z[part], region, size)
                found = torch.cat([softmax.mean() for softmax in softmaxes])
                shape = (-1, region.rows.count, region.columns.count, z.shape[1])
                answer[(part, ..., *region.centres)] = found.view(shape).movedim(-1, 1).to(z)
                parts += [softmax.log_norm() for softmax in softmaxes]
            self._log_norms.append(torch.cat(parts))
        return answer

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        alone = gradient.clone()
        for region in regions(self.problem):
            alone[(..., *region.centres)] = 0
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (to_z,) = torch.autograd.grad(self.local(leaf), leaf, alone)
        to_z = to_z.double()
        if not self._log_norms:  # another path has answered
            self.answer(z)
        for region, log_norm in zip(regions(self.problem), self._log_norms, strict=True):
            for part, size in self._parts(z, region, back=True):
                places = slice(part.start * region.places, part.stop * region.places)
                inputs = (array[part].double() for array in (z, x_hat, gradient))
                self._add_slopes(region, size, *inputs, log_norm[places], to_z[part])
        return to_z.to(z)

    def _parts(self, z: Tensor, region: Region, *, back: bool) -> Iterator[tuple[slice, Sizes]]:
        """The batch in parts that fit the budget."""
        fused = self.fused and not back
        size = sizes(self.problem, len(z), region, z.device, back=back, fused=fused)
        for start in range(0, len(z), size.b):
            yield slice(start, min(start + size.b, len(z))), size

    def _sum(self, z: Tensor, region: Region, size: Sizes) -> list[OnlineSoftmax]:
        """The sums over the source, for some of the patches each."""
        wanted = region.patches(z.double()).split(size.rows)
        softmaxes, add = [OnlineSoftmax() for _ in wanted], _add
        if self.fused:
            from fpmc.engine.cuda.patches import add
        for values, patches, bias in tiles(self.problem, region, size.n, z.device):
            for rows, softmax in zip(wanted, softmaxes, strict=True):
                add(softmax, rows, patches, bias, values, self.problem.sigma)
        return softmaxes

    def _add_slopes(self, region, size, z, x_hat, gradient, log_norm, to_z) -> None:
        """Add a region's part of the gradient with respect to z."""
        g = region.pixels(gradient)
        average = (g * region.pixels(x_hat)).sum(1, keepdim=True)
        wanted = region.patches(z)
        total = torch.zeros_like(wanted)
        for values, patches, bias in tiles(self.problem, region, size.n, z.device):
            for start in range(0, len(wanted), size.rows):
                rows = slice(start, start + size.rows)
                ell = torch.addmm(bias, wanted[rows], patches.T, alpha=self.problem.sigma**-2)
                weights = ell.sub_(log_norm[rows, None]).exp_()
                weights *= (g[rows] @ values.T).sub_(average[rows])
                total[rows].addmm_(weights, patches, alpha=self.problem.sigma**-2)
        region.add_patches(total, to_z)


def _add(softmax, z, x, bias, values, sigma) -> None:
    """What :func:`fpmc.engine.cuda.patches.add` does, by a product in PyTorch."""
    ell = torch.addmm(bias, z, x.T, alpha=sigma**-2)
    softmax.add(softmax.weigh(softmax.take(ell)) @ values)


def regions(problem: Problem) -> list[Region]:
    """The boundary classes of more than one pixel, the middle first if it is one."""
    return list(boundary_classes(*problem.queries.shape, problem.queries.p))


def tiles(
    problem: Problem, region: Region, n: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "m c"], Float[Tensor, "m d"], Float[Tensor, " m"]]]:
    """For each tile of n source images: the pixels at the patches' places, the patches, and what ℓ
    has without z.
    """
    source = problem.source
    prior = log_weights(source, torch.empty(0, dtype=torch.float64, device=device))
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = source.read(index, torch.float64, device)
        patches = region.patches(x)
        bias = patches.square().sum(1).mul_(-0.5 / problem.sigma**2)
        if prior is not None:
            bias += prior[index].repeat_interleave(region.places)
        yield region.pixels(x), patches, bias


def sizes(
    problem: Problem,
    batch: int,
    region: Region,
    device: torch.device,
    *,
    back: bool,
    fused: bool = False,
) -> Sizes:
    """Sizes that keep the budget, and on a CPU arrays in cache.

    Args:
        problem: What is asked.
        batch: Number of noisy images.
        region: The boundary class with most places.
        device: Where.
        back: Whether for gradients.
        fused: Whether the kernel of :mod:`fpmc.engine.cuda.patches` takes the products.

    Raises:
        ValueError: If the budget is too small for a patch against one source image's.
    """
    source, budget = problem.source, problem.budget
    places, c = region.places, source.shape[0]
    dimensions, d = math.prod(source.shape), c * region.rows.side * region.columns.side
    per_z = (2 * dimensions + places * (2 * d + 6 * c + 8)) * FLOAT64
    per_x = (5 * dimensions + places * (3 * d + 3 * c + 6)) * FLOAT64
    per_pair = places * FLOAT64  # one patch of z against an image's
    if back:
        per_z += (4 * dimensions + places * 2 * d) * FLOAT64
        per_pair *= 2
    once = 0
    if fused:
        from fpmc.engine.cuda.patches import memory

        once, per_row = memory(c, device)
        per_z, per_pair = per_z + places * per_row, 0
    least = once + per_z + per_x + per_pair
    if budget < least:
        raise too_small(budget, least, f"{places} patches of an image of shape {source.shape}")
    cached = CACHE_FRIENDLY // 8 if device.type == "cpu" else budget
    b = max(1, min(batch, (budget - once) // 4 // per_z))
    room = budget - once - b * per_z
    if fused:
        return Sizes(b, b * places, max(1, min(len(source), room // per_x)))
    most = max(1, min(len(source), min(room // 2, cached) // per_x))
    pairs = max(1, min(room - most * per_x, cached) // per_pair)
    n = min(most, max(math.isqrt(pairs // places), pairs // (b * places), 1))
    return Sizes(b, min(b * places, pairs // n), n)
