"""Compiled loops as a path: what squares and whole images on a CPU have in common."""

from abc import abstractmethod
from functools import partial

from jaxtyping import Float
from torch import Tensor

from fpmc.engine.cpu.threads import Need, Share, in_parts, share
from fpmc.engine.streaming.backend import Streaming

__all__ = ["Looped"]


class Looped(Streaming):
    """Compiled loops, there and back, as many noisy images at a time as the budget allows.

    The arguments are those of :class:`Streaming`, which goes back where the budget is enough for
    the loops' answer alone.
    """

    lanes = 1
    """Source images that threads cannot share."""

    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        size = self._share(z, back=False)
        return in_parts(partial(self.there, size.threads), size.b, z)

    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        size = self._share(z, back=True)
        if size is None:
            return super().vjp(z, x_hat, gradient)
        batches = (z, x_hat, gradient, *self.kept())
        return in_parts(partial(self.back, size.threads), size.b, *batches)

    def kept(self) -> tuple[Tensor, ...]:
        """What an answer leaves for the way back, along the batch."""
        return ()

    @abstractmethod
    def need(self, *, back: bool) -> Need:
        """The working memory of the loops, there or back."""

    @abstractmethod
    def there(self, threads: int, z: Tensor) -> Tensor:
        """The answers, on so many threads."""

    @abstractmethod
    def back(self, threads: int, *batches: Tensor) -> Tensor:
        """The gradients with respect to z, given z, the answers, their gradients, and the kept."""

    def _share(self, z: Tensor, *, back: bool) -> Share | None:
        return share(self.need(back=back), len(z), self.lanes, len(self.source), self.budget)
