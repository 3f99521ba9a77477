"""Sensitivity maps in files, and those of the shipped networks."""

import os
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.networks.loading import FOLDER
from fpmc.storage import whole

__all__ = ["load", "read", "write"]


def load(network: str) -> dict[float, Float[Tensor, "k h w"]]:
    """The shipped maps of a shipped network at the sampler's 18 noise levels, {sigma: maps}.

    Args:
        network: A name in :data:`fpmc.networks.SHIPPED`.

    Raises:
        ValueError: If no maps are shipped for it.
    """
    names = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/*.npz"))
    if network not in names:
        raise ValueError(f"network: got {network!r}, wanted one of {', '.join(names)}")
    return read(FOLDER / f"{network}.npz")


def write(
    path: str | os.PathLike,
    maps: Mapping[float, Float[Tensor, "k h w"]],
    dtype: type[np.floating] = np.float16,
) -> None:
    """Keep maps, {sigma: maps}, in a compressed .npz file, whole or not at all."""
    k = len(next(iter(maps.values())))
    stacked = np.stack([k * value.double().cpu().numpy() for value in maps.values()])
    with whole(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, sigmas=np.array(list(maps)), maps=stacked.astype(dtype))


def read(path: str | os.PathLike) -> dict[float, Float[Tensor, "k h w"]]:
    """The maps that :func:`write` kept, float32, each summing to 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short or is none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            values = torch.from_numpy(file["maps"].astype(np.float32))
            sigmas = [float(sigma) for sigma in file["sigmas"]]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a file of sensitivity maps ({error})") from error
    values = values / values.sum(dim=(2, 3), keepdim=True)
    return dict(zip(sigmas, values, strict=True))
