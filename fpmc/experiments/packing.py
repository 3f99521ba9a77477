"""Pack shipped networks to ten bits a weight, and keep how far their answers moved.

    python -m fpmc.experiments.packing digits/dit photos/ncsnpp

writes the files again as ``fpmc.networks.save(..., packed=True)`` does, in place. Then it asks both
about the same noisy held-out images at every published level, and lets both make samples from the
same noise. What moved is kept in ``results/packing``: ``packed.csv`` and ``packed_samples.csv``.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fpmc import data, diffusion, metrics, networks
from fpmc.experiments.options import ROOT
from fpmc.experiments.packed import BEFORE_PACKING
from fpmc.experiments.packed import PACKED as OWN
from fpmc.experiments.provenance import provenance
from fpmc.experiments.tables import Table
from fpmc.networks.checkpoints import PACKED
from fpmc.networks.hashes import weights_hash
from fpmc.networks.loading import FOLDER
from fpmc.source import to_float
from fpmc.storage import whole

__all__ = ["main", "pack_file", "what_moved"]

IMAGES = 64
"""Noisy images, and samples, of each network."""
LEVELS, SEED = 18, 0

Denoiser = Callable[[Tensor, float], Tensor]


def pack_file(path: Path, out: Path) -> None:
    """Write a network's file in ten bits a weight, with the same card and its hashes.

    Args:
        path: The file.
        out: Where to, another name that ends in .safetensors.

    Raises:
        ValueError: If it is packed already.
    """
    with safe_open(path, framework="pt") as file:
        if file.metadata().get("format") == PACKED:
            raise ValueError(f"network: {path} is packed already")
    network = networks.load(path)
    card = networks.card(path) | {BEFORE_PACKING: weights_hash(network)}
    networks.save(network, out, card, packed=True)
    networks.save(network, out, card | {OWN: weights_hash(networks.load(out))}, packed=True)


@torch.no_grad()
def what_moved(before: Denoiser, after: Denoiser, images: Tensor) -> tuple[list[dict], dict]:
    """How far answers at every level and samples moved, as shares of the norm before.

    Of samples also the coefficient of determination, with those before as the reference.

    Args:
        before: A denoiser.
        after: The same, packed.
        images: Clean images, shape (b, c, h, w); there are as many samples.
    """
    levels, rows = diffusion.edm_sigmas(LEVELS), []
    for sigma in levels.tolist():
        z = diffusion.add_noise(images, sigma, SEED)
        rows.append({"sigma": f"{sigma:.6g}", "change": _change(before(z, sigma), after(z, sigma))})
    z = diffusion.initial_noise(len(images), images.shape[1:], SEED)
    one, other = (diffusion.sample(network, z, levels) for network in (before, after))
    r2 = f"{metrics.r2(other, one):.6f}"
    return rows, {"steps": len(levels), "change": _change(one, other), "r2": r2}


def _change(one: Tensor, other: Tensor) -> str:
    return f"{((other - one).norm() / one.norm()).item():.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.experiments.packing --help``."""
    parser = argparse.ArgumentParser(prog="python -m fpmc.experiments.packing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="+", choices=networks.SHIPPED, metavar="NETWORK")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "packing")
    given = parser.parse_args(arguments)
    told = provenance()  # of all alike: the first that is packed changes the checkout
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in given.networks:
                _pack(name, given.out, Path(folder) / "packed.safetensors", told)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _pack(name: str, out: Path, packed: Path, told: Mapping[str, object]) -> None:
    """Pack a shipped network by way of this file, and keep how far its answers moved.

    The network's own file is replaced at the end: what is stopped before can be asked for again.
    """
    path, of = FOLDER / f"{name}.safetensors", name.partition("/")[0]
    answers = Table(out / "packed.csv", ("network", "sigma"))
    samples = Table(out / "packed_samples.csv", ("network",))
    pack_file(path, packed)
    images = to_float(data.load(of).test[:IMAGES])
    rows, sampled = what_moved(networks.load(path), networks.load(packed), images)
    head = {"network": name, "float16_at": told["code"], "data": of}
    asked = {"n": len(images), "seed": SEED}
    for row in rows:
        answers.add({**head, "sigma": row["sigma"], **asked, **row, **told})
    samples.add({**head, **asked, **sampled, **told})
    answers.collect()
    samples.collect()
    with whole(path) as beside:
        shutil.copyfile(packed, beside)


if __name__ == "__main__":
    main()
