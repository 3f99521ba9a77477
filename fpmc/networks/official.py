"""The official EDM checkpoints, read without running anything that they bring along.

An EDM ``.pkl`` holds the source code of its network's classes, which the official loader runs.
Here its unpickler makes tensors, plain containers, and records of what such an object was: the
class's name, the arguments it was made with, its state. Any other name in the file is refused.
"""

import io
import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpmc.checks import as_positive
from fpmc.networks.architectures import build
from fpmc.networks.checkpoints import not_finite
from fpmc.networks.preconditioning import Preconditioned

__all__ = ["Record", "load_official", "read_pickle"]


class Record:
    """What an object in a checkpoint was.

    Attributes:
        name: Its class's name.
        state: Its attributes by name.
    """

    def __init__(self, name: str, state: dict[str, Any]):
        self.name, self.state = name, state

    def __repr__(self) -> str:
        return f"Record({self.name}: {', '.join(self.state)})"

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The parameters and buffers of a recorded module and of those inside it, by full name."""
        found = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
        for name, module in self.state.get("_modules", {}).items():
            module = module.record if isinstance(module, _Made) else module
            if isinstance(module, Record):
                found |= module.tensors(f"{prefix}{name}.")
        return found


class _Made:
    """Stands in for an object of one of torch's own containers until its state is known."""

    __slots__ = ("record",)
    kind = "module"

    def __new__(cls, *_: Any) -> "_Made":
        made = super().__new__(cls)
        made.record = Record(cls.kind, {})
        return made

    def __setstate__(self, state: Any) -> None:
        self.record.state = state if isinstance(state, dict) else {}


ARRAYS = ("numpy.core", "numpy._core")
SKIPPED = (
    ("numpy", "ndarray"),
    *((f"{core}.multiarray", "_reconstruct") for core in ARRAYS),
    *((f"{core}.numeric", "_frombuffer") for core in ARRAYS),
    *(
        (module, f"{kind}Path")
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
    ),
    ("torch", "device"),
)
"""What settings beside a network may hold and it does not need: arrays, paths, devices."""


class _Unpickler(pickle.Unpickler):
    """Admits the names below and refuses every other. Of some it keeps nothing but a stand-in.

    What it hands to the unpickling machine are built-in types, bound methods of its own and a class
    made for this one file, so that nothing a file sets on them outlives the reading.
    """

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        own = {"__slots__": ()}
        container, skipped = (type(name, (_Made,), own) for name in ("_Container", "_Skipped"))
        self.admitted = {
            ("collections", "OrderedDict"): OrderedDict,
            ("copyreg", "_reconstructor"): self._new,
            ("copy_reg", "_reconstructor"): self._new,
            ("builtins", "object"): object,
            ("__builtin__", "object"): object,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("_codecs", "encode"): self._bytes,
            ("dnnlib.util", "EasyDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "_load_from_bytes"): self._storage,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self._persistent,
            ("torch.nn.modules.container", "ModuleDict"): container,
            ("torch.nn.modules.container", "ModuleList"): container,
            ("torch.nn.modules.container", "Sequential"): container,
        }
        for core in ARRAYS:
            self.admitted[f"{core}.multiarray", "scalar"] = self._scalar
        self.admitted |= dict.fromkeys(SKIPPED, skipped)
        self.admitted["numpy", "dtype"] = type("_Type", (_Made,), {**own, "__new__": _typed})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return self.admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to data outside the file")

    def _new(self, kind: Any, *_: Any) -> Any:
        return kind()

    def _bytes(self, text: str, encoding: str) -> bytes:
        return text.encode("latin1")

    def _persistent(self, meta: dict) -> Record:
        return Record(str(meta["class_name"]), dict(meta["state"]))

    def _storage(self, data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def _tensor(self, storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")
            values = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        return values.as_strided(size, stride, offset).clone()

    def _parameter(self, value: Tensor, *_: Any) -> Tensor:
        return value

    def _scalar(self, kind: Any, data: bytes) -> float | int | bool:
        code = np.dtype(kind.record.name)
        if code.kind not in "biuf" or not isinstance(data, bytes):
            raise pickle.UnpicklingError(f"it holds a number of type {code}")
        return np.frombuffer(data, code)[0].item()


def _typed(cls: type, code: str = "f8", *_: Any) -> _Made:
    made = object.__new__(cls)
    made.record = Record(str(code), {})
    return made


def read_pickle(path: str | os.PathLike) -> Any:
    """What a checkpoint in EDM's format holds, as plain containers, tensors and records.

    Args:
        path: A .pkl file.

    Returns:
        For EDM's: a dictionary whose "ema" is the :class:`Record` of the network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short, is no pickle, or names anything that is not admitted;
            nothing in it was run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        try:
            return _Unpickler(file).load()
        except RecursionError as error:
            raise ValueError(f"{path}: nested too deeply") from error
        except Exception as error:
            raise ValueError(
                f"{path}: not a readable EDM checkpoint: {error}. Nothing in it was run"
            ) from error


UNET = {
    "model_channels": ("channels", 128),
    "channel_mult": ("multipliers", [1, 2, 2, 2]),
    "num_blocks": ("blocks", 4),
    "attn_resolutions": ("attention", [16]),
    "dropout": ("dropout", 0.10),
    "augment_dim": ("augmentations", 0),
    "embedding_type": ("embedding", "positional"),
    "encoder_type": ("encoder", "standard"),
    "resample_filter": ("taps", [1, 1]),
}
"""The official argument: our option, and the official default."""

FIXED = {"model_type": "SongUNet", "label_dim": 0, "decoder_type": "standard"}
"""Official arguments that have one value here; the first has another default there."""


def load_official(path: str | os.PathLike) -> Preconditioned:
    """The network of an official EDM checkpoint: DDPM++ or NCSN++, unconditional.

    Args:
        path: A .pkl file, such as edm-cifar10-32x32-uncond-vp.pkl.

    Returns:
        The denoiser, in float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read (see :func:`read_pickle`), holds another kind of
            network, or weights that are not finite.
    """
    content = read_pickle(path)
    record = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(record, Record) or record.name != "EDMPrecond":
        found = record.name if isinstance(record, Record) else type(content).__name__
        raise ValueError(f"{path}: got {found}, wanted a network of class EDMPrecond")
    given = dict(record.state.get("_init_kwargs", {}))
    positional = ("img_resolution", "img_channels", "label_dim")
    given |= dict(zip(positional, record.state.get("_init_args", ()), strict=False))
    given = {"model_type": "DhariwalUNet"} | given
    for name, wanted in FIXED.items():
        if given.get(name, wanted) != wanted:
            raise ValueError(f"{path}: its {name} is {given[name]!r}, wanted {wanted!r}")
    options = {ours: given.get(theirs, default) for theirs, (ours, default) in UNET.items()}
    arch = "ncsnpp" if options["encoder"] == "residual" else "ddpmpp"
    try:
        side, c = given["img_resolution"], given["img_channels"]
        network = build(arch, (c, side, side), **options)
        network.load_state_dict({name: value.float() for name, value in record.tensors().items()})
        told = float(given.get("sigma_data", network.sigma_data))
        network.sigma_data = as_positive(told, "sigma_data")
        if bad := not_finite(network.state_dict()):
            raise ValueError(f"{bad[0]} is not finite")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its weights do not fit its arguments ({error})") from error
    return network.eval().requires_grad_(False)
