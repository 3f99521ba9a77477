"""The training loop: steps, saved states, a limit of time. It knows no loss and no network."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fpmc.forecast import Forecast
from fpmc.limits import TERMINATED, OutOfTimeError, termination
from fpmc.networks.training.states import Stateful, read_state, restore, write_state
from fpmc.processes import ALONE, Processes

__all__ = ["Batches", "Loop", "Optimizer", "seed_of"]


@runtime_checkable
class Batches(Stateful, Protocol):
    """An endless iterator that can be put back to where it was."""

    def __next__(self) -> Any: ...


@runtime_checkable
class Optimizer(Stateful, Protocol):
    """What PyTorch's optimizers have in common."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


@dataclass(kw_only=True)
class Loop:
    r"""Repeat :math:`\theta \leftarrow \text{optimizer}(\theta, \nabla_\theta \, \text{loss})`.

    What was done is saved every few minutes, when time is up, at the end and on SIGTERM. A run
    that was stopped at any moment, killed included, and goes on from what was saved ends with the
    same bits as one that was not: the global generator is seeded before every step by the seed and
    the step's number, and the batches say where they are. (A budget in minutes ends where it ends.)

    Attributes:
        step: What gives a batch's loss, a tensor of no dimension; the loop takes its gradient.
        batches: Where the batches come from.
        optimizer: Moves the parameters; several are one that calls each.
        parts: What else is saved and put back, by name: the module, an average of it.
        identity: What makes this run the one it is, numbers, text and lists; another's state in
            ``path`` is an error.
        path: The file of the state; nothing is saved if left out.
        budget: How much to do of what is counted; 0 if the budget is in minutes alone.
        minutes: How many minutes to take; 0 if the budget is not in minutes.
        rate: From the share of the budget that is spent to the learning rate; the optimizer's own
            if left out.
        after: Called with the number of steps done after every update.
        validate: More columns of a row of the curve: {name: value}.
        save: Called after the state is saved: what others read is written here.
        counted: What the curve and the bar count, and how many of it a step has.
        row_every: From the number counted so far to how many make a row of the curve.
        seed: Seed of what is drawn from the global generator inside steps.
        description: What the progress bar calls the work.
        processes: This process among those that share the work.
        done: Steps done; set by :meth:`resume` and :meth:`run`, as the two below.
        seconds: Seconds spent.
        rows: The curve: {counted: n, "minutes": m, "loss": mean since the last row, ...}.
    """

    step: Callable[[Any], Tensor]
    batches: Batches
    optimizer: Optimizer
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    budget: int = 0
    minutes: float = 0.0
    rate: Callable[[float], float] | None = None
    after: Callable[[int], None] | None = None
    validate: Callable[[], Mapping[str, float]] | None = None
    save: Callable[[], None] | None = None
    counted: tuple[str, int] = ("steps", 1)
    row_every: Callable[[int], int] = lambda count: 100
    seed: int = 0
    description: str = "training"
    processes: Processes = ALONE
    done: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (self.budget > 0 or 0 < self.minutes < math.inf):
            raise ValueError(
                f"budget: got {self.budget} {self.counted[0]}, {self.minutes} minutes, wanted one "
                "above 0"
            )

    @property
    def share(self) -> float:
        """The share of the budget that is spent; 1 or more at its end."""
        counted = self.count / self.budget if self.budget else 0.0
        timed = self.seconds / 60 / self.minutes if self.minutes else 0.0
        return max(counted, timed)

    @property
    def count(self) -> int:
        """Steps done, times what a step counts."""
        return self.done * self.counted[1]

    def resume(self) -> bool:
        """Take up the state in ``path``; whether there was one.

        Raises:
            ValueError: If it cannot be read, or is another run's.
        """
        if self.path is None or not self.path.exists():
            return False
        state = read_state(self.path, self.identity, self.processes.device)
        restore(self.path, self._everything, state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What the loop itself has to remember."""
        return {name: getattr(self, name) for name in ("done", "seconds", "rows", "pending")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.done, self.seconds = state["done"], state["seconds"]
        self.rows, self.pending = list(state["rows"]), list(state["pending"])

    def run(
        self, *, save_minutes: float = 2.0, limit: float = math.inf, progress: bool = True
    ) -> None:
        """Do what is left of the budget.

        Args:
            save_minutes: How often to save.
            limit: Minutes from now after which to save and stop; at least one step is done.
            progress: Whether to show a bar, and to say how long it will take.

        Raises:
            fpmc.limits.OutOfTimeError: If the limit came first; ``resume`` and ``run`` go on.
            SystemExit: With :data:`fpmc.limits.TERMINATED`, after a SIGTERM, all saved.
            FloatingPointError: If the loss is not finite; what was saved before is kept.
            OSError: If a file cannot be written; likewise.
        """
        end, saved = (time.monotonic() + 60 * minutes for minutes in (limit, save_minutes))
        started = time.monotonic() - self.seconds
        with torch.random.fork_rng(), termination() as told, self._bar(progress) as bar:
            forecast = Forecast(self.description, "step")
            share, _ = self.processes.agree(self.share, 0)
            while share < 1:
                self._advance(share)
                self.seconds = time.monotonic() - started
                bar.update(self.counted[1])
                if self._is_row():
                    self._row()
                    bar.set_postfix(loss=f"{self.rows[-1]['loss']:.4f}")
                if time.monotonic() > saved:
                    self.write()
                    saved = time.monotonic() + 60 * save_minutes
                late = float(told() or time.monotonic() >= end)
                share, late = self.processes.agree(self.share, late)
                if share < 1 and late:
                    self._stop(told())
                if not bar.disable:
                    self._tell(forecast, bar)
            if self.pending:
                self._row()
            self.write()
            if told():
                sys.exit(TERMINATED)

    def write(self) -> None:
        """Save the state, then what :attr:`save` writes.

        Raises:
            FloatingPointError: If the loss is not finite; nothing is written.
        """
        losses = [row["loss"] for row in self.rows[-1:]] + self.pending
        if not all(math.isfinite(loss) for loss in losses):
            kept = "" if self.path is None else f". What was saved before is in {self.path.parent}"
            raise FloatingPointError(
                f"the loss is not finite after {self.count:,} {self.counted[0]}; try a lower "
                f"rate{kept}"
            )
        if self.processes.rank > 0:
            return
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            parts = {name: part.state_dict() for name, part in self._everything.items()}
            write_state(self.path, {"identity": dict(self.identity), **parts})
        if self.save is not None:
            self.save()

    @property
    def _everything(self) -> dict[str, Stateful]:
        own = {"optimizer": self.optimizer, "batches": self.batches, "loop": self}
        return {**self.parts, **own}

    def _bar(self, progress: bool) -> tqdm:
        return tqdm(
            total=self.budget or None,
            initial=self.count,
            desc=self.description,
            unit=f" {self.counted[0]}",
            mininterval=1.0 if sys.stderr.isatty() else 60.0,
            disable=not progress or self.processes.rank > 0,
        )

    def _tell(self, forecast: Forecast, bar: tqdm) -> None:
        most = 60 * self.minutes - self.seconds if self.minutes else math.inf
        left = (self.budget - self.count) / self.counted[1] if self.budget else math.inf
        if said := forecast(self.done, self.seconds, left, most):
            bar.write(said, file=sys.stderr)

    def _advance(self, share: float) -> None:
        if self.rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(share)
        batch = next(self.batches)
        self.optimizer.zero_grad()
        torch.manual_seed(seed_of(self.seed, 2, self.done, self.processes.rank))
        loss = self.step(batch)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        if self.after is not None:
            self.after(self.done)
        self.pending.append(loss.detach())

    def _is_row(self) -> bool:
        every = self.row_every(self.count)
        return self.count // every > (self.count - self.counted[1]) // every

    def _row(self) -> None:
        loss = self.processes.mean(torch.stack(self.pending).mean())
        self.pending = []
        row = {"minutes": round(self.seconds / 60, 3), "loss": round(loss, 6)}
        with torch.no_grad():
            more = {} if self.validate is None else self.validate()
        self.rows.append({self.counted[0]: self.count, **row, **more})

    def _stop(self, told: bool) -> NoReturn:
        self.write()
        if told:
            sys.exit(TERMINATED)
        where = "" if self.path is None else f"; what was done is in {self.path.parent}"
        raise OutOfTimeError(
            f"stopped after {self.count:,} {self.counted[0]}, {self.share:.0%} of the budget"
            f"{where}, and the same call goes on"
        )


def seed_of(*words: int) -> int:
    """One seed from several numbers, independent of that from others."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
