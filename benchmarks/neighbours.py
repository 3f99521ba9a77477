"""Truncations: a method that sums over a few source images alone, chosen for each noisy one.

What a user would try first. A chooser says which source images a noisy one keeps, and
:class:`Truncated` asks the method with them as its whole source. FAISS is imported when needed.
"""

from collections.abc import Callable
from copy import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fpmc import Source

__all__ = ["Golden", "Nearest", "RandomPart", "Truncated", "certificate"]

Chooser = Callable[[Float[Tensor, "b c h w"], float], list[Int64[Tensor, " k"]]]


class Truncated:
    """A method on each noisy image's own part of a source.

    Args:
        make: The method, from a source to a denoiser.
        source: All images, uniformly weighted.
        choose: Positions of the images that stay, for each noisy one.
    """

    def __init__(self, make: Callable[[Source], Callable], source: Source, choose: Chooser):
        self.make, self.source, self.choose = make, source, choose

    def __call__(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        own = zip(z.split(1), self.choose(z, sigma), strict=True)
        images = self.source.images
        return torch.cat([self.make(Source(images[chosen]))(one, sigma) for one, chosen in own])


class Nearest:
    """The k source images that are nearest to z, found by FAISS.

    Args:
        source: All images.
        k: How many stay, from 1 to N.
        lists: Inverted lists (IVF) that the images are sorted into by k-means; 0 to compare with
            all images, which is exact.
        probes: Lists that are looked at. Fewer than k images stay if they hold fewer.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If k is out of range.

    Source: Douze et al. (2024), IndexFlatL2 and IndexIVFFlat.
    """

    def __init__(self, source: Source, k: int, lists: int = 0, probes: int = 1):
        try:
            import faiss
        except ImportError as error:
            told = "faiss: not installed, wanted pip install 'fpmc[neighbours]'"
            raise ImportError(told) from error
        if not 1 <= k <= len(source):
            raise ValueError(f"k: got {k}, wanted 1 to {len(source)}")
        faiss.omp_set_num_threads(torch.get_num_threads())
        rows = source[:].flatten(1).contiguous().numpy()
        self.k, self.index = k, faiss.IndexFlatL2(rows.shape[1])
        if lists:
            self.index = faiss.IndexIVFFlat(self.index, rows.shape[1], lists)
            self.index.train(rows)
            self.index.nprobe = probes
        self.index.add(rows)

    def of(self, k: int) -> "Nearest":
        """The same index, asked for another number of images."""
        other = copy(self)
        other.k = k
        return other

    def __call__(self, z: Float[Tensor, "b c h w"], sigma: float) -> list[Int64[Tensor, " k"]]:
        found = self.index.search(z.flatten(1).float().contiguous().numpy(), self.k)[1]
        return [row[row >= 0] for row in torch.from_numpy(found)]


class Golden:
    r"""GoldDiff's rule: a golden subset from coarse to fine, its sizes by the noise level.

    With the share of noise :math:`g = \sigma / \sqrt{1 + \sigma^2}`, the m images that are nearest
    in means over 2 × 2 blocks are candidates, and of those the k that are nearest in pixels stay:

    .. math:: m = k_\text{max} + (N - k_\text{max}) (1 - g) , \qquad
              k = k_\text{max} - (k_\text{max} - k_\text{min}) (1 - g) .

    So high noise keeps many images of few candidates. The published sizes are N / 20 and N / 10.

    Args:
        source: All images.
        least: k_min, at least 1.
        most: k_max, from k_min to N.
        drawn: As the authors' code does it: m images are drawn at random, k_max of those are
            candidates, by blocks, and k stay.
        seed: Of these draws.

    Raises:
        ValueError: If a size is out of range, or the images' sides are odd.

    Source: Shang et al. (2026), section 3.4, equations (4) and (6), as their code at 4c0ba1d
    (github.com/shangxinyi/GoldDiff) sets and names them.
    """

    def __init__(
        self, source: Source, least: int, most: int, *, drawn: bool = False, seed: int = 0
    ):
        if not 1 <= least <= most <= len(source):
            raise ValueError(
                f"sizes: got {least} and {most}, wanted 1 ≤ least ≤ most ≤ {len(source)}"
            )
        if any(side % 2 for side in source.shape[1:]):
            raise ValueError(f"source: got sides {source.shape[1:]}, wanted even ones")
        self.least, self.most, self.drawn = least, most, drawn
        self.noise = torch.Generator().manual_seed(seed)
        self.fine = source[:].flatten(1)
        self.coarse = avg_pool2d(source[:], 2).flatten(1)

    def of(self, least: int, most: int, *, drawn: bool = False) -> "Golden":
        """The rule with other sizes, over the same arrays."""
        other = copy(self)
        other.least, other.most, other.drawn = least, most, drawn
        return other

    def sizes(self, sigma: float) -> tuple[int, int]:
        """How many candidates, m, and how many that stay, k, at a noise level."""
        clear = 1 - sigma / (1 + sigma**2) ** 0.5
        m = self.most + (len(self.fine) - self.most) * clear
        return round(m), round(self.most - (self.most - self.least) * clear)

    def __call__(self, z: Float[Tensor, "b c h w"], sigma: float) -> list[Int64[Tensor, " k"]]:
        m, k = self.sizes(sigma)
        pools = avg_pool2d(z, 2).flatten(1)
        return [self._of(*pair, m, k) for pair in zip(z.flatten(1), pools, strict=True)]

    def _of(self, z: Tensor, pooled: Tensor, m: int, k: int) -> Int64[Tensor, " k"]:
        if self.drawn:
            among = torch.randperm(len(self.fine), generator=self.noise)[:m]
            among = among[_nearest(pooled, self.coarse[among], self.most)]
        else:
            among = _nearest(pooled, self.coarse, m)
        return among[_nearest(z, self.fine[among], k)]


class RandomPart:
    """The same k images for all z, drawn once: fewer source images, and no search."""

    def __init__(self, source: Source, k: int, seed: int = 0):
        noise = torch.Generator().manual_seed(seed)
        self.source = Source(source.images[torch.randperm(len(source), generator=noise)[:k]])


def certificate(
    z: Float[Tensor, "b c h w"], sigma: float, source: Source, chosen: list[Int64[Tensor, " k"]]
) -> float:
    r"""How far the optimal denoiser's answer to the k nearest images may be off in any pixel.

    No image that goes is nearer than the last that stays, so all that go have at most the share

    .. math:: \beta = (N - k) e_k \Big/ \Big( \sum_{i \le k} e_i + (N - k) e_k \Big) , \qquad
              e_i = \exp(- \lVert z - x_i \rVert^2 / 2 \sigma^2) ,

    of the weight, and values lie in [−1, 1]: at most 2 β.

    Returns:
        The largest 2 β of the noisy images.
    """
    worst = 0.0
    for one, own in zip(z.double().flatten(1), chosen, strict=True):
        images = source.read(own, torch.float64).flatten(1)
        logits = -(one - images).square().sum(1) / (2 * sigma**2)
        gone = (logits.min() - logits.max()).exp() * (len(source) - len(own))
        worst = max(worst, (2 * gone / ((logits - logits.max()).exp().sum() + gone)).item())
    return worst


def _nearest(z: Float[Tensor, " d"], x: Float[Tensor, "n d"], k: int) -> Int64[Tensor, " k"]:
    """Positions of the k rows nearest to z."""
    if k >= len(x):
        return torch.arange(len(x))
    return (x.square().sum(1) - 2 * (x @ z)).topk(k, largest=False).indices
