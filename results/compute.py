"""Compute the tables of the comparison of all methods with a network, in stages that resume.

    python results/compute.py --data photos
    python results/compute.py --data cifar10 --device cuda --stage train --minutes 9

Each stage writes a CSV file into a folder beside this script, a row per number, with everything
that is needed to obtain it again; rows that are there already are not computed again. A stage that
its minutes stopped (exit status 75) goes on with the same command.

- ``train``: DDPM++ and NCSN++ on the data, if no others are named and none are shipped.
- ``worth``: whether they are worth predicting: their errors on held-out images beside those of the
  Wiener filter and the optimal denoiser, and how far their samples are from the training images.
- ``maps``: the sensitivity maps of the network.
- ``schedules``: for every method with a knob, its error to the network over the knob and σ; the
  best values are the dataset's schedule. On large data: for LS and ELS, around what was published.
- ``denoising``: every method's error to the network over σ, for z from the forward process (noisy
  held-out images) and from the reverse process (the network's own sampling trajectories).
- ``samples``: every method's samples against another network's from the same noise.
- ``engine``: the scripts of ``benchmarks/`` on this device.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from stages import contest, denoising, engine, maps, samples, schedules, train, worth
from stages.clock import Clock, OutOfTimeError
from stages.job import SMALL, Job

from fpmc import networks
from fpmc.checks import as_device, as_positive, as_whole_number
from fpmc.engine import as_precision

HERE = Path(__file__).parent
STAGES = ("train", "worth", "maps", "schedules", "denoising", "samples", "engine")
SHIPPED_STAGES = ("schedules", "denoising", "samples")
METHODS = ("optimal", "wiener", *contest.KNOBS)
LEAST = {"points": 1, "search_points": 1, "samples": 1, "part": 1, "batch": 1, "steps": 2}
LEAST |= {"map_images": 1, "seed": 0}
"""The least that an argument may be."""
OUT_OF_TIME = 75
"""Exit status of a run that its minutes stopped (EX_TEMPFAIL)."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data", required=True, help="name or path of a dataset")
    add("--root", help="where datasets lie")
    add("--label", help="what the tables call the data (default: DATA)")
    add("--out", type=Path, help="folder of the tables (default: results/LABEL)")
    add("--stage", choices=STAGES, action="append", help="default: all that are needed, in order")
    add("--minutes", type=float, default=math.inf, help="of each stage: stop before they are over")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add(
        "--precision",
        default="exact",
        help="of collections, all methods but wiener and els: exact (default), float32, or on cuda "
        "tf32 or bf16",
    )
    add("--budget", type=float, help="working memory of a call in GiB (default: 1)")
    add("--seed", type=int, default=0)
    add("--code", help="version of the code, where no git checkout tells it")

    add = parser.add_argument_group("what is compared with what").add_argument
    add("--network", help="what the methods are compared with (default: the data's DDPM++)")
    add("--other", help="whose samples are the reference (default: the data's NCSN++)")
    add("--maps", help="the network's sensitivity maps (default: the shipped or computed ones)")
    add(
        "--papers",
        action=argparse.BooleanOptionalAction,
        help="published schedules for all, LS and ELS searched around them, and Lukoianov at 0.05 "
        "and 0.02 (default: on data that are not embedded)",
    )
    add(
        "--method",
        choices=METHODS,
        action="append",
        default=[],
        help="run this one alone (again for others)",
    )

    add = parser.add_argument_group("how much of it").add_argument
    add("--points", type=int, default=64, help="noisy images per noise level (default: 64)")
    add("--search-points", type=int, help="the same for the stage schedules (default: as many)")
    add("--samples", type=int, default=32, help="samples per method (default: 32)")
    add("--part", type=int, help="samples at a time, kept when done (default: all)")
    add("--batch", type=int, help="images per call (default: 16, on cuda 1000)")
    add("--steps", type=int, help="noise levels of the sampler (default: 18, 40 at 64 x 64)")
    add("--sources", nargs="+", default=["els=1500"], metavar="METHOD=N",
        help="images that a method sees, if not all (default: els=1500)")  # fmt: skip
    add("--map-images", type=int, default=16, help="noisy images per map (default: 16)")

    add = parser.add_argument_group("training").add_argument
    add("--arch", choices=["ddpmpp", "ncsnpp"], action="append", help="train this one alone")
    add("--train-minutes", type=float, help="budget of each network (default: the recipe's images)")
    add(
        "--recipe",
        type=json.loads,
        default={},
        help='what else differs from the recipe, as JSON: {"batch": 256}',
    )
    add(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="let torch.compile fuse the steps, which needs a compiler (default: on cuda)",
    )
    add("--runs", type=Path, default=Job.runs, help="folder of states and single maps")

    add = parser.add_argument_group("engine").add_argument
    add(
        "--benchmark",
        action="append",
        help="a script of benchmarks/ with its arguments, in which {data}, {label}, {device}, {n} "
        "and {budget} are filled in (default: paths.py, on cuda kernels.py as well)",
    )
    return parser


def job_of(given: argparse.Namespace) -> Job:
    """What the command line asks for.

    Raises:
        ValueError: If an argument cannot be read.
    """
    on_cuda = as_device(given.device).type == "cuda"
    for name, least in LEAST.items():
        value = getattr(given, name)
        if value is not None:
            as_whole_number(value, f"--{name.replace('_', '-')}", least)
    for name in ("minutes", "train_minutes", "budget"):
        value = getattr(given, name)
        if value is not None:
            as_positive(value, f"--{name.replace('_', '-')}", finite=name != "minutes")
    label = given.label or Path(given.data).stem
    if as_precision(given.precision) in ("tf32", "bf16") and not on_cuda:
        raise ValueError(f"precision: got {given.precision!r} on {given.device}, wanted cuda")
    try:
        sources = {name: int(n) for name, n in (pair.split("=") for pair in given.sources)}
    except ValueError as error:
        raise ValueError(f"sources: got {given.sources}, wanted METHOD=N") from error
    for name, n in sources.items():
        if name not in METHODS:
            raise ValueError(f"sources: got {name!r}, wanted one of {', '.join(METHODS)}")
        as_whole_number(n, f"sources: {name}", 1)
    if not isinstance(given.recipe, dict):
        raise ValueError(f"recipe: got {given.recipe!r}, wanted an object")
    return Job(
        data=given.data,
        out=given.out or HERE / label,
        label=label,
        root=given.root,
        network=given.network,
        other=given.other,
        maps=given.maps,
        points=given.points,
        searched=given.search_points,
        samples=given.samples,
        part=given.part,
        batch=given.batch or (1000 if on_cuda else 16),
        sources=sources,
        papers=given.data not in SMALL if given.papers is None else given.papers,
        only=tuple(given.method),
        steps=given.steps,
        budget=None if given.budget is None else int(given.budget * 2**30),
        runs=given.runs,
        seed=given.seed,
        device=given.device,
        precision=given.precision,
        code=given.code,
    )


def stages_of(given: argparse.Namespace, job: Job) -> dict[str, Callable[[Clock], None]]:
    """The stages asked for, in order."""
    changes = {} if given.train_minutes is None else {"minutes": given.train_minutes}
    own = [arch for arch, named in (("ddpmpp", job.network), ("ncsnpp", job.other)) if not named]
    device = torch.device(given.device).type
    compiled = device == "cuda" if given.compiled is None else given.compiled
    training = train.Training(tuple(given.arch or own), changes | given.recipe, compiled)
    benchmarks = given.benchmark or engine.DEFAULT[device]
    run = {
        "train": lambda clock: train.run(job, clock, training),
        "worth": lambda clock: worth.run(job, clock),
        "maps": lambda clock: maps.run(job, clock, given.map_images),
        "schedules": lambda clock: schedules.run(job, clock),
        "denoising": lambda clock: denoising.run(job, clock),
        "samples": lambda clock: samples.run(job, clock),
        "engine": lambda clock: engine.run(job, clock, benchmarks),
    }
    needed = SHIPPED_STAGES if job.reference_file in networks.SHIPPED else STAGES
    return {name: run[name] for name in STAGES if name in (given.stage or needed)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for."""
    given = parser().parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # networks are to answer as they do on a CPU
    try:
        job = job_of(given)
        for name, run in stages_of(given, job).items():
            try:
                run(Clock(given.minutes))
            except OutOfTimeError:
                print(f"{name}: stopped after {given.minutes:g} minutes; the same command goes on")
                sys.exit(OUT_OF_TIME)
    except (TypeError, ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
