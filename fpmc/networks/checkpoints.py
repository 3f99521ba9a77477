"""Networks as .safetensors files: weights, the architecture, and a card that says where from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fpmc.checks import as_positive, as_whole_number
from fpmc.networks.architectures import build
from fpmc.networks.packing import BITS, pack, unpack
from fpmc.networks.preconditioning import SIGMA_DATA, Preconditioned
from fpmc.storage import missing, whole

__all__ = ["not_finite", "read_card", "read_network", "save"]

FORMAT, PACKED = "fpmc network 1", "fpmc network 1, packed"
SCALES = ".scales"
"""What the name of a parameter's scales ends in, in a packed file."""
LEAST_PACKED = 5_000
"""Fewer numbers stay as they are: there are few of them, and first and last layers matter most."""


def save(
    network: Preconditioned,
    path: str | os.PathLike,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    *,
    packed: bool = False,
    bits: int = BITS,
) -> None:
    """Write a network made by :func:`fpmc.networks.build`, whole or not at all.

    Args:
        network: The network.
        path: Where to, a name that ends in .safetensors; an existing file is replaced.
        card: What is to be remembered of it: anything that JSON can hold.
        dtype: The type of the stored parameters; buffers keep theirs.
        packed: Whether parameters of more than 5,000 numbers take few bits a number instead
            (:mod:`fpmc.networks.packing`). By ten bits the file has two thirds of its size in
            float16, and the answers of networks of 4.7 million parameters for 32 x 32 pixels moved
            by less than 1e-3 of their norm up to sigma = 10, and by less than 3e-3 above
            (results/packing).
        bits: How few, from 2 to 16, if packed; one less doubles what a weight moves by.

    Raises:
        TypeError: If it is no network of ours, or bits is no whole number.
        ValueError: If the network was not made by ``build``, a parameter is not finite in this
            type, the path ends in something else, or bits is out of range or given without packed.
    """
    if not isinstance(network, Preconditioned):
        raise TypeError(
            f"network: got {type(network).__name__}, wanted one that fpmc.networks.build made"
        )
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path: got {str(path)!r}, wanted a name that ends in .safetensors")
    if network.architecture is None:
        raise ValueError("network: has no architecture, wanted one that fpmc.networks.build made")
    bits = as_whole_number(bits, "bits", 2, 16)
    if bits != BITS and not packed:
        raise ValueError(f"bits: got {bits} without packed, wanted packed=True beside it")
    tensors = _stored(network, dtype, bits if packed else 0)
    if bad := not_finite(tensors):
        raise ValueError(f"network: {bad[0]} is not finite in {dtype}")
    metadata = {
        "format": PACKED if packed else FORMAT,
        "architecture": json.dumps(network.architecture),
        "sigma_data": repr(float(network.sigma_data)),
        "card": json.dumps(dict(card or {})),
    }
    if packed and bits != BITS:
        metadata["bits"] = str(bits)
    with whole(path) as beside:
        beside.write_bytes(safetensors_bytes(tensors, metadata))


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold infinite numbers or NaN."""
    return [name for name, value in tensors.items() if not value.isfinite().all()]


def _stored(network: Preconditioned, dtype: torch.dtype, bits: int) -> dict[str, Tensor]:
    buffers, tensors = dict(network.named_buffers()), {}
    for name, value in network.state_dict().items():
        if bits and name not in buffers and value.numel() > LEAST_PACKED:
            tensors[name], tensors[name + SCALES] = pack(value, bits)
        else:
            tensors[name] = (value if name in buffers else value.to(dtype)).contiguous().cpu()
    return tensors


def _unpacked(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], bits: int
) -> dict[str, Tensor]:
    """The tensors of a packed file, in the shapes of those of the network."""
    return {
        name: unpack(value, tensors[name + SCALES], like[name].shape, bits)
        if name + SCALES in tensors
        else value
        for name, value in tensors.items()
        if not name.endswith(SCALES)
    }


def read_network(path: str | os.PathLike) -> Preconditioned:
    """The network in a file that :func:`save` wrote, in float32, ready to denoise.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short, is none of these, or holds what is not finite.
    """
    metadata, tensors = _read(path, tensors=True)
    try:
        architecture = json.loads(metadata["architecture"])
        network = build(
            architecture["arch"], tuple(architecture["shape"]), **architecture["options"]
        )
        told = float(metadata.get("sigma_data", SIGMA_DATA))
        network.sigma_data = as_positive(told, "sigma_data")
        if metadata["format"] == PACKED:
            bits = int(metadata.get("bits", BITS))
            tensors = _unpacked(tensors, network.state_dict(), bits)
        network.float().load_state_dict(tensors)
        if bad := not_finite(network.state_dict()):
            raise ValueError(f"{bad[0]} is not finite")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its weights do not fit its architecture ({error})") from error
    return network.eval().requires_grad_(False)


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card in a file that :func:`save` wrote. Errors as in :func:`read_network`."""
    metadata = _read(path, tensors=False)[0]
    try:
        return dict(json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its card cannot be read ({error})") from error


def _read(path: str | os.PathLike, tensors: bool) -> tuple[dict, dict]:
    if not Path(path).is_file():
        raise missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole .safetensors file ({error})") from error
    if metadata.get("format") not in (FORMAT, PACKED):
        raise ValueError(f"{path}: a .safetensors file, but not one of a network of fpmc")
    return metadata, values
