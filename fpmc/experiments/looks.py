"""Keep how wide networks look, and how much alike, as their sensitivity maps have it.

    L="python -m fpmc.experiments.looks"
    $L photos/ddpmpp photos/ncsnpp=runs/ncsnpp.npz

adds a row per network and noise level to ``results/DATA/looks.csv``. The second network's maps are
in a file, which ``python -m fpmc.sensitivity --network photos/ncsnpp --out runs/ncsnpp.npz`` makes;
the first one's are shipped. The book's chapter on what networks agree in shows the rows.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fpmc import sensitivity
from fpmc.experiments.maps import SHARES
from fpmc.experiments.options import ROOT
from fpmc.experiments.provenance import provenance
from fpmc.experiments.tables import Table

__all__ = ["keep", "main", "shared"]


def shared(maps: Tensor, other: Tensor) -> float:
    """The mass that lies under both of two maps, averaged over pixels: 1 where they are the same.

    Args:
        maps: Shape (..., h, w), each summing to 1.
        other: Likewise.
    """
    return torch.minimum(maps, other).double().sum((-2, -1)).mean().item()


def with_the_next(maps: Tensor) -> float:
    """What the maps of two pixels beside each other in a row share; maps: shape (h · w, h, w)."""
    grid = maps.unflatten(0, maps.shape[1:])
    return shared(grid[:, 1:], grid[:, :-1])


def keep(files: Mapping[str, str], out: Path | None = None) -> None:
    """Measure the maps of networks, a row per network and noise level.

    Args:
        files: {network, as DATA/NAME: its maps, as :func:`fpmc.sensitivity.load` takes them}; the
            networks' data are the same. All are compared with the first one's.
        out: Folder of the table; ``results/DATA`` if left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the networks' data differ, or their maps' noise levels or sizes.
    """
    data = {network.partition("/")[0] for network in files}
    if len(data) > 1:
        raise ValueError(f"networks: got some of {', '.join(sorted(data))}, wanted one data set's")
    maps = {network: sensitivity.load(file) for network, file in files.items()}
    sizes = {network: {s: len(v) for s, v in own.items()} for network, own in maps.items()}
    first = next(iter(maps))
    for network in maps:
        if sizes[network] != sizes[first]:
            raise ValueError(f"{network}: its maps have other levels or sizes than {first}'s")
    table = Table((out or ROOT / "results" / data.pop()) / "looks.csv", ("network", "sigma"))
    with table.collected():
        for network, own in maps.items():
            n = sensitivity.averaged_over(files[network])
            for sigma, value in own.items():
                head = {"network": network, "sigma": f"{sigma:.6g}"}
                numbers = _numbers(value, maps[first][sigma])
                table.add({**head, **numbers, "n": n, **provenance()})


def _numbers(maps: Tensor, first: Tensor) -> dict[str, str]:
    """How wide the maps of a level are, and what they share."""
    sides = {f"side_{s:g}": sensitivity.square_sides(maps, s).double().mean() for s in SHARES}
    masses = {"shared": shared(first, maps), "next": with_the_next(maps)}
    return {name: f"{float(value):.6g}" for name, value in (sides | masses).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.experiments.looks --help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="+", help="a shipped network, or DATA/NAME=MAPS.npz")
    parser.add_argument("--out", type=Path, help="folder of the table (default: results/DATA)")
    given = parser.parse_args(arguments)
    pairs = (text.partition("=") for text in given.networks)
    try:
        keep({network: file or network for network, _, file in pairs}, given.out)
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
