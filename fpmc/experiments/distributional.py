"""Few steps: samples of networks of means and of networks that draw, by the number of their calls.

A grid of networks is trained by the energy score, over β, λ and the number m of its draws, some by
kernel scores, and one of means beside them, all small and with as many answers to compute. Their
samples, those of the data's own networks and those of an FPMC's posteriors are compared with
held-out images: by the energy distance, and where images have labels by the Fréchet distance of
features of a classifier of them. Errors are over sets of samples, each from noise of its own.
Training images stand beside them.

Source: De Bortoli et al. (2025), "Distributional Diffusion Models with Scoring Rules".
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, metrics, networks
from fpmc.experiments.clock import Clock
from fpmc.experiments.features import classifier
from fpmc.experiments.few_steps import Sampler, of_draws, of_means, of_posteriors
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

__all__ = ["GRID", "KERNEL_GRID", "run", "trained"]

KEY = ("data", "network", "sampler", "calls")
CALLS = (1, 2, 4, 8, 16, 32)
FEW = 4
"""How many of these numbers, the first, most of the grid has."""
BETAS, LAMBDAS = (0.1, 1.0, 1.9, 2.0), (0.0, 0.5, 1.0)
GRID = (
    *((1.0, 1.0, m) for m in (4, 2, 8)),
    *((beta, 1.0, 4) for beta in BETAS if beta != 1),
    *((beta, repulsion, 4) for repulsion in LAMBDAS[:2] for beta in BETAS),
)
"""(β, λ, m) of the networks that draw."""
KERNEL_GRID = tuple(itertools.product(("rbf", "imq"), (0.5, 1.0)))
"""Kernels and their bandwidths, for networks with λ = 1 and m = 4."""
IMAGES, PATCHES = "training images", "pspc_flex"
LONG = "beta-1-lambda-1-m-4"
"""The network that draws by all numbers of calls."""
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
        score: λ, m, and β or a bandwidth, where it was trained by a score.
        file: The network's file, if it is one.
        samplers: By name.
    """

    network: str
    score: dict[str, float]
    file: str
    samplers: dict[str, Sampler]


def run(job: Job, clock: Clock) -> None:
    """Train the networks that are not there, and compute the rows that are missing."""
    judge, makers = Judge(job), _makers(job, clock)
    if unknown := sorted(set(job.score) - set(makers)):
        raise ValueError(f"score: got {unknown[0]!r}, wanted some of {', '.join(makers)}")
    _check_calls(job)
    with job.table("distributional", KEY).collected() as table:
        for name in tqdm(job.score or makers, desc="distributional"):
            maker = makers[name]()
            for (way, sampler), calls in itertools.product(maker.samplers.items(), _calls(name)):
                if job.calls and calls and calls not in job.calls:
                    continue
                head = dict(zip(KEY, (job.label, maker.network, way, str(calls)), strict=True))
                settings = job.settings(
                    "", SETS, *([maker.file] if maker.file else []), validation_n=judge.size
                )
                if table.has(head, settings):
                    continue
                with clock.unit(f"{maker.network} {way} {calls}"):
                    start = time.perf_counter()
                    row = judge.row(lambda z, seed, s=sampler, n=calls: s(z, n, seed))
                    told = job.provenance("", time.perf_counter() - start)
                    score = dict.fromkeys(("beta", "lambda", "m"), "") | maker.score
                    table.add({**head, **settings, **score, **row, **told})
    if not (job.score or job.calls):
        _cost(job, clock)


def _calls(name: str) -> tuple[int, ...]:
    """The numbers of calls that a maker's samples take; those of training images take none."""
    if name == IMAGES:
        return (0,)
    kernels = {_kernel_name(*each) for each in KERNEL_GRID}
    few = {PATCHES, *kernels, *(_name(*each) for each in GRID)} - {LONG}
    return CALLS[:FEW] if name in few else CALLS


def _check_calls(job: Job) -> None:
    """See that what is asked for by name has the numbers of calls that are asked for."""
    for name in set(job.score or (LONG,)) - {IMAGES}:
        known = _calls(name)
        if unknown := sorted(set(job.calls) - set(known)):
            of = f" for {name}" if job.score else ""
            wanted = ", ".join(map(str, known))
            raise ValueError(f"calls: got {unknown[0]}{of}, wanted some of {wanted}")


class Judge:
    """Held-out images, the features in which sets are compared, and what a set is worth."""

    def __init__(self, job: Job):
        self.job, self.held = job, job.test(job.points)
        self.size = len(self.held)

    @cached_property
    def features(self) -> Callable[[Tensor], Tensor] | None:
        """Those of a classifier of the labels; None of images that have no labels."""
        labels = self.job.dataset.train_labels
        if labels is None:
            return None
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
        values = {"energy": metrics.energy_distance(x, self.held)}
        if self.features is not None:
            values["frechet"] = metrics.frechet(self.features(x), self.features(self.held))
        return values | {"nearest": metrics.nearest(x, self.job.source)[0].median().item()}


def _makers(job: Job, clock: Clock) -> dict[str, Callable[[], Maker]]:
    """All that make samples, by name, each trained when it is asked for."""
    given = {"none": lambda z, calls, seed: _training(job, len(z), seed)}
    makers = {IMAGES: lambda: Maker(IMAGES, {}, "", given)}
    for file in networks.DRAWING:
        if file.startswith(f"{job.data}/"):
            makers[file] = partial(_shipped, job, file)
    makers["mean"] = partial(_mean, job, clock)
    for beta, repulsion, m in GRID:
        name = _name(beta, repulsion, m)
        score = {"beta": beta, "lambda": repulsion, "m": m}
        chosen = _recipe(job, beta, repulsion, m)
        makers[name] = partial(_of_grid, job, clock, name, score, chosen)
    for kernel, bandwidth in KERNEL_GRID:
        name = _kernel_name(kernel, bandwidth)
        chosen = _kernel_recipe(job, kernel, bandwidth)
        score = {"lambda": chosen.repulsion, "m": chosen.population, "bandwidth": bandwidth}
        makers[name] = partial(_of_grid, job, clock, name, score, chosen)
    makers[PATCHES] = partial(_patches, job)
    file = job.reference_file
    makers[job.called(file)] = lambda: Maker(job.called(file), {}, file, of_means(job.reference))
    return makers


def _name(beta: float, repulsion: float, m: int) -> str:
    return f"beta-{beta:g}-lambda-{repulsion:g}-m-{m}"


def _kernel_name(kernel: str, bandwidth: float) -> str:
    return f"{kernel}-{bandwidth:g}"


def _shipped(job: Job, file: str) -> Maker:
    card = networks.card(file)
    score = {"beta": card["beta"], "lambda": card["repulsion"], "m": card["population"]}
    return Maker(file, score, file, of_draws(job.load(file)))


def _mean(job: Job, clock: Clock) -> Maker:
    file = trained(job, clock, _mean_recipe(job), "mean")
    return Maker("mean", {}, file, of_means(job.load(file)))


def _of_grid(job: Job, clock: Clock, name: str, score: dict[str, float], chosen: Recipe) -> Maker:
    file = trained(job, clock, chosen, name)
    return Maker(name, score, file, of_draws(job.load(file)))


def _patches(job: Job) -> Maker:
    schedule = schedule_of(job, "pspc_flex")
    flex = METHODS["pspc_flex"].maker(job.source, job.sensitivity, schedule)
    return Maker(PATCHES, {}, "", of_posteriors(flex))


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


def _kernel_recipe(job: Job, kernel: str, bandwidth: float) -> Recipe:
    """The same by a kernel score."""
    energy = _recipe(job, 1.0, 1.0, 4)
    return replace(energy, objective=kernel, beta=2.0, bandwidth=bandwidth)


def _mean_recipe(job: Job) -> Recipe:
    """The network of means beside them: as many answers, each to an image of its own."""
    one = _recipe(job, 1.0, 1.0, 1)
    plain = {"objective": "mean", "beta": 2.0, "repulsion": 0.0}
    return replace(one, options=one.options | {"xi": False}, **plain)


def trained(job: Job, clock: Clock, chosen: Recipe, name: str) -> str:
    """The file of a network of this name, trained if it is not there.

    Raises:
        fpmc.limits.OutOfTimeError: If the clock's time is over before; the same call goes on.
    """
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
