"""Every method's samples against the other network's, from the same noise."""

import json
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, metrics
from fpmc.experiments import contest, schedules
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import Table, arrays, numbers
from fpmc.results import MEASURES, SETTINGS
from fpmc.source import to_uint8

__all__ = ["COPY", "apart", "run", "settle"]

KEY = ("data", "reference", "method", "schedule")
KEPT = 12
"""Samples of each method that are kept as images."""
COPY = 0.01
"""Distance to a training image, root mean square, below which a sample is a copy of it."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing, a part of the samples at a time."""
    reference = job.called(job.other_file)
    found = schedules.found(job, contest.wanted(job, contest.searched(job)))
    network = contest.Contestant(job.called(job.reference_file), "", None)
    everyone = [network, *contest.contestants(job, found, used=True), *contest.tuned(job)]
    everyone += contest.blended(job)
    heads = [dict(zip(KEY, (job.label, reference, *who.row), strict=True)) for who in everyone]
    with job.table("samples", KEY).collected() as table:
        drawn = job.held("each.npz").keys() & job.held("samples.npz").keys()
        missing = [
            (head, who)
            for head, who in zip(heads, everyone, strict=True)
            if not table.has(head, _settings(job, who)) or who.name not in drawn
        ]
        if missing:
            decided = {"reference": reference, "network": network.method, "seed": job.seed}
            settle(job, "each.npz", SETTINGS, {**decided, "steps": len(job.levels)})
            _fill(job, clock, table, missing)


def _settings(job: Job, who: contest.Contestant) -> dict[str, object]:
    more: dict[str, object] = {"steps": len(job.levels), "schedule_hash": who.digest}
    if who.joined:
        more["n_source"] = 2 * len(job.seen_by(who.method))
    if who.schedule == "tuned":
        more["maps_hash"] = ""  # the operators, whose hash stands beside, need no maps
    return job.settings(who.method, _count(job, who), job.reference_file, job.other_file, **more)


def _count(job: Job, who: contest.Contestant) -> int:
    return min(job.samples, job.fewer.get(who.method, job.samples))


def _fill(
    job: Job, clock: Clock, table: Table, missing: list[tuple[dict[str, str], contest.Contestant]]
) -> None:
    network = job.called(job.reference_file)
    shape = tuple(job.dataset.train.shape[1:])
    start = diffusion.initial_noise(job.samples, shape, job.seed + 1).to(job.device)
    target = diffusion.sample(in_batches(job.other_network, job.batch), start, job.levels)
    job.keep("samples.npz", {job.called(job.other_file): _images(target)})
    for head, who in tqdm(missing, desc="samples"):
        if who.method == network:
            denoiser = in_batches(job.reference, job.batch)
        else:
            denoiser = contest.denoiser(job, who)
        n, settings = _count(job, who), _settings(job, who)
        each = _each(job, who.name, denoiser, start[:n], target[:n], clock)
        told = {**job.provenance(who.method), "n_source": settings["n_source"]}
        table.add({**head, **settings, **_summary(each), **told})


def settle(job: Job, file: str, entry: str, decided: dict[str, object]) -> None:
    """Write down what decides the samples, or see that what is there was decided by the same.

    Args:
        job: Whose folder it is.
        file: The file of the samples' measures.
        entry: Where in it this stands.
        decided: What decides them.

    Raises:
        ValueError: If it was not.
    """
    wanted = json.dumps(decided)
    for held in (arrays(job.out / file), job.held(file)):
        if held and entry in held and str(held[entry]) != wanted:
            raise ValueError(
                f"{job.out / file}: holds samples by {held[entry]}, wanted {wanted}: name another "
                "folder as --out"
            )
    job.keep(file, {entry: np.array(wanted)})


def _each(
    job: Job,
    name: str,
    denoiser: diffusion.Denoiser,
    start: Float[Tensor, "n c h w"],
    target: Float[Tensor, "n c h w"],
    clock: Clock,
) -> Float[Tensor, "n 3"]:
    """What :data:`MEASURES` names, of every sample; what is in the file is taken from it."""
    size, each = job.part or len(start), job.held("each.npz").get(name)
    if each is None or len(each) != len(start):
        each = np.full((len(start), len(MEASURES)), np.nan, np.float32)
    shown = name in job.held("samples.npz")
    for begin in range(0, len(start), size):
        part = slice(begin, begin + size)
        if np.isfinite(each[part]).all() and (begin or shown):
            continue
        with clock.unit(name):
            drawn = diffusion.sample(denoiser, start[part], job.levels)
            distance = metrics.nearest(drawn.clamp(-1, 1), job.source, budget=job.bytes)[0][:, 0]
            each[part, 0] = apart(metrics.mse, drawn, target[part])
            each[part, 1] = apart(metrics.r2, drawn, target[part])
            each[part, 2] = distance.cpu().numpy()
            if begin == 0:
                copies = distance < COPY if job.papers else None
                job.keep("samples.npz", {name: _images(drawn, copies)})
            job.keep("each.npz", {name: each})
    return torch.from_numpy(each).double()


def apart(
    measure: Callable[[Tensor, Tensor], metrics.Estimate], drawn: Tensor, target: Tensor
) -> list[float]:
    """A measure of every sample on its own."""
    return [measure(a[None], b[None]) for a, b in zip(drawn, target, strict=True)]


def _summary(each: Float[Tensor, "n 3"]) -> dict[str, object]:
    mse, r2, nearest = each.unbind(1)
    return {
        **numbers(metrics.Estimate.of_samples(mse)),
        **numbers(metrics.Estimate.of_samples(r2), "r2"),
        "r2_median": f"{np.median(r2):.4g}",
        "nearest": f"{np.median(nearest):.4g}",
    }


def _images(drawn: Tensor, copies: Tensor | None = None) -> np.ndarray:
    """The first samples as pixels, grey where they are copies of what may not be passed on."""
    images = to_uint8(drawn[:KEPT])
    if copies is not None:
        images[copies[:KEPT]] = 128
    return images.cpu().numpy()
