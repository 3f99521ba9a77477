"""Networks from wherever they are: shipped, in a file, or behind an address."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fpmc.modes import lasting
from fpmc.networks.checkpoints import read_card, read_network
from fpmc.networks.official import load_official
from fpmc.networks.preconditioning import Preconditioned
from fpmc.storage import home, missing, whole

__all__ = ["DRAWING", "OFFICIAL", "SHIPPED", "card", "label", "load"]

SHIPPED = (
    "digits/ddpmpp",
    "digits/ncsnpp",
    "digits/dit",
    "digits/dit-1",
    "photos/ddpmpp",
    "photos/ncsnpp",
    "photos32/ddpmpp",
    "photos32/ncsnpp",
    "fashion/ddpmpp",
    "fashion/ncsnpp",
)
"""The networks that come with the package: dataset/architecture, and -seed if it is not 0."""

DRAWING = ("digits/ddpmpp-draws", "photos/ddpmpp-draws")
"""Shipped networks that draw, :class:`fpmc.networks.Drawing`: called with ξ, no denoisers."""

FOLDER = Path(str(resources.files("fpmc.networks"))) / "shipped"
"""Where they are; beside a DDPM++ that methods are tuned to, its sensitivity maps."""

LABELS = {"ddpmpp": "DDPM++", "ncsnpp": "NCSN++", "dit": "DiT", "path": "Path"}

ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
OFFICIAL = (
    "edm-cifar10-32x32-uncond-vp",
    "edm-cifar10-32x32-uncond-ve",
    "edm-ffhq-64x64-uncond-vp",
    "edm-ffhq-64x64-uncond-ve",
    "edm-afhqv2-64x64-uncond-vp",
    "edm-afhqv2-64x64-uncond-ve",
)
"""NVIDIA's checkpoints that :func:`load` fetches by name: vp is DDPM++, ve is NCSN++."""


@lasting()
def load(
    network: str | os.PathLike,
    *,
    cache: str | os.PathLike | None = None,
    sha256: str | None = None,
    shape: Sequence[int] | None = None,
) -> Preconditioned:
    """A trained network, as a denoiser on the CPU in float32.

    Args:
        network: The name of a shipped network (:data:`SHIPPED`, :data:`DRAWING`), the name of an
            official one (:data:`OFFICIAL`), a path to a .safetensors file of ours or to an
            official EDM .pkl, or the address of either.
        cache: Where downloads go; ``networks`` below FPMC_DATA, or below ``~/.cache/fpmc``.
        sha256: The hash that a download must have. Without it the first download's is recorded
            beside the file, and every later one must have the same.
        shape: The (c, h, w) of the images that it must be for, if it matters.

    Returns:
        The denoiser: ``denoiser(z, sigma)``; of a network that draws, ``network(z, sigma, xi)``.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If network is neither a name nor a path.
        ValueError: If there is no such network, the file cannot be read, holds something else, or
            has another hash, or it is for images of another shape. An official pickle is read
            without running anything in it.
    """
    path = _path(network, cache, sha256)
    found = load_official(path) if path.suffix == ".pkl" else read_network(path)
    if shape is not None and found.shape != tuple(shape):
        raise ValueError(
            f"network: {network} is for images of {found.shape}, wanted one for {tuple(shape)}"
        )
    return found


def card(network: str | os.PathLike) -> dict[str, Any]:
    """What is known of a network of ours: the data, images seen, minutes, device, seed, command.

    Args:
        network: The name of a shipped network, or a path to a .safetensors file.

    Returns:
        A dictionary; "loss" is the loss curve, a list of rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of ours.
    """
    return read_card(_path(network, None, None))


def label(network: str) -> str:
    """A shipped network's name for a figure: "DDPM++", "DiT, seed 1", "DDPM++, draws".

    Raises:
        ValueError: If the name is not that of a network as :data:`SHIPPED` has them.
    """
    arch, _, seed = str(network).partition("/")[2].partition("-")
    if arch not in LABELS:
        raise ValueError(
            f"network: got {network!r}, wanted a name like {SHIPPED[0]}, with one of "
            f"{', '.join(LABELS)}"
        )
    if network in DRAWING:
        return f"{LABELS[arch]}, draws"
    return LABELS[arch] + (f", seed {seed}" if seed else "")


def _path(network: str | os.PathLike, cache: str | os.PathLike | None, sha256: str | None) -> Path:
    if not isinstance(network, str | os.PathLike):
        raise TypeError(f"network: got {type(network).__name__}, wanted a name or a path")
    name = os.fspath(network)
    if name in (*SHIPPED, *DRAWING):
        return FOLDER / f"{name}.safetensors"
    if name in OFFICIAL:
        name = f"{ADDRESS}{name}.pkl"
    if name.startswith(("https://", "http://")):
        return _fetch(name, cache, sha256)
    path = Path(name).expanduser()
    if path.suffix == ".pt" and path.exists():
        raise ValueError(
            f"network: got {name!r}, as training states end, wanted the network that lies beside "
            "one: EDM's network-snapshot-*.pkl, or a network.safetensors of ours"
        )
    if path.suffix not in (".safetensors", ".pkl"):
        raise ValueError(
            f"network: got {name!r}, wanted one of {', '.join(SHIPPED + DRAWING + OFFICIAL)}, or a "
            "path or an address that ends in .safetensors or .pkl"
        )
    if not path.is_file():
        raise missing(path)
    return path


def _fetch(address: str, cache: str | os.PathLike | None, sha256: str | None) -> Path:
    """A download, kept in the cache, with the hash that was asked for or seen the first time."""
    import pooch  # here, as its import warns in notebooks that lack widgets

    folder = Path(cache).expanduser() if cache else home() / "networks"
    name = address.rsplit("/", 1)[-1]
    recorded = folder / f"{name}.sha256"
    if sha256 is None and recorded.is_file():
        sha256 = recorded.read_text(encoding="ascii").strip()
    try:
        path = Path(pooch.retrieve(address, sha256, name, folder, progressbar=True))
    except (ValueError, OSError) as error:
        raise ValueError(f"{address}: could not be fetched ({error})") from error
    if sha256 is None:
        with whole(recorded) as beside:
            beside.write_text(pooch.file_hash(str(path)) + "\n", encoding="ascii")
    return path
