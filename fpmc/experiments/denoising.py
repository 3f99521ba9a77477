"""Every method's error to the network, forward and reverse z, at the sampler's levels."""

import time
from collections.abc import Iterator
from functools import cached_property

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fpmc import diffusion, metrics
from fpmc.experiments import contest, schedules
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import numbers

__all__ = ["run"]

KEY = ("data", "network", "method", "schedule", "z", "sigma", "n_source")


class Questions:
    """Noisy images at every level, and the network's answers to them.

    Forward z are noisy held-out images, reverse z those of the network's own trajectories.
    """

    def __init__(self, job: Job):
        self.job = job
        self.network = in_batches(job.reference, job.batch)
        self.forward: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def reverse(self) -> list[diffusion.Step]:
        shape, n = self.job.dataset.train.shape[1:], len(self.job.test(self.job.points))
        start = diffusion.initial_noise(n, tuple(shape), self.job.seed).to(self.job.device)
        return list(diffusion.steps(self.network, start, self.job.levels))[:-1]

    def at(self, kind: str, i: int) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Noisy images and the answers at the i-th level."""
        if kind == "reverse":
            return self.reverse[i].z, self.reverse[i].x_hat
        if i not in self.forward:
            x, sigma = self.job.test(self.job.points), self.job.levels[i]
            z = diffusion.add_noise(x, sigma, self.job.seed * 1000 + 500 + i)
            self.forward[i] = z, self.network(z, sigma)
        return self.forward[i]


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    found = schedules.found(job, contest.wanted(job, contest.searched(job)))
    questions = Questions(job)
    points = min(job.points, len(job.dataset.test))

    def settings(who: contest.Contestant) -> dict[str, object]:
        more = {"steps": len(job.levels), "schedule_hash": who.digest}
        return job.settings(who.method, points, job.reference_file, **more)

    with job.table("denoising", KEY).collected() as table:
        every = _rows(job, found)
        missing = [work for work in every if not table.has(work[0], settings(work[1]))]
        denoiser, made = None, None
        for head, contestant, i in tqdm(missing, desc="denoising"):
            with clock.unit(contestant.method):
                if made != contestant:
                    denoiser, made = job.make(contestant.method, contestant.knob), contestant
                z, target = questions.at(head["z"], i)
                start = time.perf_counter()
                error = metrics.mse(denoiser(z, job.levels[i]), target)
                told = job.provenance(contestant.method, time.perf_counter() - start)
                row = {**head, **settings(contestant), **numbers(error)}
                table.add({**row, **told})


def _rows(
    job: Job, found: dict[str, dict[float, float]]
) -> Iterator[tuple[dict[str, str], contest.Contestant, int]]:
    """All rows of the table: what tells each apart, who answers, and at which level."""
    network = job.called(job.reference_file)
    for contestant in contest.contestants(job, found):
        seen = str(len(job.seen_by(contestant.method)))
        for kind in ("forward", "reverse"):
            for i in job.chosen:
                said = (job.label, network, *contestant[:2], kind, f"{job.levels[i]:.6g}", seen)
                yield dict(zip(KEY, said, strict=True)), contestant, i
