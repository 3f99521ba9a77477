r"""Tuning a collection to a network at one noise level.

.. math:: \min_{Q, R}\ \mathbb{E}_{x \sim \mathcal{D},\, z \sim p_\sigma(z|x)}
          \tfrac1D \|D_\text{network}(z, \sigma) - D_{Q,R}(z, \sigma)\|^2

Source: Niedoba et al. (2026), equation (11) with λ = 1, and section C.3.
"""

import os
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fpmc.checks import as_device, as_not_negative
from fpmc.collection import FPMC, Operators
from fpmc.diffusion import Denoiser
from fpmc.finetuning.images import Tuned, digest, disjoint, see_some_left
from fpmc.finetuning.module import SoftFPMC
from fpmc.finetuning.outcome import HeldOut, answer, noisy, write
from fpmc.finetuning.settings import Settings
from fpmc.finetuning.sharing import Shared
from fpmc.finetuning.state import Saved, seed_of, stopping
from fpmc.metrics import Estimate
from fpmc.operators import Operator
from fpmc.processes import Processes, processes
from fpmc.source import Source

__all__ = ["FineTuned", "finetune"]


class FineTuned(NamedTuple):
    """What tuning found.

    Attributes:
        denoiser: The collection with the least validation error, at the one noise level.
        history: A row for each validation: step, training loss since the last, validation error and
            its standard error.
        card: Settings, errors of the given collection, of the start and of what is returned, and
            why the run stopped early if it did.
    """

    denoiser: FPMC
    history: list[dict[str, float]]
    card: dict[str, Any]


def finetune(
    denoiser: FPMC,
    network: Denoiser,
    images: Tensor | None,
    sigma: float,
    *,
    validation: Tensor,
    test: Tensor | None = None,
    out: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    share: str | None = None,
    budget: int | None = None,
    save_minutes: float = 2.0,
    progress: bool = True,
    card: Mapping[str, Any] | None = None,
    **settings: Any,
) -> FineTuned:
    """Tune a collection's queries, responses or both at a noise level.

    A step draws images, adds noise, asks the network, and moves θ against the gradient of the mean
    squared difference. The images themselves, and all copies of them, are left out of the source
    meanwhile: they are looked up in it by their pixels. With them in it, ever larger queries would
    find them. What is returned is the collection, of the one given and all that were validated,
    whose validation error over the full source is least: never worse than what was given.

    With ``out``, the folder then holds the level's operators, history and card (see
    :mod:`fpmc.finetuning.files`) and the state, from which the same call goes on after a stop at
    any moment, to the same bits. SIGTERM saves it and ends the program with status 143.

    Args:
        denoiser: What is tuned: its operators at the level, and its source. Validation, and what is
            returned, have its precision; steps are float32.
        network: What it is tuned to, on the device.
        images: Images to tune on, shape (n, c, h, w), uint8 or floats in [-1, 1]; the source's own
            if None.
        sigma: The noise level σ > 0.
        validation: Images that choose among checkpoints. None may be in the source.
        test: Images that are reported on, and choose nothing.
        out: A folder; made if it is not there.
        device: Where.
        share: What the processes that torchrun started share, all of which make this call: the
            noisy "images", or the "source" where it is too large or too slow for one device (see
            :mod:`fpmc.finetuning.sharing`). On CUDA each takes one GPU. If left out, this process
            is alone.
        budget: Bytes of working memory of a call; 1 GiB if left out.
        save_minutes: How often to save.
        progress: Whether to show a progress bar.
        card: What else the card shall hold.
        **settings: See :class:`fpmc.finetuning.settings.Settings`: learn, steps, batch, rate,
            weight_decay, subset, every, mapping, zeros, cut, seed.

    Raises:
        TypeError: If an argument is of another type, or the denoiser has no operators.
        ValueError: If a setting lies outside its range, an image is in two of the sets, a batch is
            all that there is of the source, the network is for images of another shape, or ``out``
            cannot be written to or holds another run.
        OSError: If a file cannot be written; what was saved before stays.

    A loss that is not finite ends the run with a warning, and with the best collection so far.
    """
    save_minutes = as_not_negative(save_minutes, "save_minutes", finite=False)
    own = processes(as_device(device)) if share else nullcontext(Processes(as_device(device)))
    with own as joined:
        run = _Run(
            denoiser,
            network,
            Tuned(images, _source(denoiser)),
            {"validation": validation} | ({} if test is None else {"test": test}),
            Settings(sigma, **settings),
            Shared(joined, share or "images"),
            budget,
            out,
        )
        run.go(save_minutes, progress)
        return run.outcome(dict(card or {}))


def _source(denoiser: Any) -> Source:
    if not isinstance(denoiser, FPMC):
        raise TypeError(
            f"denoiser: got {type(denoiser).__name__}, wanted an fpmc.FPMC: what has no operators "
            "at a noise level cannot be tuned"
        )
    return denoiser.source


class _Run:
    """One run: the module, the optimizer, and what is known of both so far."""

    def __init__(self, denoiser, network, tuned, held_out, settings, shared, budget, out):
        self.network, self.tuned, self.settings, self.shared = network, tuned, settings, shared
        self.device = shared.device
        shared.check(settings.batch, settings.subset)
        if denoiser.features(settings.sigma) is not None:
            raise ValueError("denoiser: got one with features, wanted one that compares in pixels")
        self.given: tuple[Operator, Operator] = denoiser.operators(settings.sigma)
        self.source, self.budget, self.precision = denoiser.source, budget, denoiser.precision
        if settings.subset is not None and settings.subset > len(self.source):
            raise ValueError(
                f"subset: got {settings.subset}, wanted at most the source's {len(self.source)}"
            )
        options = {"mapping": settings.mapping, "zeros": settings.zeros, "budget": budget}
        module = SoftFPMC(*self.given, self.source, settings.learn, **options)
        self.module = module.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), settings.rate, weight_decay=settings.weight_decay
        )
        self.held_out = {
            name: HeldOut(name, images, network, settings, self.source.shape, shared)
            for name, images in held_out.items()
        }
        prints = {name: held.prints for name, held in self.held_out.items()}
        disjoint(images=tuned.prints, **prints)
        data = digest(tuned.prints, *prints.values(), *self.module.parameters())
        data += "" if self.precision == "exact" else f", {self.precision}"
        self.step, self.seconds, self.stopped = 0, 0.0, None
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.errors: dict[str, list[float]] = {}
        self.best = {"step": None, "error": None, "errors": None, "theta": None}
        self.saved = Saved(out, settings, data)
        self.saved.resume(self)

    @property
    def every(self) -> int:
        """Steps between validations."""
        return self.settings.every or -(-len(self.tuned) // self.settings.batch)

    def go(self, save_minutes: float, progress: bool) -> None:
        """Take what steps are left."""
        if not self.history:
            self.begin()
            self.saved.write(self)
        last = time.monotonic()
        with (
            stopping(self.saved.folder is not None) as wanted,
            tqdm(
                total=self.settings.steps,
                initial=self.step,
                unit="step",
                mininterval=1.0 if sys.stderr.isatty() else 60.0,
                disable=not progress or not self.shared.first,
            ) as bar,
        ):
            while self.step < self.settings.steps and self.stopped is None:
                started = time.monotonic()
                self.advance()
                due = self.step % self.every == 0 or self.step == self.settings.steps
                if due and self.stopped is None:
                    self.validate()
                    row = self.history[-1]
                    bar.set_postfix(validation=f"{row['validation']:.5f}")
                bar.update()
                now = time.monotonic()
                self.seconds += now - started
                (over,) = self.shared.all.agree(wanted())
                if over or now - last > 60 * save_minutes:
                    self.saved.write(self)
                    last = now
                if over:
                    raise SystemExit(143)

    def made(self, queries: Operators, responses: Operators) -> FPMC:
        """A collection over the source, as precise as the given one."""
        collection = FPMC(queries, responses, self.source, budget=self.budget)
        return collection.with_precision(self.precision)

    def begin(self) -> None:
        """Validate what was given, and the start."""
        given = {name: held.answer(self.made(*self.given)) for name, held in self.held_out.items()}
        for name, held in self.held_out.items():
            each = held.errors(given[name])
            found = Estimate.of_samples(each)
            self.errors[name] = [float(found), found.standard_error]
            if name == "validation":
                self.best = {"step": None, "error": float(found), "errors": each, "theta": None}
        start = self.held_out["validation"].answer(self.made(*self.module.frozen()))
        apart = self.held_out["validation"].errors(start, given["validation"])
        self.errors["start_to_given"] = [apart.mean().item()]
        self.validate(start)

    def advance(self) -> None:
        """One step: images, noise, the network's answer, the gradient, θ."""
        settings, size = self.settings, self.settings.batch
        steps = range(self.step * size, (self.step + 1) * size)
        index = torch.tensor([self.saved.place(i, len(self.tuned)) for i in steps])
        x, generator = self.tuned.read(index), seed_of(settings.seed, 1, self.step)
        z = noisy(x, settings.sigma, generator, self.device)
        target = answer(self.network, self.shared.own.part(z), settings.sigma, "network")
        only = None
        if settings.subset is not None:
            drawn = torch.randperm(len(self.source), generator=seed_of(settings.seed, 2, self.step))
            only = drawn[: settings.subset].sort().values
        options = {"without": self.tuned.positions(index), "only": only, "cut": settings.cut}
        see_some_left(self.source, options["without"], only, size)
        self.optimizer.zero_grad()
        loss = self.shared.backward(self.module, z, target, settings.sigma, **options)
        if not loss.isfinite():
            self.stop("the loss is not finite")
            return
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())

    def validate(self, answers: Tensor | None = None) -> None:
        """A row of the history, and the best so far; of these answers, if they are there."""
        if not self.module.sound():
            self.stop("Q or R is beyond what float32 holds")
            return
        held = self.held_out["validation"]
        answers = held.answer(self.made(*self.module.frozen())) if answers is None else answers
        each = held.errors(answers)
        found = Estimate.of_samples(each)
        loss = sum(self.losses) / len(self.losses) if self.losses else float("nan")
        self.losses = []
        self.history.append(
            {
                "step": self.step,
                "loss": loss,
                "validation": float(found),
                "standard_error": found.standard_error,
            }
        )
        if found < self.best["error"]:
            theta = {name: value.clone() for name, value in self.module.state_dict().items()}
            self.best = {
                "step": self.step, "error": float(found), "errors": each, "theta": theta
            }  # fmt: skip

    def stop(self, reason: str) -> None:
        """End the run early."""
        best = "what was given" if self.best["step"] is None else f"step {self.best['step']}"
        self.stopped = f"{reason} at step {self.step + 1}"
        warnings.warn(f"{self.stopped}: {best} is kept; try a lower rate", stacklevel=4)

    def outcome(self, card: dict[str, Any]) -> FineTuned:
        """The best collection, kept if there is a folder."""
        self.saved.write(self)
        operators = self.given
        if self.best["theta"] is not None:
            self.module.load_state_dict(self.best["theta"])
            operators = self.module.frozen()
        card = write(self, operators, card)
        sigma = self.settings.sigma
        found = self.made(*({sigma: op} for op in operators))
        return FineTuned(found, self.history, card)
