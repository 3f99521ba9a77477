"""The stages of a comparison, by name: the command line runs several, a heavy chapter one."""

import torch

from fpmc.experiments import (
    augmentation,
    axes,
    blends,
    denoising,
    distributional,
    engine,
    map_images,
    maps,
    memorisation,
    paths,
    places,
    published,
    recipe,
    samples,
    schedules,
    train,
    tuning,
    worth,
)
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job

__all__ = ["STAGES", "run"]

MODULES = (train, worth, maps, schedules, denoising, samples, published, tuning, augmentation)
MODULES += (recipe, axes, blends, memorisation, places, map_images, distributional, paths, engine)
STAGES = {stage.__name__.rpartition(".")[2]: stage for stage in MODULES}
"""{name: module with a function run(job, clock)}, in order."""


def run(name: str, job: Job, clock: Clock) -> None:
    """Compute what a stage's table lacks.

    Args:
        name: One of :data:`STAGES`.
        job: What is compared with what.
        clock: The time there is.

    Raises:
        fpmc.limits.OutOfTimeError: If the time is over; the same call goes on.
    """
    torch.backends.cudnn.allow_tf32 = False  # networks are to answer as they do on a CPU
    STAGES[name].run(job, clock)
