"""Compute a network's sensitivity maps at the sampler's noise levels and keep them.

python -m fpmc.sensitivity --network photos/ddpmpp --images 16 --out maps.npz
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fpmc import data, networks
from fpmc.checks import as_device, as_whole_number
from fpmc.diffusion import edm_sigmas
from fpmc.sensitivity import maps_over, write
from fpmc.storage import home, try_writing

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.sensitivity --help``."""
    parser = argparse.ArgumentParser(prog="python -m fpmc.sensitivity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--network", required=True, help="what fpmc.networks.load takes")
    add("--data", help="dataset of the images (default: the network's own); held-out ones are used")
    add("--images", type=int, default=16, help="noisy images per noise level (default: 16)")
    add("--steps", type=int, default=18, help="the sampler's noise levels (default: 18)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--cache", type=Path, help="folder for finished levels (default: beside the data)")
    add("--out", type=Path, required=True, help="the .npz file to write")
    given = parser.parse_args(arguments)
    try:
        device = as_device(given.device, "--device")
        if not given.out.parent.is_dir() or given.out.is_dir():
            raise ValueError(f"--out: got {given.out}, wanted a file in a folder that is there")
        try_writing(given.out.parent, "--out")
        sigmas = edm_sigmas(as_whole_number(given.steps, "--steps", 2, 10_000)).tolist()
        dataset = data.load(given.data or _data_of(given.network))
        trained_on = None if given.data else networks.card(given.network).get("images_hash")
        if trained_on not in (None, data.fingerprint(dataset.train)):
            raise ValueError(
                f"{given.network}: was trained on other images than lie under "
                f"{_data_of(given.network)} now, wanted --data"
            )
        network = networks.load(given.network, shape=dataset.test.shape[1:]).to(device)
        options = {"seed": given.seed, "cache": given.cache or home() / "maps", "progress": True}
        n = as_whole_number(given.images, "--images", 1, len(dataset.test))
        images = dataset.test[:n].to(device)
        maps = maps_over(network, sigmas, images, **options)
        write(given.out, maps, images=n)
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _data_of(network: str) -> str:
    card = networks.card(network)
    if "data" not in card:
        raise ValueError(f"{network}: its card names no data, wanted --data")
    return card["data"]


if __name__ == "__main__":
    main()
