"""Whether the networks are worth predicting: against two denoisers that need no explanation.

At ten noise levels from 0.1 to 10 the error of each network, of the Wiener filter and of the
optimal denoiser to held-out images; and how far samples, and held-out images, are from the nearest
training image.
"""

import torch

from fpmc import diffusion, metrics
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import Table, numbers

__all__ = ["run"]

LEVELS = torch.logspace(-1, 1, 10).tolist()


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing."""
    for file in (job.reference_file, job.other_file):
        network = in_batches(job.load(file), job.batch)
        _denoising(job, clock, file, network)
        _copies(job, clock, file, network)


def _denoising(job: Job, clock: Clock, file: str, network: diffusion.Denoiser) -> None:
    x, key = job.test(job.points), ("data", "network", "sigma")
    settings = job.settings("", len(x), file)
    with Table(job.out / "worth.csv", key).collected() as table:
        for sigma in LEVELS:
            head = {"data": job.label, "network": job.called(file), "sigma": f"{sigma:.6g}"}
            if table.has(head, settings):
                continue
            with clock.unit("worth"):
                z = diffusion.add_noise(x, sigma, job.seed)
                row = numbers(metrics.mse(network(z, sigma), x))
                for other in ("wiener", "optimal"):
                    row |= numbers(metrics.mse(job.make(other, None)(z, sigma), x), other)
                table.add({**head, **settings, **row, **job.provenance()})


def _copies(job: Job, clock: Clock, file: str, network: diffusion.Denoiser) -> None:
    head = {"data": job.label, "network": job.called(file)}
    settings = job.settings("", job.samples, file)
    with Table(job.out / "copies.csv", tuple(head)).collected() as table:
        if table.has(head, settings):
            return
        with clock.unit("copies"):
            shape = tuple(job.dataset.train.shape[1:])
            z = diffusion.initial_noise(job.samples, shape, job.seed).to(job.device)
            drawn = diffusion.sample(network, z, job.levels).clamp(-1, 1)
            row = {
                name: f"{metrics.nearest(x, job.source, budget=job.bytes)[0].median().item():.4g}"
                for name, x in (("samples", drawn), ("unseen", job.test(job.points)))
            }
            table.add({**head, **settings, **row, **job.provenance()})
