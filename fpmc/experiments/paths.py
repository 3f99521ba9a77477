"""Robot paths in few steps: networks of means and networks that draw, both told start and goal.

Two networks of one architecture are trained with as many answers each, one by the squared error and
one by the energy score. From the start and the goal of held-out demonstrations
they make paths, by 1 to 16 calls. A row has the share of paths that a robot could follow, the share
of pairs of paths for one start and goal that both work and go different ways, and the energy
distance to demonstrations of other starts and goals. Errors are over sets of paths, each
from noise of its own. Demonstrations stand beside them.

Source: De Bortoli et al. (2025), "Distributional Diffusion Models with Scoring Rules", whose second
domain are robots; the maze is that of Fu et al. (2020).
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, maze, metrics, networks
from fpmc.experiments.clock import Clock
from fpmc.experiments.distributional import trained
from fpmc.experiments.few_steps import of_draws, of_means
from fpmc.experiments.job import Job
from fpmc.experiments.tables import numbers
from fpmc.metrics import Estimate
from fpmc.networks.recipes import Recipe, recipe

__all__ = ["CALLS", "SETS", "given", "pictures", "recipe_of", "run"]

KEY = ("data", "network", "sampler", "calls")
CALLS = (1, 2, 4, 8, 16)
SETS = 4
"""Sets of paths, each with as many as there are starts and goals, and several for each."""
ANSWERS = 300_000
"""Answers that each network computes in training: paths times draws."""
BATCH, RATE, DRAWS = 128, 3e-3, 4
"""Answers of a step, Adam's highest learning rate, and m."""
OPTIONS = {"waves": 16, "width": 128, "depth": 3}
"""Of the network."""
EACH = 4
"""Paths for each start and goal."""
FIRST_SEED = 700
PICTURED, PICTURED_CALLS = 12, (1, 2, 8)
"""Paths that are kept, so that they can be drawn: how many, and by how many calls."""
SAMPLERS = (("means", "heun"), ("means", "bridge"), ("draws", "bridge"))
"""What is trained, and by what it makes paths."""

Paths = Float[Tensor, "n 2 1 t"]


def run(job: Job, clock: Clock) -> None:
    """Train the networks that are not there, and compute the rows that are missing."""
    if job.dataset.train.shape[1:] != (2, 1, maze.STEPS):
        raise ValueError(f"data: got {job.data}, wanted paths such as those of maze")
    held = job.test(len(job.dataset.test))
    asked, others = held[::2], held[1::2]
    with job.table("paths", KEY).collected() as table:
        files = {
            name: trained(job, clock, recipe_of(job, name), f"{name}-{job.seed}")
            for name in ("means", "draws")
        }
        units = [("demonstrations", "none", 0)]
        units += [(*pair, calls) for pair in SAMPLERS for calls in CALLS]
        for name, sampler, calls in tqdm(units, desc="paths"):
            used = [files[name]] if calls else []
            head = dict(zip(KEY, (job.label, name, sampler, str(calls)), strict=True))
            settings = job.settings("", SETS, *used, validation_n=len(asked))
            if table.has(head, settings):
                continue
            with clock.unit(f"{name} {sampler} {calls}"):
                start, values = time.perf_counter(), []
                for seed in range(SETS):
                    made = asked[None]
                    if calls:
                        made = _paths(job, job.load(files[name]), sampler, asked, calls, seed)
                    values.append(_worth(made, others))
                told = job.provenance("", time.perf_counter() - start)
                table.add({**head, **settings, **_columns(values), **told})
    with clock.unit("pictures"):
        _keep(job, asked[0], files)


def recipe_of(job: Job, name: str) -> Recipe:
    """How a network is trained: "draws" by the energy score, "means" by the squared error."""
    m = DRAWS if name == "draws" else 1
    options = {**OPTIONS, "xi": True}
    changes = {
        "options": options,
        "images": ANSWERS // m,
        "batch": max(1, BATCH // m),
        "rate": RATE,
        "seed": job.seed,
    }
    drawing = recipe(job.data, "path", objective="energy", population=DRAWS, **changes)
    if name == "draws":
        return drawing
    return replace(
        drawing,
        objective="mean",
        beta=2.0,
        repulsion=0.0,
        population=1,
        options={**drawing.options, "xi": False},
    )


def given(network: networks.Preconditioned, ends: Paths) -> Callable[..., Tensor]:
    """The network, told the ends of paths: they stand in z, whatever z has there."""
    return lambda z, *more: network(torch.where(network.known, ends, z), *more)


@torch.no_grad()
def pictures(
    network: networks.Preconditioned, sampler: str, ends: Paths, calls: int, seed: int
) -> Paths:
    """Paths from where others start to where they end.

    Args:
        network: One that knows the ends of paths.
        sampler: "heun" or "bridge".
        ends: Paths in [-1, 1], of which the first and the last place count.
        calls: The most calls of the network; Heun's method takes an odd number.
        seed: Of all noise.
    """
    told = given(network, ends)
    z = diffusion.initial_noise(len(ends), ends.shape[1:], seed).to(ends.device)
    samplers = of_draws(told) if isinstance(network, networks.Drawing) else of_means(told)
    found = samplers[sampler](z, calls, seed)
    return torch.where(network.known, ends, found.clamp(-1, 1))


def _paths(
    job: Job, network: networks.Preconditioned, sampler: str, asked: Paths, calls: int, seed: int
) -> Float[Tensor, "m n 2 1 t"]:
    """Several paths for each start and goal."""
    first = 1000 * job.seed + FIRST_SEED + EACH * seed
    each = [pictures(network, sampler, asked, calls, first + i) for i in range(EACH)]
    return torch.stack(each)


def _worth(paths: Float[Tensor, "m n 2 1 t"], others: Float[Tensor, "o 2 1 t"]) -> dict[str, float]:
    """What a table says of one set of paths; demonstrations have one for each start and goal."""
    works, high = (
        judge(paths.flatten(0, 1)).view(paths.shape[:2]) for judge in (maze.succeeds, maze.above)
    )
    alone = len(paths) == 1
    return {
        "success": works.double().mean().item(),
        "both": float("nan") if alone else maze.different(works, high).double().mean().item(),
        "above": high.double().mean().item(),
        "energy": metrics.energy_distance(paths[0], others),
    }


def _keep(job: Job, one: Float[Tensor, "2 1 t"], files: dict[str, str]) -> None:
    """Put some paths for one start and goal into the job's folder."""
    drawn, asked = {"demonstration": one[None]}, one.expand(PICTURED, -1, -1, -1)
    for name, sampler in SAMPLERS:
        for calls in PICTURED_CALLS:
            network = job.load(files[name])
            made = pictures(network, sampler, asked, calls, 1000 * job.seed + FIRST_SEED)
            drawn[f"{name}, {sampler}, {calls}"] = made
    pixels = {name: ((x + 1) * 127.5).round().byte().cpu() for name, x in drawn.items()}
    job.keep("paths.npz", {name: value.numpy() for name, value in pixels.items()})


def _columns(values: list[dict[str, float]]) -> dict[str, object]:
    """Means over sets, with their standard errors."""
    columns = {}
    for name in values[0]:
        found = torch.tensor([value[name] for value in values], dtype=torch.float64)
        columns |= numbers(Estimate.of_samples(found), name)
    return columns
