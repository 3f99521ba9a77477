"""A run's state in a file, from which it goes on to the same bits."""

import contextlib
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpmc.finetuning.files import ENDINGS, level_name
from fpmc.finetuning.settings import Settings
from fpmc.storage import reason, try_writing, whole

__all__ = ["Saved", "seed_of", "stopping"]

KEPT = ("step", "seconds", "stopped", "history", "losses", "errors", "best")
"""What a state holds, besides θ and the optimizer's averages."""


class Saved:
    """Where a run is saved, if anywhere.

    Args:
        out: A folder, made if it is not there; None for nowhere.
        settings: The run's.
        data: A text that is another for other images or operators.

    Raises:
        ValueError: If the folder cannot be written to.
    """

    def __init__(self, out: str | os.PathLike | None, settings: Settings, data: str):
        self.folder = None if out is None else Path(out).expanduser()
        self.run = {**asdict(settings), "data": data}
        self.seed, self.epoch, self.order = settings.seed, -1, None
        self.name = level_name(settings.sigma)
        if self.folder is not None:
            with contextlib.suppress(OSError):  # what is wrong shows when it is written to
                self.folder.mkdir(parents=True, exist_ok=True)
            try_writing(self.folder, "out")

    @property
    def path(self) -> Path:
        """The state's file."""
        return self.folder / f"{self.name}.state"

    def write(self, run: Any) -> None:
        """Save a run, whole or not at all; nothing if there is no folder, or another saves it."""
        if self.folder is None or not run.shared.first:
            return
        state = {name: getattr(run, name) for name in KEPT} | {
            "run": self.run,
            "theta": run.module.state_dict(),
            "optimizer": run.optimizer.state_dict(),
        }
        content = io.BytesIO()  # as a full disk is no OSError to torch.save
        torch.save(state, content)
        with whole(self.path) as beside:
            beside.write_bytes(content.getvalue())

    def resume(self, run: Any) -> None:
        """Take up a saved run, if there is one; more steps than it had are allowed.

        Raises:
            ValueError: If it cannot be read, is another run, or is gone while its outcome is there.
        """
        if self.folder is None:
            return
        if not self.path.exists():
            if any((self.folder / f"{self.name}{end}").exists() for end in ENDINGS):
                raise ValueError(
                    f"out: {self.folder} holds {self.name} tuned and no state to go on from; "
                    "nothing was changed, name another folder"
                )
            return
        try:
            state = torch.load(self.path, map_location=run.device, weights_only=True)
            differ = [k for k, v in self.run.items() if k != "steps" and state["run"].get(k) != v]
            if differ:
                raise ValueError(f"holds a run that differs in {', '.join(differ)}")
            run.module.load_state_dict(state["theta"])
            run.optimizer.load_state_dict(state["optimizer"])
            for name in KEPT:
                setattr(run, name, state[name])
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            EOFError,
            pickle.PickleError,
        ) as error:
            raise ValueError(
                f"{self.path}: not a state to go on from ({reason(error)}). Nothing was changed; "
                "name another folder as out"
            ) from error

    def place(self, i: int, n: int) -> int:
        """Which of n images is the i-th: each once an epoch, in an order of the epoch's own."""
        epoch, place = divmod(i, n)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, 0, epoch]).permutation(n)
        return int(self.order[place])


def seed_of(*words: int) -> torch.Generator:
    """A generator of its own for each run of whole numbers."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def stopping(wanted: bool) -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM came, which does nothing else inside the block."""
    came = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
