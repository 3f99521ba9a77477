"""Few steps: samples of networks of means and of networks that draw, by the number of their calls.

A grid of networks is trained by the energy score, over β, λ and the number m of its draws, and one
of means beside it, all small and with the same number of answers to compute. Their samples, those
of the data's own networks and those of an FPMC's posteriors are compared with held-out images: by
the energy distance, and by the Fréchet distance of features of a classifier of the labels. Errors
are over sets of samples, each from noise of its own. Training images stand beside them.

Source: De Bortoli et al. (2025), "Distributional Diffusion Models with Scoring Rules".
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, metrics, networks
from fpmc.distributional import composite, sample
from fpmc.experiments.clock import Clock
from fpmc.experiments.features import classifier
from fpmc.experiments.job import Job
from fpmc.experiments.tables import numbers
from fpmc.experiments.tuning import schedule_of
from fpmc.limits import OutOfTimeError
from fpmc.methods.registry import METHODS
from fpmc.metrics import Estimate
from fpmc.networks.recipes import XI, Recipe, recipe
from fpmc.networks.train import train
from fpmc.networks.training.run import Run
from fpmc.processes import ALONE

__all__ = ["GRID", "run"]

KEY = ("data", "network", "sampler", "calls")
CALLS = (1, 2, 4, 8, 16, 32)
BETAS, LAMBDAS = (0.1, 1.0, 1.9, 2.0), (0.0, 0.5, 1.0)
GRID = (
    *((1.0, 1.0, m) for m in (4, 2, 8)),
    *((beta, 1.0, 4) for beta in BETAS if beta != 1),
    *((beta, repulsion, 4) for repulsion in LAMBDAS[:2] for beta in BETAS),
)
"""(β, λ, m) of the networks that draw."""
ANSWERS = 48_000
"""Answers that each network computes in training: images times draws."""
BATCH, RATE = 128, 3e-3
"""Answers of a step, and Adam's highest learning rate."""
SMALL = {"width": 96, "depth": 2, "heads": 4}
"""A transformer whose one token is the image: a perceptron with shortcuts, which trains in no time
where images are small."""
SETS = 4
"""Sets of samples, each as large as the held-out images."""
FIRST_SEED = 900
TIMED, TIMED_BATCH, TIMED_DRAWS = 7, 32, (1, 2, 4, 8, 16)
"""Steps over which the time of a step is the median, their noisy images, and m."""


@dataclass(frozen=True)
class Maker:
    """Something that makes samples.

    Attributes:
        network: What the table calls it.
        score: β, λ and m, where it was trained by the energy score.
        file: The network's file, if it is one.
        samplers: {name: function from noise at the first level, a number of calls and a seed, to
            samples}.
        calls: The numbers of calls; all of :data:`CALLS` if left out.
    """

    network: str
    score: tuple[float, float, int] | None
    file: str
    samplers: dict[str, Callable[[Tensor, int, int], Tensor]]
    calls: tuple[int, ...] = ()


def run(job: Job, clock: Clock) -> None:
    """Train the networks that are not there, and compute the rows that are missing."""
    judge = Judge(job)
    with job.table("distributional", KEY).collected() as table:
        for maker in tqdm(
            _makers(job, clock), total=len(GRID) + 4 + len(networks.DRAWING), desc="distributional"
        ):
            for (name, sampler), calls in itertools.product(
                maker.samplers.items(), maker.calls or CALLS
            ):
                head = dict(zip(KEY, (job.label, maker.network, name, str(calls)), strict=True))
                settings = job.settings(
                    "", SETS, *([maker.file] if maker.file else []), validation_n=judge.size
                )
                if table.has(head, settings):
                    continue
                with clock.unit(f"{maker.network} {name} {calls}"):
                    start = time.perf_counter()
                    row = judge.row(lambda z, seed, s=sampler, n=calls: s(z, n, seed))
                    told = job.provenance("", time.perf_counter() - start)
                    score = maker.score or ("", "", "")
                    score = dict(zip(("beta", "lambda", "m"), score, strict=True))
                    table.add({**head, **settings, **score, **row, **told})
    _cost(job, clock)


class Judge:
    """Held-out images, the features in which sets are compared, and what a set is worth."""

    def __init__(self, job: Job):
        self.job, self.held = job, job.test(job.points)
        self.size = len(self.held)

    @cached_property
    def features(self) -> Callable[[Tensor], Tensor]:
        labels = self.job.dataset.train_labels
        if labels is None:
            raise ValueError(f"data: got {self.job.data}, wanted images with labels")
        images = self.job.source.read(slice(None))
        return classifier(images, labels.to(images.device), self.job.seed)[0]

    def row(self, sampler: Callable[[Tensor, int], Tensor]) -> dict[str, object]:
        """The columns of a sampler: means over sets, with their standard errors."""
        values = [self._values(sampler, seed) for seed in range(SETS)]
        columns = {}
        for name in values[0]:
            found = torch.tensor([value[name] for value in values], dtype=torch.float64)
            columns |= numbers(Estimate.of_samples(found), name)
        return columns

    @torch.no_grad()
    def _values(self, sampler: Callable[[Tensor, int], Tensor], seed: int) -> dict[str, float]:
        own = 1000 * self.job.seed + FIRST_SEED + seed
        z = diffusion.initial_noise(self.size, self.held.shape[1:], own).to(self.job.device)
        x = sampler(z, own).clamp(-1, 1)
        return {
            "energy": metrics.energy_distance(x, self.held),
            "frechet": metrics.frechet(self.features(x), self.features(self.held)),
            "nearest": metrics.nearest(x, self.job.source)[0].median().item(),
        }


def _grid(calls: int) -> list[float]:
    """As many levels as there are calls: the published ones without the lowest, σ = 0.002."""
    return diffusion.edm_sigmas(calls + 1)[:-1].tolist()


def _of_means(denoiser: diffusion.Denoiser) -> dict[str, Callable[[Tensor, int, int], Tensor]]:
    """Ordinary diffusion: Heun's method in at most so many calls, and the bridge."""

    def heun(z: Tensor, calls: int, seed: int) -> Tensor:
        return diffusion.sample(denoiser, z, _grid((calls + 1) // 2))

    def bridge(z: Tensor, calls: int, seed: int) -> Tensor:
        return sample(lambda z, sigma, xi: denoiser(z, sigma), z, _grid(calls), seed=seed)

    return {"heun": heun, "bridge": bridge}


def _of_draws(network: Any) -> dict[str, Callable[[Tensor, int, int], Tensor]]:
    return {"bridge": lambda z, calls, seed: sample(network, z, _grid(calls), seed=seed)}


def _of_posteriors(collection: Any) -> dict[str, Callable[[Tensor, int, int], Tensor]]:
    """An FPMC whose composite samples stand for draws of a network, or without common noise."""

    def sampler(shared: bool) -> Callable[[Tensor, int, int], Tensor]:
        def network(z: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
            return composite(collection, z, sigma, generator=generator, shared=shared)[0]

        return lambda z, calls, seed: sample(
            network, z, _grid(calls), seed=seed, draw=lambda z, generator: generator
        )

    return {"bridge": sampler(True), "bridge, independent": sampler(False)}


def _makers(job: Job, clock: Clock) -> Iterator[Maker]:
    """All that make samples, trained when their turn comes."""
    given = {"none": lambda z, calls, seed: _training(job, len(z), seed)}
    yield Maker("training images", None, "", given, (0,))
    for file in networks.DRAWING:
        if file.startswith(f"{job.data}/"):
            card = networks.card(file)
            score = card["beta"], card["repulsion"], card["population"]
            yield Maker(file, score, file, _of_draws(job.load(file)))
    file = _trained(job, clock, _mean_recipe(job))
    yield Maker("mean", None, file, _of_means(job.load(file)))
    for score in GRID:
        file = _trained(job, clock, _recipe(job, *score))
        calls = CALLS if score == (1.0, 1.0, 4) else CALLS[:4]
        yield Maker(Path(file).stem, score, file, _of_draws(job.load(file)), calls)
    flex = METHODS["pspc_flex"].maker(job.source, job.sensitivity, schedule_of(job, "pspc_flex"))
    yield Maker("pspc_flex", None, "", _of_posteriors(flex), CALLS[:4])
    yield Maker(job.called(job.reference_file), None, job.reference_file, _of_means(job.reference))


def _training(job: Job, n: int, seed: int) -> Float[Tensor, "n c h w"]:
    """Some training images, drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    return job.source[torch.randperm(len(job.source), generator=generator)[:n]]


def _recipe(job: Job, beta: float, repulsion: float, m: int) -> Recipe:
    """How a network of the grid is trained."""
    options, batch = {"patch": job.side} | SMALL | XI, max(1, BATCH // m)
    score = {"objective": "energy", "beta": beta, "repulsion": repulsion, "population": m}
    budget = {"images": ANSWERS // m, "batch": batch, "seed": job.seed}
    adam = {"optimizer": "adam", "rate": RATE}
    return recipe(job.data, "dit", options=options, **score, **budget, **adam)


def _mean_recipe(job: Job) -> Recipe:
    """The network of means beside them: as many answers, each to an image of its own."""
    one = _recipe(job, 1.0, 1.0, 1)
    plain = {"objective": "mean", "beta": 2.0, "repulsion": 0.0}
    return replace(one, options=one.options | {"xi": False}, **plain)


def _trained(job: Job, clock: Clock, chosen: Recipe) -> str:
    """The file of a network of the grid, trained if it is not there."""
    name = "mean"
    if chosen.objective == "energy":
        name = f"beta-{chosen.beta:g}-lambda-{chosen.repulsion:g}-m-{chosen.population}"
    folder = job.runs / f"{job.label}-distributional" / name
    path = folder / f"{name}.safetensors"
    if not path.exists():
        with clock.unit("train"):
            try:
                made = train(
                    chosen, folder, dataset=job.dataset, device=job.device, precision="float32",
                    limit=clock.minutes, progress=False,
                )  # fmt: skip
            except TimeoutError as stopped:
                raise OutOfTimeError from stopped
            networks.save(made, path, networks.card(folder / "network.safetensors"))
    return str(path)


def _cost(job: Job, clock: Clock) -> None:
    """The time of a training step against m, at one number of noisy images."""
    key = ("data", "m")
    with job.table("draws_cost", key).collected() as table:
        for m in TIMED_DRAWS:
            head = {"data": job.label, "m": str(m)}
            settings = {"n": TIMED, "seed": job.seed, "data_hash": job.data_hash}
            if table.has(head, settings):
                continue
            with clock.unit("cost"):
                chosen = replace(_recipe(job, 1.0, float(m > 1), m), batch=TIMED_BATCH)
                run = Run(chosen, job.runs / "none", job.dataset, replace(ALONE), "float32")
                seconds = [_step(run) for _ in range(TIMED + 1)][1:]
                row = {
                    "answers": TIMED_BATCH * m,
                    "step_seconds": f"{statistics.median(seconds):.4g}",
                }
                table.add({**head, **settings, **row, **job.provenance()})


def _step(run: Run) -> float:
    start = time.perf_counter()
    run.gradient_of(next(run.batches)).backward()
    run.loop.optimizer.step()
    run.loop.optimizer.zero_grad()
    return time.perf_counter() - start
