"""How processes share a run of tuning: the noisy images of each step, or the source."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from fpmc.collection import FPMC
from fpmc.denoiser import DropIn
from fpmc.distributed import Distributed
from fpmc.finetuning.module import SoftFPMC
from fpmc.processes import Processes

__all__ = ["SHARE", "Shared"]

SHARE = ("images", "source")
"""What processes may share."""


class Shared:
    """One process among those that share a run.

    With "images", each asks the network, sums over the source and finds the gradient for its part
    of a step's noisy images, and for its part of those that are held out. With "source", each sums
    over its part of the source, for all noisy images (see :class:`fpmc.distributed.Distributed`).
    Either way all have the same θ after a step, and it is the step of one process but for rounding.

    Args:
        processes: This process among all.
        share: "images" or "source".

    Attributes:
        first: Whether this is the process that writes files and shows progress.
        device: Where it computes.

    Raises:
        ValueError: If share is neither.
    """

    def __init__(self, processes: Processes, share: str):
        if share not in SHARE:
            raise ValueError(f"share: got {share!r}, wanted one of {', '.join(SHARE)}")
        self.all, self.first, self.device = processes, processes.rank == 0, processes.device
        self.by_source = share == "source" and processes.world > 1
        self.own = Processes(self.device) if self.by_source else processes

    def check(self, batch: int, subset: int | None) -> None:
        """See that a run's steps can be shared.

        Raises:
            ValueError: If there are fewer images in a batch than processes, or the source would
                be shared and a subset of it drawn.
        """
        if batch < self.own.world:
            raise ValueError(
                f"batch: got {batch}, wanted at least as many images as the {self.own.world} "
                "processes that share them"
            )
        if self.by_source and subset is not None:
            raise ValueError(
                f"subset: got {subset} with a shared source, wanted None: share the images, or "
                "take all of the source"
            )

    def asked(self, collection: FPMC) -> DropIn:
        """What this process asks in place of a collection."""
        return Distributed(collection) if self.by_source else collection

    def backward(
        self,
        module: SoftFPMC,
        z: Float[Tensor, "b c h w"],
        target: Float[Tensor, "part c h w"],
        sigma: float,
        without: Int[Tensor, " m"],
        **options: Any,
    ) -> Float[Tensor, ""]:
        """Add the gradient of a step's loss to the module's parameters; the loss.

        Args:
            module: What is tuned.
            z: All noisy images of the step.
            target: The network's answers to this process's part of them.
            sigma: The noise level σ > 0.
            without: Positions of source images that are left out.
            **options: ``only`` and ``cut`` of :meth:`SoftFPMC.loss`.
        """
        if self.by_source:
            source = module.source.without(without) if len(without) else module.source
            collection = FPMC(*module.operators(), source, budget=module.budget)
            loss = (Distributed(collection)(z, sigma) - target).square().mean()
            loss.backward()
            return loss.detach()
        part = self.own.part(z)
        loss = module.loss(part, target, sigma, without, **options) * (len(part) / len(z))
        loss.backward()
        for theta in module.parameters():
            theta.grad = self.own.sum(theta.grad)
        return self.own.sum(loss.detach())
