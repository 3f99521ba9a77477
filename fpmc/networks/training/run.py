"""A training run: a recipe, its data and its folder, brought to the loop."""

import contextlib
import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fpmc
from fpmc import data as datasets
from fpmc.data import fingerprint
from fpmc.distributional.scoring import KERNELS
from fpmc.networks.architectures import build
from fpmc.networks.checkpoints import save
from fpmc.networks.hashes import weights_hash
from fpmc.networks.loading import DRAWING, OFFICIAL, SHIPPED, card, load
from fpmc.networks.optimizers import optimizer
from fpmc.networks.preconditioning import Preconditioned
from fpmc.networks.recipes import Recipe, command
from fpmc.networks.training.batches import NoisyBatches, held_out_batch
from fpmc.networks.training.loop import Loop
from fpmc.networks.training.loss import Loss, posterior_draws, posterior_mean
from fpmc.networks.training.starting import start_from
from fpmc.processes import Processes
from fpmc.source import to_float
from fpmc.storage import try_writing, write_rows

__all__ = ["Run", "tf32"]

EMA_SHARE = 0.05
"""Half-life of the averaged weights, as a share of the images seen so far."""
WARM_UP = 0.02
"""Share of the budget over which the learning rate rises."""
LOG_EVERY = 10_000
"""Images per row of the loss curve up to a million; ten times as many up to ten million, etc."""


MAY_CHANGE = ("data", "images", "minutes")
"""What may differ when a run goes on: the budget, and where the images lie; a hash tells them."""
ENERGY_ALONE = ("objective", "beta", "repulsion", "population")
"""What the state of a network of means does not say."""
KERNEL_ALONE = ("bandwidth",)
"""What the state of a network says that was trained by a kernel score."""
TARGETS = 16
"""Draws from the training set's posterior over which a score is averaged."""


class Run:
    """One process's part of the training of a network.

    Args:
        recipe: What to train on what.
        out: The run's folder.
        dataset: The images.
        processes: This process among those that share the work.
        precision: "float32", "bf16" or "auto", see :func:`fpmc.networks.train.train`.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: datasets.Dataset,
        processes: Processes,
        precision: str,
    ):
        names = {"data": datasets.NAMES, "start": (*SHIPPED, *DRAWING, *OFFICIAL)}
        known = {k: _from_anywhere(getattr(recipe, k), names[k]) for k in names}
        recipe = replace(recipe, **known)
        self.recipe, self.out, self.dataset, self.processes = recipe, out, dataset, processes
        self.device, self.begun, self.compiled = processes.device, None, False
        self.start = {}
        self.bf16 = precision == "bf16" or (precision == "auto" and _has_bf16(self.device))
        shape = tuple(dataset.train.shape[1:])
        network = build(recipe.arch, shape, seed=recipe.seed, **recipe.options)
        if recipe.start:
            self._begin(network)
        self.network = network.to(self.device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.score = {}
        if recipe.objective == "energy":
            self.score = {"beta": recipe.beta, "repulsion": recipe.repulsion}
        elif recipe.objective in KERNELS:
            self.score = {"kernel": recipe.objective, "bandwidth": recipe.bandwidth}
            self.score |= {"repulsion": recipe.repulsion}
        self.loss = Loss(self.network, **self.score)
        if processes.world > 1:
            self.loss = DistributedDataParallel(self.loss)
        self.batches, self.known = NoisyBatches(recipe, dataset.train), None
        if recipe.target == "posterior":
            x = to_float(dataset.train)
            self.known = (torch.cat([x, x.flip(3)]) if recipe.flips else x).to(self.device)
        self.loop = self._loop()

    def _loop(self) -> Loop:
        identity = asdict(self.recipe) | {"images_hash": fingerprint(self.dataset.train)}
        if self.start:
            del identity["start"]  # it may lie elsewhere: its hash tells it
            identity |= self.start
        apart = MAY_CHANGE if self.score else (*MAY_CHANGE, *ENERGY_ALONE)
        apart += () if "kernel" in self.score else KERNEL_ALONE
        return Loop(
            step=self.gradient_of,
            batches=self.batches,
            optimizer=optimizer(self.recipe.optimizer, self.network, self.recipe.rate),
            parts={"network": self.network, "average": self.average},
            identity={k: v for k, v in identity.items() if k not in apart},
            path=self.out / "state.pt",
            budget=self.recipe.images,
            minutes=self.recipe.minutes,
            rate=self._rate,
            after=self._average,
            validate=self._validate,
            save=self._save,
            counted=("images", self.recipe.batch),
            row_every=_images_per_row,
            seed=self.recipe.seed,
            processes=self.processes,
        )

    def gradient_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss of this process's part of a batch."""
        x, sigma, noise, weight, *xi = (self.processes.part(values) for values in batch)
        target = None
        if self.known is not None:
            z = self.network.noisy(x, sigma, noise)
            if self.score:
                target = posterior_draws(self.known, z, sigma, TARGETS)
            else:
                target = posterior_mean(self.known, z, sigma)
        with self._autocast():
            return self.loss(x, sigma, noise, weight, target, *xi)

    def compile(self) -> None:
        """Compile the loss and its gradient now: a budget in minutes does not count it."""
        self.loss.compile()
        self.gradient_of(self.batches.at(self.batches.step)).backward()
        self.loop.optimizer.zero_grad()

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            ValueError: If it cannot, or holds a network without a state to go on from.
        """
        if self.processes.rank > 0:
            return
        trained = self.out / "network.safetensors"
        if trained.exists() and not self.loop.path.exists():
            raise ValueError(
                f"out: {self.out} holds a network and no state to go on from; nothing was changed, "
                "name another folder"
            )
        made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try:
            with contextlib.suppress(OSError):  # what is wrong shows when it is written to
                self.out.mkdir(parents=True, exist_ok=True)
            try_writing(self.out, "out")
        except ValueError:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise

    def _begin(self, network: Preconditioned) -> None:
        """Take the weights of the network that the recipe starts from."""
        start = load(self.recipe.start)
        try:
            self.begun = card(self.recipe.start)
        except ValueError:  # another's, which has none
            self.begun = {"network": str(self.recipe.start)}
        start_from(network, start, str(self.recipe.start))
        self.start = {"start_hash": weights_hash(start)}  # its file may change before a run goes on

    def _rate(self, share: float) -> float:
        rise = min(1.0, share / WARM_UP + 1e-3)
        return self.recipe.rate * rise * (1 + math.cos(math.pi * share)) / 2

    @torch.no_grad()
    def _average(self, steps: int) -> None:
        keep = 0.5 ** (1 / (EMA_SHARE * steps))
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        for average, now in pairs:
            average.lerp_(now, 1 - keep)

    def _validate(self) -> dict[str, float]:
        """The loss on held-out images, by the averaged weights."""
        batch = held_out_batch(self.dataset.test, self.recipe)
        held_out = math.nan
        if len(batch[0]):
            at = (x.to(self.device) if isinstance(x, Tensor) else x for x in batch)
            with self._autocast():
                held_out = Loss(self.average, **self.score)(*at).item()
        return {"held_out": round(held_out, 6)}

    def _save(self) -> None:
        write_rows(self.out / "loss.csv", self.loop.rows)
        save(self.average, self.out / "network.safetensors", self._card())

    def _card(self) -> dict[str, Any]:
        return {
            **asdict(self.recipe),
            "images": self.loop.count,
            "minutes": round(self.loop.seconds / 60, 1),
            "train_images": len(self.dataset.train),
            "images_hash": self.loop.identity["images_hash"],
            "parameters": self.network.size,
            "device": _device_name(self.device, self.processes.world),
            "precision": "bf16" if self.bf16 else "float32",
            "compiled": self.compiled,
            "versions": {"fpmc": fpmc.__version__, "torch": torch.__version__},
            "command": command(self.recipe),
            **({} if self.begun is None else {"begun": self.begun}),
            "loss": self.loop.rows,
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products of float32 matrices in TF32, if wanted."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _from_anywhere(given: str, names: Collection[str]) -> str:
    """One of the names, or a path from the root, as a card is read in other folders.

    Links stay: a training set's twin is found by its name.
    """
    path = Path(given).expanduser()
    return str(path.absolute()) if given and given not in names and path.exists() else given


def _images_per_row(seen: int) -> int:
    """See :data:`LOG_EVERY`."""
    return LOG_EVERY * 10 ** max(0, len(str(seen)) - 6)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _device_name(device: torch.device, world: int) -> str:
    if device.type == "cuda":
        return f"{world} × {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads() * world
    return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
