"""Mixtures in files: directions in eight bits a number, means and variances as float32.

A direction is kept as shares of its largest entry, in steps of 1/127; those that are read are made
orthonormal again.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from fpmc.checks import kind
from fpmc.mixtures.mixture import Mixture
from fpmc.storage import whole

__all__ = ["read", "write"]

PARTS = ("shape", "weights", "means", "values", "rest")


def write(path: str | os.PathLike, mixture: Mixture) -> None:
    """Keep a mixture, whole or not at all.

    Args:
        path: Where to, a name that ends in .safetensors; an existing file is replaced.
        mixture: With as many directions as its rank says.

    Raises:
        OSError: If it cannot be written.
        TypeError: If it is no mixture.
    """
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture: got {kind(mixture)}, wanted a Mixture")
    with whole(path) as beside:
        beside.write_bytes(safetensors.torch.save(_tensors(mixture)))


def read(path: str | os.PathLike) -> Mixture:
    """The mixture that :func:`write` kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut short or is none of these.
    """
    content = Path(path).read_bytes()
    try:
        return _mixture_of(safetensors.torch.load(content))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no mixture can be read from it ({error})") from error


def _tensors(mixture: Mixture) -> dict[str, torch.Tensor]:
    vectors = mixture.eigenvectors
    scales = vectors.abs().amax(1, keepdim=True) / 127
    tensors = {
        "shape": torch.tensor(mixture.shape),
        "weights": mixture.weights,
        "means": mixture.means.float(),
        "values": mixture.eigenvalues.float(),
        "vectors": (vectors / scales).round().to(torch.int8),
        "scales": scales.float(),
        "rest": mixture.rest.float(),
    }
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _mixture_of(tensors: Mapping[str, torch.Tensor]) -> Mixture:
    vectors = tensors["vectors"].double() * tensors["scales"].double()
    shape, weights, means, values, rest = (tensors[name] for name in PARTS)
    return Mixture.of_directions(tuple(shape.tolist()), weights, means, values, vectors, rest)
