"""How many source images the other places of a patch are worth: ELS beside LS, by source size.

LS sees a patch at its own place in every source image, ELS at all places of its class. At noise
levels in the middle, both answer the same noisy held-out images, over sources of rising size, each
a part of the next, with the side that is nearest to the network on other held-out images: of the
odd sides around the last source's, and the even ones beside the best of them. What is measured of
every image is kept, so that differences are paired.
"""

import math
import time
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion
from fpmc.experiments import contest
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import Table, numbers
from fpmc.methods.schedules import patch_schedule, published_for
from fpmc.methods.search import errors_around
from fpmc.metrics import Estimate
from fpmc.source import to_float

__all__ = ["SIZES", "run", "worth"]

KEY = ("data", "network", "method", "sigma", "n_source")
SIZES = {"ls": (500, 2_000, 10_000), "els": (500,)}
"""Source images, beside all that a method sees."""
MIDDLE = (0.1, 6.0)
"""Noise levels between which machines and optimal denoisers differ most."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing.

    Raises:
        ValueError: If there are too few held-out images for the answers and the search.
    """
    low, high = MIDDLE
    levels = [i for i in job.chosen if low <= job.levels[i] <= high]
    work = [(name, i) for i in levels for name in contest.wanted(job, SIZES)]
    with job.table("places", KEY).collected() as table:
        for name, i in tqdm(work, desc="places"):
            near = patch_schedule(published_for(job.data), name, job.side)(job.levels[i])
            for n in _sizes(job, name):
                near = _row(job, clock, table, (name, i, n), near)


def worth(
    ls: Mapping[int, Float[Tensor, " b"]], els: Float[Tensor, " b"]
) -> tuple[float, float, float]:
    r"""How many source images LS needs for the mean error of ELS, from errors to the same images.

    Between two sources the logarithm of LS's error is taken as linear in that of their size.

    Args:
        ls: {number of source images: LS's errors}, at least two of them, each of shape (b,), b ≥ 2.
        els: ELS's errors, shape (b,).

    Returns:
        The number, and two standard errors below and above it: those of the logarithm of the two
        errors' ratio, by the jackknife over the images, over the slope. Beyond the sources no
        number is told: 0 stands for fewer than the smallest, infinity for more than the largest.
    """
    sizes = sorted(ls)
    errors = torch.stack([*(ls[n] for n in sizes), els]).double()
    *means, wanted = errors.mean(1).log().tolist()
    if means[0] <= wanted:
        return 0.0, 0.0, 0.0
    at = next((i for i, mean in enumerate(means) if mean <= wanted), None)
    if at is None:
        return (math.inf,) * 3
    share = (means[at - 1] - wanted) / (means[at - 1] - means[at])
    step = math.log(sizes[at] / sizes[at - 1])
    slope = (means[at - 1] - means[at]) / step
    middle = math.log(sizes[at - 1]) + share * step
    spread = _jackknife(errors[[at - 1, at, -1]], torch.tensor([1 - share, share, -1])) / slope
    numbers = (math.exp(middle + 2 * side * spread) for side in (0, -1, 1))
    return tuple(0.0 if n < sizes[0] else math.inf if n > sizes[-1] else n for n in numbers)


def _jackknife(errors: Float[Tensor, "k b"], factors: Float[Tensor, " k"]) -> float:
    """The standard error of Σ_k f_k log e̅_k, of means over the same images."""
    b = errors.shape[1]
    without = (errors.sum(1, keepdim=True) - errors) / (b - 1)
    told = factors.to(without) @ without.log()
    return math.sqrt((b - 1) / b * (told - told.mean()).square().sum().item())


def _sizes(job: Job, name: str) -> list[int]:
    """How many source images a method sees, one row after the other."""
    most = len(job.seen_by(name))
    return [*(n for n in SIZES[name] if n < most), most]


def _row(job: Job, clock: Clock, table: Table, which: tuple[str, int, int], near: int) -> int:
    """See that a row is there; its side."""
    name, i, n = which
    points, search = job.points, job.search_points or job.points
    network, sigma = job.called(job.reference_file), job.levels[i]
    said = (job.label, network, name, f"{sigma:.6g}", str(n))
    head = dict(zip(KEY, said, strict=True))
    more = {"n_source": n, "steps": len(job.levels), "validation_n": search}
    settings = job.settings(name, points, job.reference_file, **more)
    if not table.has(head, settings):
        with clock.unit(name):
            start, source = time.perf_counter(), job.first(n)
            questions = _Questions(job, i, points, search)
            tried = _tried(job, name, near, lambda p: questions.search(job.make(name, p, source)))
            best = min(tried, key=tried.get)
            each = questions.answer(job.make(name, best, source))
            told = job.provenance(name, time.perf_counter() - start) | {"n_source": n}
            sides = {"value": best, "tried": " ".join(map(str, sorted(tried)))}
            estimate = numbers(Estimate.of_samples(each))
            errors = {"each": " ".join(f"{x:.4g}" for x in each.tolist())}
            table.add({**head, **settings, **sides, **estimate, **errors, **told})
    return int(table[head]["value"])


def _tried(job: Job, name: str, near: int, measure) -> dict[int, float]:
    """{side: error} of the odd sides around one, and of the even ones beside the best of them."""
    found = errors_around([int(p) for p in contest.values(job, name)], near, measure)
    best = min(sorted(found), key=found.get)
    return found | {p: measure(p) for p in (best - 1, best + 1) if 0 < p <= job.side}


class _Questions:
    """Noisy held-out images of one level, and the network's answers: to choose by, to measure on.

    Those that are measured are the forward ones of :mod:`fpmc.experiments.denoising`.
    """

    def __init__(self, job: Job, i: int, points: int, search: int):
        held, self.sigma = len(job.dataset.test), job.levels[i]
        if points + search > held:
            raise ValueError(f"points: got {points} and {search} to search, wanted at most {held}")
        network, images = in_batches(job.reference, job.batch), job.dataset.test[: points + search]
        x, seed = to_float(images).to(job.device), job.seed * 1000 + i
        noisy = (
            diffusion.add_noise(x[:points], self.sigma, seed + 500),
            diffusion.add_noise(x[points:], self.sigma, seed),
        )
        self.measured, self.chosen_by = ((z, network(z, self.sigma)) for z in noisy)

    def answer(self, denoiser: diffusion.Denoiser) -> Float[Tensor, " b"]:
        """The errors to the network, an image each."""
        return self._errors(denoiser, *self.measured)

    def search(self, denoiser: diffusion.Denoiser) -> float:
        """The mean error to the network on the other images."""
        return self._errors(denoiser, *self.chosen_by).mean().item()

    def _errors(self, denoiser: diffusion.Denoiser, z: Tensor, target: Tensor) -> Tensor:
        return (denoiser(z, self.sigma) - target).double().square().flatten(1).mean(1)
