"""Mixtures in files: directions as float16, means and variances as float32."""

import os
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

from fpmc.mixtures.mixture import Mixture
from fpmc.storage import whole

__all__ = ["read", "write"]

PARTS = ("shape", "weights", "means", "values", "vectors", "rest")


def write(path: str | os.PathLike, mixture: Mixture) -> None:
    """Keep a mixture, whole or not at all.

    Args:
        path: Where to, a name that ends in .safetensors; an existing file is replaced.
        mixture: With as many directions as its rank says.

    Raises:
        OSError: If it cannot be written.
    """
    with whole(path) as beside:
        beside.write_bytes(safetensors.torch.save(_tensors(mixture)))


def read(path: str | os.PathLike) -> Mixture:
    """The mixture that :func:`write` kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut short or is none of these.
    """
    try:
        return _mixture_of(safetensors.torch.load_file(str(path)))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no mixture can be read from it ({error})") from error


def _tensors(mixture: Mixture) -> dict[str, torch.Tensor]:
    return {
        "shape": torch.tensor(mixture.shape),
        "weights": mixture.weights.cpu(),
        "means": mixture.means.float().cpu(),
        "values": mixture.eigenvalues.float().cpu(),
        "vectors": mixture.eigenvectors.half().cpu().contiguous(),
        "rest": mixture.rest.float().cpu(),
    }


def _mixture_of(tensors: Mapping[str, torch.Tensor]) -> Mixture:
    shape, *found = (tensors[name] for name in PARTS)
    return Mixture.of_directions(tuple(shape.tolist()), *found)
