"""What a run is judged by, and what is kept of it."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import fpmc
from fpmc.checks import as_answer, kind
from fpmc.collection import FPMC
from fpmc.finetuning.files import packed, write_level, write_text
from fpmc.finetuning.images import as_pixels, fingerprints
from fpmc.finetuning.settings import Settings
from fpmc.finetuning.sharing import Shared
from fpmc.finetuning.state import seed_of
from fpmc.metrics import Estimate
from fpmc.operators import Operator
from fpmc.source import Source

__all__ = ["HeldOut", "answer", "noisy", "write"]

PART = 64
"""Noisy images at a time."""

CUTS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0)
"""Shares of a row's peak below which entries may be left out of files, tried in this order."""

WORTH = 0.1
"""Of the validation error's standard error: what leaving entries out may cost."""

STREAMS = {"validation": 3, "test": 4}
"""The noise of each set is its own."""


class HeldOut:
    """Noisy images that are not tuned on, and a network's answers to them.

    Args:
        name: "validation" or "test".
        images: Clean images, shape (n, c, h, w), uint8 or floats in [-1, 1].
        network: What answers.
        settings: The run's: its noise level and seed.
        shape: The images' (c, h, w).
        shared: This process among those that share the run.

    Raises:
        TypeError: If the images are no pixel values, or the answer is no tensor.
        ValueError: If their shape is another, or the network's answer has another.
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        network: Callable[[Tensor, float], Tensor],
        settings: Settings,
        shape: tuple[int, int, int],
        shared: Shared,
    ):
        clean = Source(as_pixels(images, name, shape))
        self.prints, self.sigma, self.shared = fingerprints(clean), settings.sigma, shared
        x, generator = clean[:], seed_of(settings.seed, STREAMS[name])
        self.n, self.z = len(x), shared.own.part(noisy(x, self.sigma, generator, shared.device))
        self.target = answer(network, self.z, self.sigma, "network")

    def answer(self, denoiser: FPMC) -> Float[Tensor, "m c h w"]:
        """A collection's answers to this process's part of them."""
        return answer(self.shared.asked(denoiser), self.z, self.sigma)

    def errors(
        self, answers: Float[Tensor, "m c h w"], others: Float[Tensor, "m c h w"] | None = None
    ) -> Float[Tensor, " n"]:
        """The mean squared difference of answers to the network's per dimension, of each image; or
        to others.
        """
        apart = answers - (self.target if others is None else others)
        return self.shared.own.gathered(apart.double().square().flatten(1).mean(1), self.n)


def noisy(
    x: Float[Tensor, "b c h w"], sigma: float, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "b c h w"]:
    """Noisy images z ~ N(x, σ² I) on a device, with noise that is the same for every device."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32)
    return x.to(device) + sigma * noise.to(device)


@torch.no_grad()
def answer(
    denoiser: Callable[[Tensor, float], Tensor], z: Tensor, sigma: float, name: str = "denoiser"
) -> Tensor:
    """A denoiser's answer to many noisy images, some at a time.

    Raises:
        TypeError: If it is no tensor, or the denoiser cannot be called.
        ValueError: If it has another shape than z, or the denoiser is for images of another.
    """
    shape = tuple(z.shape[1:])
    if not callable(denoiser):
        raise TypeError(f"{name}: got {kind(denoiser)}, wanted a denoiser")
    if tuple(getattr(denoiser, "shape", shape)) != shape:
        raise ValueError(f"{name}: got one for images of {denoiser.shape}, wanted one for {shape}")
    try:
        parts = [as_answer(denoiser(part, sigma), part, name) for part in z.split(PART)]
    except RuntimeError as error:
        raise ValueError(f"{name}: cannot answer images of shape {shape} ({error})") from error
    return torch.cat(parts)


def write(run: Any, operators: tuple[Operator, Operator], card: dict[str, Any]) -> dict[str, Any]:
    """The card of a run that is over; if it has a folder, its files are written."""
    found = run.made(*operators)
    held = {
        name: run.best["errors"] if name == "validation" else held.errors(held.answer(found))
        for name, held in run.held_out.items()
    }
    card = {
        **card,
        **asdict(run.settings),
        "images": len(run.tuned),
        "source": len(run.source),
        "best_step": run.best["step"],
        "stopped": run.stopped,
        "seconds": round(run.seconds, 1),
        "start_to_given": run.errors["start_to_given"][0],
        "start": run.history[0]["validation"] if run.history else None,
        "device": str(run.shared.device),
        "precision": run.precision,
        "processes": run.shared.all.world,
        "versions": {"fpmc": fpmc.__version__, "torch": torch.__version__},
    }
    for name, errors in held.items():
        tuned, given = Estimate.of_samples(errors), run.errors[name]
        card[name] = {
            "images": len(errors),
            "given": given,
            "tuned": [float(tuned), tuned.standard_error],
        }
    if run.saved.folder is not None:
        folder, name = run.saved.folder, run.saved.name
        cuts, cost = _cuts(run, operators, held["validation"])
        card |= {"cuts": cuts, "cut_cost": cost}
        if run.shared.first:
            write_level(folder / f"{name}.safetensors", run.settings.sigma, *operators, cuts)
            write_text(folder, name, card, run.history)
    return card


def _cuts(run, operators, errors) -> tuple[tuple[float, float], float]:
    """The largest cuts that cost little on validation images, the same for all that is learned."""
    allowed = WORTH * Estimate.of_samples(errors).standard_error
    for cut in CUTS:
        cuts = tuple(cut if name in run.settings.learn else 0.0 for name in "qr")
        stored = [
            packed(op, part, covering=name == "r")
            for op, part, name in zip(operators, cuts, "qr", strict=True)
        ]
        kept = run.held_out["validation"]
        kept = kept.errors(kept.answer(run.made(*stored)))
        cost = (kept - errors).mean().item()
        if cost <= allowed:
            break
    return cuts, cost
