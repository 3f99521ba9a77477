"""Whether the networks are worth predicting: against two denoisers that need no explanation.

At ten noise levels from 0.1 to 10 the error of each network, of the Wiener filter and of the
optimal denoiser to held-out images; and how far samples, and held-out images, are from the nearest
training image.
"""

import torch

from fpmc import diffusion, metrics
from stages.clock import Clock
from stages.job import Job, in_batches
from stages.table import Table, numbers

__all__ = ["run"]

LEVELS = torch.logspace(-1, 1, 10).tolist()


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    for file in (job.reference_file, job.other_file):
        network = in_batches(job.load(file), job.batch)
        _denoising(job, clock, job.called(file), network)
        _copies(job, clock, job.called(file), network)


def _denoising(job: Job, clock: Clock, name: str, network: diffusion.Denoiser) -> None:
    table = Table(job.out / "worth.csv", ("data", "network", "sigma"))
    x = job.test(job.points)
    for sigma in LEVELS:
        head = {"data": job.label, "network": name, "sigma": f"{sigma:.6g}"}
        if head in table:
            continue
        with clock.unit("worth"):
            z = diffusion.add_noise(x, sigma, job.seed)
            row = numbers(metrics.mse(network(z, sigma), x))
            for other in ("wiener", "optimal"):
                row |= numbers(metrics.mse(job.method(other, None)(z, sigma), x), other)
            table.add({**head, **row, **job.provenance()})


def _copies(job: Job, clock: Clock, name: str, network: diffusion.Denoiser) -> None:
    table = Table(job.out / "copies.csv", ("data", "network"))
    head = {"data": job.label, "network": name}
    if head in table:
        return
    with clock.unit("copies"):
        shape = tuple(job.dataset.train.shape[1:])
        z = diffusion.initial_noise(job.samples, shape, job.seed).to(job.device)
        drawn = diffusion.sample(network, z, job.levels).clamp(-1, 1)
        row = {
            key: f"{metrics.nearest(images, job.source, budget=job.budget)[0].median().item():.4g}"
            for key, images in (("samples", drawn), ("unseen", job.test(job.points)))
        }
        table.add({**head, **row, "n": job.samples, **job.provenance()})
