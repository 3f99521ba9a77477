"""What a first pass over the source keeps for the second, where the budget has room for it."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.problem import Problem
from fpmc.engine.softmax import CUTOFF
from fpmc.engine.streaming.arithmetic import Dtypes, read, tiles
from fpmc.engine.streaming.sizes import Tile

__all__ = ["Kept", "significant"]


class Kept:
    """Log-weights of the whole source, if there is room, and the source's tiles once more.

    Args:
        z_t: Noisy images, pixels first, float64.
        problem: What is asked, Q ready to act on log-weights' type.
        size: How much of the source at a time, and whether anything is kept.
        types: The types to compute in.
        slopes: Whether s is kept beside the log-weights.
    """

    def __init__(
        self,
        z_t: Float[Tensor, "c h w b"],
        problem: Problem,
        size: Tile,
        types: Dtypes,
        *,
        slopes: bool = False,
    ):
        self.z_t, self.problem, self.size, self.types = z_t, problem, size, types
        if size.kept:
            shape = (-(-len(problem.source) // size.n), problem.queries.k, z_t.shape[-1])
            self.peaks = z_t.new_empty(shape)
            self.t = z_t.new_empty(*shape, size.n, dtype=types.weights)
            self.s = torch.empty_like(self.t) if slopes else None

    def first(self) -> Iterator[tuple[Tensor, Float[Tensor, "k b n"]]]:
        """Images and log-weights of every tile."""
        return tiles(self.z_t, self.problem, self.size.n, self.types.log_weights)

    def put(self, i: int, peak: Tensor, t: Tensor, s: Tensor | None = None) -> None:
        """Keep log-weights less their running maximum, and s, of the i-th tile."""
        if self.size.kept:
            self.peaks[i] = peak
            self.t[i, ..., : t.shape[-1]] = t
            if s is not None:
                self.s[i, ..., : s.shape[-1]] = s

    def again(
        self, log_norm: Float[Tensor, "k b"]
    ) -> Iterator[tuple[Tensor, Float[Tensor, "k b n"], Tensor | None]]:
        """Images, logarithms of weights and s of every tile, as they were kept or anew."""
        if not self.size.kept:
            norm = log_norm.to(self.types.log_weights).unsqueeze(-1)
            for x, ell in self.first():
                yield x, ell.sub_(norm).to(self.types.weights), None
            return
        like, source, n = self.z_t.to(self.types.log_weights), self.problem.source, self.size.n
        for i, (peak, t) in enumerate(zip(self.peaks, self.t, strict=True)):
            x = read(source, slice(i * n, min((i + 1) * n, len(source))), like)
            t = t[..., : x.shape[-1]].add_((peak - log_norm).to(t).unsqueeze(-1))
            yield x, t, None if self.s is None else self.s[i, ..., : x.shape[-1]]


def significant(t: Float[Tensor, "k b n"]) -> Tensor | slice:
    """The images of a tile of which some weight counts; all, if that is most of them."""
    use = t.flatten(0, 1).amax(0) > -CUTOFF
    return slice(None) if 2 * int(use.sum()) > len(use) else use
