"""The networks that the methods are compared with, trained on the images that are their source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpmc import networks
from fpmc.networks.recipes import Recipe, recipe
from fpmc.networks.train import train
from stages.clock import Clock, OutOfTimeError
from stages.job import Job

__all__ = ["Training", "run"]

LARGEST = 12 * 2**20
"""Bytes of a file of weights."""


@dataclass(frozen=True)
class Training:
    """How the networks are trained.

    Attributes:
        archs: Which.
        changes: What differs from the recipe of :func:`fpmc.networks.recipes.recipe`.
        compiled: Whether ``torch.compile`` fuses the steps.
    """

    archs: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False

    def recipe(self, job: Job, arch: str) -> Recipe:
        """The recipe of one of them; lists are taken for the tuples that a recipe has."""
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in self.changes.items()}
        try:
            return recipe(job.data, arch, **{"seed": job.seed, **changes})
        except TypeError as error:
            raise ValueError(f"recipe: got {dict(self.changes)} ({error})") from error


def run(job: Job, clock: Clock, training: Training) -> None:
    """Train the networks that are not there, or go on with them.

    Raises:
        ValueError: If a network would be larger than a results folder may hold.
    """
    for arch in training.archs:
        path, chosen = Path(job.file(arch)), training.recipe(job, arch)
        if path.exists() or job.file(arch) in networks.SHIPPED:
            continue
        size = 2 * networks.build(arch, tuple(job.dataset.train.shape[1:]), **chosen.options).size
        if size > LARGEST:
            raise ValueError(f"{arch}: {size:,} bytes of weights, wanted at most {LARGEST:,}")
        with clock.unit("train"):
            options = {"limit": clock.minutes, "compiled": training.compiled}
            _train(job, chosen, job.runs / f"{job.label}-{arch}", path, options)


def _train(job: Job, chosen: Recipe, out: Path, path: Path, options: dict[str, Any]) -> None:
    try:
        train(chosen, out, dataset=job.dataset, device=job.device, **options)
    except TimeoutError as stopped:
        print(f"{chosen.arch}: {stopped}")
        raise OutOfTimeError from stopped
    trained = out / "network.safetensors"
    card = networks.card(trained) | {"label": job.label, "code": job.provenance()["code"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    networks.save(networks.load(trained), path, card)
    told = {key: card[key] for key in ("images", "minutes", "device", "parameters")}
    print(f"{path}: {json.dumps(told, ensure_ascii=False)}")
