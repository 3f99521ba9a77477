"""Compute the tables of the comparison of all methods with a network, in stages that resume.

    python -m fpmc.experiments --data photos --out runs/photos
    python -m fpmc.experiments --data cifar10 --device cuda --stage train --minutes 9

Each stage fills a table of results/LABEL, a row per number, with everything that is needed to
obtain it again. Rows that are there are not computed again; rows that are there by other settings
are an error. Several processes may work on one folder. A stage that its minutes stopped (exit
status 75) goes on with the same command.

- train: DDPM++ and NCSN++ on the data, if no others are named and none are shipped.
- worth: whether they are worth predicting: their errors on held-out images beside those of the
  Wiener filter and the optimal denoiser, and how far their samples are from the training images.
- maps: the sensitivity maps of the network.
- schedules: for every method with a knob, its error to the network over the knob and σ; the best
  values are the dataset's schedule. On large data: for LS and ELS, around what was published.
- denoising: every method's error to the network over σ, for z from the forward process (noisy
  held-out images) and from the reverse process (the network's own sampling trajectories).
- samples: every method's samples against another network's from the same noise.
- published: every method's samples against images that somebody generated with EDM, from the noise
  that their seeds stand for, with the images' classes as sources. It runs where it is named.
- tuning: how much nearer the methods come to the network with tuned queries and responses. Long:
  it runs where it is named.
- augmentation: how much nearer PSPC comes with a larger source, by strategy, size and noise level.
  Long: it runs where it is named.
- recipe: what tuning and a larger source add to PSPC-Flex, alone and together, and in which order,
  and where the Wiener filter is nearer. Long: it runs where it is named.
- axes: what ways that the papers leave open gain over PSPC-Flex: other keys, kernels, estimators,
  Gaussians in the place of points. Long: it runs where it is named.
- blends: the weights with which the axes' combination is nearest to the network at all levels of
  the sampler, its errors, and its folder among the runs. It runs where it is named.
- memorisation: what the methods' estimators know of noisy images against log N, by method, noise
  level and N, and whether answers and samples copy the source. It runs where it is named.
- places: how many source images the other places of a patch are worth: ELS beside LS, by the number
  of source images. Long: it runs where it is named.
- map_images: over how many noisy images maps are to be averaged: maps over 8, 16, 32 and 64 beside
  each other, and PSPC-Flex with them. It runs where it is named.
- distributional: samples of networks of means and of networks that draw, by the number of their
  calls, which it trains over β, λ and m. Long: it runs where it is named.
- paths: paths of a robot in a maze, of networks of means and of networks that draw, by the number
  of their calls, on data maze. It runs where it is named.
- engine: the scripts of benchmarks/ on this device.
"""

import sys
from collections.abc import Sequence

from fpmc import networks
from fpmc.experiments import clock, command, schedules, stages
from fpmc.experiments.stages import STAGES
from fpmc.limits import OUT_OF_TIME, OutOfTimeError

__all__ = ["main"]

ON_SHIPPED_NETWORKS = ("schedules", "denoising", "samples")
"""What is needed where the networks are shipped."""
BY_NAME = ("published", "tuning", "augmentation", "recipe", "axes", "memorisation", "places")
BY_NAME += ("blends", "map_images", "distributional", "paths")
"""What runs only where it is named."""
ON_OTHERS = tuple(name for name in STAGES if name not in BY_NAME)
"""What runs elsewhere if no stage is named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for."""
    try:
        job, given = command.parse(arguments, list(STAGES), __doc__)
        shipped = job.reference_file in networks.SHIPPED
        wanted = given.stage or (ON_SHIPPED_NETWORKS if shipped else ON_OTHERS)
        for name in STAGES:
            if name in wanted:
                left = clock.Clock(given.minutes)
                try:
                    stages.run(name, job, left)
                except OutOfTimeError:
                    told = f"stopped after {given.minutes:g} minutes"
                    print(f"{name}: {told}; the same command goes on")
                    sys.exit(OUT_OF_TIME)
                if not left.longest:
                    print(f"{name}: nothing to do, {job.out} has all of it")
        if given.store:
            print(schedules.store(job))
    except (TypeError, ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
