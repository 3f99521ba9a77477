"""Over how many noisy images sensitivity maps are to be averaged: maps of few against each other.

Each level has maps of groups of images that nothing else here asks about, each group with noise of
its own. Averages over 1, 2, 4 and all 8 groups are compared in pairs that share no image, and
PSPC-Flex with each is compared with the network on the same noisy images.

Source: Niedoba et al. (2025), section 4.2, which averages over 10,000 noisy images.
"""

import time
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, methods, sensitivity
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import numbers
from fpmc.methods.schedules import threshold_schedule
from fpmc.metrics import Estimate

__all__ = ["GROUP", "GROUPS", "run"]

GROUP = 8
"""Noisy images of a group."""
GROUPS = 8
LEVELS = (9, 11, 13)
"""Of the sampler's noise levels those that are looked at, if none are named."""
FIRST_SEED = 700
"""Of the groups' noise; the images that are asked about have that of level and job's seed."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing.

    Raises:
        ValueError: If there are too few held-out images for maps and questions.
    """
    x, spare = job.test(job.points), len(job.dataset.test) - GROUP * GROUPS
    if spare < len(x):
        raise ValueError(f"points: got {job.points}, wanted up to {max(spare, 0)} beside the maps'")
    settings = job.settings("", len(x), job.reference_file, precision=job.precision)
    with job.table("map_images", ("data", "network", "sigma", "images")).collected() as table:
        for level in tqdm(job.chosen if job.level else LEVELS, desc="map_images"):
            head = {
                "data": job.label,
                "network": job.called(job.reference_file),
                "sigma": f"{job.levels[level]:.6g}",
            }
            heads = {n: head | {"images": GROUP * n} for n in (1, 2, 4, 8)}
            if all(table.has(one, settings) for one in heads.values()):
                continue
            with clock.unit("map_images"):
                start = time.perf_counter()
                rows = _rows(job, level, x)
                told = job.provenance(seconds=time.perf_counter() - start)
                for n, one in heads.items():
                    table.add({**one, **settings, **rows[n], **told})


def _rows(job: Job, level: int, x: Float[Tensor, "b c h w"]) -> dict[int, dict[str, object]]:
    """{groups: the columns}."""
    sigma, groups = job.levels[level], _groups(job, job.levels[level])
    tau = threshold_schedule(job.data, "pspc_flex", "thresholds")(sigma)
    z = diffusion.add_noise(x, sigma, job.seed * 1000 + level)
    answer = in_batches(job.reference, job.batch)(z, sigma)
    rows, least = {}, None
    for n in (1, 2, 4, 8):
        sets = [part.mean(0) for part in groups.split(n)]
        made = [methods.pspc_flex(job.source, {sigma: one}, tau, budget=job.bytes) for one in sets]
        denoiser = in_batches(made[0].with_precision(job.precision), job.batch)
        each = (denoiser(z, sigma) - answer).square().double().flatten(1).mean(1)
        least = each if least is None else least
        rows[n] = {
            **_alike(sets, [one.operators(sigma)[0].dense() > 0 for one in made]),
            "threshold": tau,
            **numbers(Estimate.of_samples(each)),
            **numbers(Estimate.of_samples(least - each), "gain"),
        }
    return rows


def _groups(job: Job, sigma: float) -> Float[Tensor, "g k h w"]:
    """Maps of each group of the last held-out images."""
    images = job.dataset.test[-GROUP * GROUPS :].to(job.device).split(GROUP)
    options = {"cache": job.runs / f"{job.label}-map-images", "budget": job.bytes}
    return torch.stack(
        [
            sensitivity.maps(job.reference, sigma, part, seed=FIRST_SEED + i, **options)
            for i, part in enumerate(images)
        ]
    )


def _alike(
    sets: list[Float[Tensor, "k h w"]], masks: list[Bool[Tensor, "k h w"]]
) -> dict[str, str]:
    """The mass that two maps share; of the pixels in either of two masks those that are in both."""
    if len(sets) == 1:
        return {"shared": "", "pixels_shared": ""}
    shared = [torch.minimum(a, b).sum((1, 2)).mean() for a, b in combinations(sets, 2)]
    pixels = [_overlap(a, b) for a, b in combinations(masks, 2)]
    return {
        "shared": f"{torch.stack(shared).mean().item():.4g}",
        "pixels_shared": f"{torch.stack(pixels).mean().item():.4g}",
    }


def _overlap(a: Bool[Tensor, "k h w"], b: Bool[Tensor, "k h w"]) -> Float[Tensor, ""]:
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return (both / either).mean()
