"""Keep how a trained network does beside the Wiener filter and the optimal denoiser, as a trial.

    python results/trials.py --trial "more dropout" runs/digits-ddpmpp-0/network.safetensors

adds a row per noise level to ``results/DATA/trials.csv``, with the command and the device on the
network's card; rows of the same trial of the same network and budget are replaced. The book's
page of results shows them, and its chapter on the networks draws them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.job import Job, in_batches
from stages.table import Table
from stages.worth import LEVELS

from fpmc import diffusion, metrics, networks
from fpmc.checks import as_whole_number
from fpmc.source import to_float

HERE = Path(__file__).parent
KEY = ("data", "network", "trial", "images", "sigma")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python results/trials.py --help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("files", nargs="+", help="networks, as fpmc.networks.load takes them")
    add("--trial", required=True, help="what the rows call it")
    add("--draws", type=int, default=1, help="draws of the noise per held-out image (default: 1)")
    add("--out", type=Path, help="folder of the table (default: results/DATA)")
    given = parser.parse_args(arguments)
    try:
        draws = as_whole_number(given.draws, "--draws", 1)
        for file in given.files:
            keep(file, given.trial, draws, given.out)
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def keep(file: str, trial: str, draws: int, out: Path | None = None) -> None:
    """Measure a network, and keep a row per noise level.

    Args:
        file: The network, as :func:`fpmc.networks.load` takes it; it needs a card.
        trial: What the rows call it.
        draws: Draws of the noise per held-out image.
        out: Folder of the table; that of the network's data if left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no network with a card of its training.
    """
    card = networks.card(file)
    if "command" not in card:
        raise ValueError(f"{file}: has no card of a training")
    data, seed = card["data"], card["seed"]
    label = Path(data).stem
    job = Job(data=data, out=out or HERE / label, label=label, seed=seed, batch=1_000)
    provenance = {name: value for name, value in job.provenance().items() if name != "seconds"}
    network = in_batches(networks.load(file), job.batch)
    x = to_float(job.dataset.test).repeat(draws, 1, 1, 1)
    table = Table(job.out / "trials.csv", KEY)
    for sigma in LEVELS:
        z = diffusion.add_noise(x, sigma, 0)
        own, *others = (
            metrics.mse(denoiser(z, sigma), x)
            for denoiser in (network, job.method("wiener", None), job.method("optimal", None))
        )
        ratios = (float(own / other) for other in others)
        table.add(
            {
                "data": label,
                "network": f"{label}/{card['arch']}" + (f"-{seed}" if seed else ""),
                "trial": trial,
                "images": card["images"],
                "minutes": f"{card['minutes']:.1f}",
                "held_out": f"{card['loss'][-1]['held_out']:.4f}",
                "sigma": f"{sigma:.6g}",
                **dict(zip(("to_wiener", "to_optimal"), map("{:.4f}".format, ratios), strict=True)),
                "n": len(x),
                **provenance,
                "command": card["command"],
                "trained_on": card.get("device", ""),
            }
        )


if __name__ == "__main__":
    main()
