"""Keep how a trained network does beside the Wiener filter and the optimal denoiser, as a trial.

    T="python -m fpmc.experiments.trials"
    $T --trial "more dropout" runs/digits-ddpmpp-0/network.safetensors

adds a row per noise level to ``results/DATA/trials.csv``, with the command and the device on the
network's card; rows of the same trial of the same network and budget are replaced. The book's
page of results shows them, and its chapter on the networks draws them. Of the shipped networks,
``results/DATA/shipped.csv`` has the same:

    D="digits/ddpmpp digits/ncsnpp digits/dit digits/dit-1"
    $T --table shipped --trial held-out --draws 20 --together $D
    $T $D --table shipped --trial training --draws 4 --training 1500 --sigma 1.29155 2.15443
    $T --table shipped --trial held-out photos/ddpmpp photos/ncsnpp
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fpmc import diffusion, metrics, networks
from fpmc.checks import as_noise_level, as_whole_number
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tables import Table
from fpmc.experiments.worth import LEVELS
from fpmc.source import to_float

KEY = ("data", "network", "trial", "images", "sigma")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.experiments.trials --help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("files", nargs="+", help="networks, as fpmc.networks.load takes them")
    add("--trial", required=True, help="what the rows call it")
    add("--draws", type=int, default=1, help="draws of the noise per image (default: 1)")
    add("--training", type=int, metavar="N", help="on N training images, not on held-out ones")
    add("--sigma", type=float, nargs="+", default=LEVELS, help="noise levels (default: ten)")
    add("--together", action="store_true", help="the mean of the networks' answers as well")
    add("--table", default="trials", help="the table's name (default: trials)")
    add("--out", type=Path, help="folder of the table (default: results/DATA)")
    add("--label", help="what the rows call the data (default: DATA)")
    given = parser.parse_args(arguments)
    try:
        draws = as_whole_number(given.draws, "--draws", 1)
        levels = [as_noise_level(sigma, "--sigma") for sigma in given.sigma]
        for files in (given.files,) if given.together else [[file] for file in given.files]:
            told = (given.out, given.table, given.label)
            keep(files, given.trial, draws, given.training, levels, *told)
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def keep(
    files: Sequence[str],
    trial: str,
    draws: int,
    training: int | None = None,
    levels: Sequence[float] = LEVELS,
    out: Path | None = None,
    table: str = "trials",
    label: str | None = None,
) -> None:
    """Measure networks and, if they are several, the mean of their answers: a row per noise level.

    Args:
        files: The networks, as :func:`fpmc.networks.load` takes them; of the same data, with cards.
        trial: What the rows call it.
        draws: Draws of the noise per image.
        training: How many training images to measure on; held-out ones if left out.
        levels: The noise levels.
        out: Folder of the table; that of the network's data if left out.
        table: The table's name.
        label: What the rows call the data; their name if left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is no network with a card of its training, their data differ, or other
            images lie there now.
    """
    cards = [networks.card(file) for file in files]
    for file, card in zip(files, cards, strict=True):
        if "command" not in card:
            raise ValueError(f"{file}: has no card of a training")
    if len({card["data"] for card in cards}) > 1:
        raise ValueError(f"files: got networks of {', '.join(card['data'] for card in cards)}")
    data, seed = cards[0]["data"], cards[0]["seed"]
    job = Job(data=data, out=out, label=label, seed=seed, batch=1_000)
    provenance = {name: value for name, value in job.provenance().items() if name != "seconds"}
    own = [in_batches(replace(job, network=file).load(file), job.batch) for file in files]
    names = [_row(job.label, card) for card in cards]
    if len(files) > 1:
        names.append({"network": f"{job.label}/mean of {len(files)}", "images": ""})
    images = job.dataset.test
    if training is not None:
        n = as_whole_number(training, "training", 1, len(job.dataset.train))
        images = job.dataset.train[:n]
    x, rows = to_float(images).repeat(draws, 1, 1, 1), []
    for sigma in levels:
        z = diffusion.add_noise(x, sigma, 0)
        answers = [network(z, sigma) for network in own]
        if len(files) > 1:
            answers.append(sum(answers) / len(answers))
        others = [job.make(name, None)(z, sigma) for name in ("wiener", "optimal")]
        for head, answer in zip(names, answers, strict=True):
            row = {"data": job.label, "trial": trial, **head, "sigma": f"{sigma:.6g}"}
            row |= _beside(answer, *others, x, len(images))
            rows.append({**row, **job.settings("", len(x)), **provenance})
    kept = Table(job.out / f"{table}.csv", KEY)
    for row in rows:
        kept.add(row)
    kept.collect(replace=True)


def _row(label: str, card: dict) -> dict:
    """What a network's card says of it."""
    seed = card["seed"]
    return {
        "network": f"{label}/{card['arch']}" + (f"-{seed}" if seed else ""),
        "images": card["images"],
        "minutes": f"{card['minutes']:.1f}",
        "held_out": f"{card['loss'][-1]['held_out']:.4f}",
        "command": card["command"],
        "trained_on": card.get("device", ""),
    }


def _beside(answer: Tensor, wiener: Tensor, optimal: Tensor, x: Tensor, n: int) -> dict:
    """The errors' ratios, with standard errors paired over the n images, and the distance."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        """Of each image, the mean over its values and draws."""
        return (a - b).double().square().mean((1, 2, 3)).view(-1, n).mean(0)

    error, row = squared(answer, x), {}
    for name, other in (("to_wiener", squared(wiener, x)), ("to_optimal", squared(optimal, x))):
        gap = metrics.Estimate.of_samples((error - other) / other.mean())
        row |= {name: f"{1 + gap:.5f}", f"{name}_error": f"{gap.standard_error:.2g}"}
    distance = squared(answer, optimal).mean() / squared(optimal, x).mean()
    return row | {"distance": f"{distance:.5f}"}


if __name__ == "__main__":
    main()
