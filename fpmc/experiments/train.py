"""The networks that the methods are compared with, trained on the images that are their source."""

import json
from pathlib import Path
from typing import Any

from fpmc import networks
from fpmc.data import fingerprint
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.limits import OutOfTimeError
from fpmc.networks.recipes import Recipe
from fpmc.networks.train import train

__all__ = ["run"]

LARGEST = 12 * 2**20
"""Bytes of a file of weights."""


def run(job: Job, clock: Clock) -> None:
    """Train the networks that are not there, or go on with them.

    Raises:
        ValueError: If a network would be larger than a results folder may hold.
    """
    for arch in job.archs:
        path, chosen = Path(job.file(arch)), job.recipe_of(arch)
        if path.exists() or job.file(arch) in networks.SHIPPED:
            continue
        size = 2 * networks.build(arch, tuple(job.dataset.train.shape[1:]), **chosen.options).size
        if size > LARGEST:
            raise ValueError(f"{arch}: {size:,} bytes of weights, wanted at most {LARGEST:,}")
        with clock.unit("train"):
            options = {"limit": clock.minutes, "compiled": job.compiled}
            _train(job, chosen, job.runs / f"{job.label}-{arch}", path, options)


def _train(job: Job, chosen: Recipe, out: Path, path: Path, options: dict[str, Any]) -> None:
    try:
        train(chosen, out, dataset=job.dataset, device=job.device, **options)
    except TimeoutError as stopped:
        print(f"{chosen.arch}: {stopped}")
        raise OutOfTimeError from stopped
    trained = out / "network.safetensors"
    card = networks.card(trained) | {"label": job.label, "code": job.provenance()["code"]}
    card["images_hash"] = fingerprint(job.dataset.train)
    path.parent.mkdir(parents=True, exist_ok=True)
    networks.save(networks.load(trained), path, card)
    told = {key: card[key] for key in ("images", "minutes", "device", "parameters")}
    print(f"{path}: {json.dumps(told, ensure_ascii=False)}")
