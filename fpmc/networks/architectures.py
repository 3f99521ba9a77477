"""The architectures by name."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from fpmc.checks import as_whole_number
from fpmc.networks.dit import DiT
from fpmc.networks.drawing import Drawing
from fpmc.networks.path import Path
from fpmc.networks.preconditioning import Preconditioned
from fpmc.networks.unet import UNet

__all__ = ["ARCHITECTURES", "as_options", "build"]

NCSNPP = {"embedding": "fourier", "encoder": "residual", "taps": (1, 3, 3, 1)}

ARCHITECTURES = {
    "ddpmpp": (UNet, {}),
    "ncsnpp": (UNet, NCSNPP),
    "dit": (DiT, {}),
    "path": (Path, {}),
}
"""Name to class and the options that make it that architecture."""


def as_options(arch: str, options: Any) -> Mapping[str, Any]:
    """Return an architecture's options.

    Raises:
        TypeError: If they are no mapping, or one does not exist.
        ValueError: If there is no such architecture.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch: got {arch!r}, wanted one of {', '.join(ARCHITECTURES)}")
    _, *names = inspect.signature(ARCHITECTURES[arch][0]).parameters  # but the shape
    wanted = f"wanted those of {arch} by name: {', '.join(names)}"
    if not isinstance(options, Mapping):
        raise TypeError(f"options: got {options!r}, {wanted}")
    unknown = [str(name) for name in options if name not in names]
    if unknown:
        raise TypeError(f"options: got {', '.join(unknown)}, {wanted}")
    return options


def build(
    arch: str, shape: tuple[int, int, int], *, seed: int = 0, **options: Any
) -> Preconditioned:
    """A network with fresh weights.

    Without options it has the published size: EDM's for CIFAR-10 (55.7 million parameters for
    ``ddpmpp``), DiT-B/4.

    Args:
        arch: "ddpmpp", "ncsnpp" or "dit"; "path" for paths.
        shape: The images' (c, h, w).
        seed: Seed of the weights.
        options: The architecture's own: see :class:`fpmc.networks.UNet`,
            :class:`fpmc.networks.DiT` and :class:`fpmc.networks.Path`. With ``xi=True`` the
            network is a :class:`fpmc.networks.Drawing`, which draws.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If there is no such architecture, or an option does not fit the images.
    """
    as_options(arch, options)
    network, own = ARCHITECTURES[arch]
    with torch.random.fork_rng():
        torch.manual_seed(as_whole_number(seed, "seed", 0, 2**63 - 1))
        model = network(tuple(shape), **{**own, **options})
    made_from = {"arch": arch, "shape": list(shape), "options": options}
    kind = Drawing if options.get("xi") else Preconditioned
    return kind(model, shape, architecture=made_from)
