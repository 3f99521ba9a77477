"""Tuned collections in files: a folder, and in it for each noise level operators, history, card.

An operator of a structure is kept by its name. A matrix is kept as its rows' peaks, float32, a bit
for each entry that says whether it is there, and those entries as shares of their row's peak,
float16. A file of operators may be compressed, as by ``xz``: its name then ends in .xz.
"""

import csv
import hashlib
import json
import lzma
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from fpmc.checks import kind
from fpmc.collection import FPMC
from fpmc.operators import Box, Dense, Identity, Ones, Operator
from fpmc.source import Source, as_source
from fpmc.storage import whole

__all__ = [
    "SHIPPED",
    "digest",
    "folder_of",
    "level_name",
    "load",
    "packed",
    "read_level",
    "write_level",
    "write_text",
]

FORMAT = "fpmc tuned collection 1"

ENDINGS = (".safetensors", ".safetensors.xz")
"""How the names of a noise level's files end; the second are compressed."""

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 1, "pb": 1}]
"""How files are compressed: most of what they hold are numbers of two bytes."""

FOLDER = Path(str(resources.files("fpmc.finetuning"))) / "shipped"

SHIPPED = tuple(
    sorted({p.parent.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.safetensors*")})
)
"""The tuned collections that come with the package: dataset/network/method."""


def level_name(sigma: float) -> str:
    """The name of a noise level's files, without what follows the last dot."""
    return f"sigma-{sigma:.6g}"


def load(collection: str | os.PathLike, source: Source, *, budget: int | None = None) -> FPMC:
    """A tuned collection over all its noise levels; the nearest on a logarithmic scale answers.

    Args:
        collection: A folder that :func:`fpmc.finetuning.finetune` wrote, or a name in
            :data:`SHIPPED`.
        source: S: the one that it was tuned with, or another of images of the same shape.
        budget: Bytes of working memory, see :class:`fpmc.FPMC`.

    Raises:
        FileNotFoundError: If there is no such folder, or no tuned level in it.
        TypeError: If the source is none, or the collection neither a name nor a path.
        ValueError: If a file cannot be read, is for images of another shape, or is there twice.
    """
    source = as_source(source)
    levels = {}
    for path in _paths(folder_of(collection)):
        sigma, pair = read_level(path)
        for op in pair:
            if not op.fits(source.shape):
                raise ValueError(
                    f"source: got images of shape {source.shape}, wanted those of {op!r} in {path}"
                )
        levels[sigma] = pair
    queries, responses = ({s: pair[i] for s, pair in levels.items()} for i in (0, 1))
    return FPMC(queries, responses, source, budget=budget)


def folder_of(collection: str | os.PathLike) -> Path:
    """Where a tuned collection lies: the folder itself, or that of a name in :data:`SHIPPED`.

    Raises:
        TypeError: If it is neither a name nor a path.
    """
    if not isinstance(collection, str | os.PathLike):
        raise TypeError(f"collection: got {kind(collection)}, wanted a name or a path")
    return FOLDER / collection if collection in SHIPPED else Path(collection).expanduser()


def digest(collection: str | os.PathLike) -> str:
    """Of all levels' operators, the first 8 digits, the same if the files are compressed.

    Arguments and errors as in :func:`load`.
    """
    total = hashlib.sha256()
    for path in _paths(folder_of(collection)):
        total.update(_content(path))
    return total.hexdigest()[:8]


def _paths(folder: Path) -> list[Path]:
    """The files of a folder's noise levels."""
    paths = sorted(path for end in ENDINGS for path in folder.glob(f"sigma-*{end}"))
    if not paths:
        known = f", or one of {', '.join(SHIPPED)}" if SHIPPED else ""
        raise FileNotFoundError(f"{folder}: no tuned noise levels there, wanted a folder{known}")
    names = [path.name.removesuffix(".xz") for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{folder}: got {twice[0]} twice, as it is and compressed, wanted one")
    return paths


def _content(path: Path) -> bytes:
    """What a file holds, once it is no longer compressed.

    Raises:
        ValueError: If what is compressed is cut short or broken.
    """
    content = path.read_bytes()
    try:
        return lzma.decompress(content) if path.suffix == ".xz" else content
    except lzma.LZMAError as error:
        raise ValueError(f"{path}: no tuned collection can be read from it ({error})") from error


def write_level(
    path: str | os.PathLike,
    sigma: float,
    queries: Operator,
    responses: Operator,
    cuts: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Keep Q and R of a noise level, whole or not at all.

    Args:
        path: Where to, a name that ends in .safetensors, or .safetensors.xz to compress it; an
            existing file is replaced.
        sigma: The noise level.
        queries: Q.
        responses: R.
        cuts: For each, the share of a row's peak below which entries are left out.

    Raises:
        OSError: If it cannot be written.
    """
    tensors, metadata = {}, {"format": FORMAT, "sigma": repr(float(sigma))}
    given = {"queries": queries, "responses": responses}
    for (name, op), cut in zip(given.items(), cuts, strict=True):
        op = op if isinstance(op, Ones | Identity | Box | Dense) else Dense(op.dense())
        metadata[name] = json.dumps(_described(op))
        if isinstance(op, Dense):
            parts = _parts(op.matrix, cut, covering=name == "responses")
            tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    content = safetensors.torch.save(tensors, metadata)
    if Path(path).suffix == ".xz":
        content = lzma.compress(content, filters=FILTERS)
    with whole(path) as beside:
        beside.write_bytes(content)


def read_level(path: str | os.PathLike) -> tuple[float, tuple[Operator, Operator]]:
    """The noise level, and Q and R, that :func:`write_level` kept; matrices are float32.

    Raises:
        ValueError: If the file is cut short or is none of these.
    """
    try:
        content = _content(Path(path))
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ValueError(f"got format {metadata.get('format')!r}, wanted {FORMAT!r}")
        pair = tuple(
            _operator(json.loads(metadata[name]), tensors, name)
            for name in ("queries", "responses")
        )
        return float(metadata["sigma"]), pair
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no tuned collection can be read from it ({error})") from error


def packed(op: Operator, cut: float, *, covering: bool = False) -> Operator:
    """The operator as it is read after it was kept. Arguments as in :func:`write_level`."""
    if not isinstance(op, Dense):
        return op
    parts = _parts(op.matrix, cut, covering)
    return _operator(_described(op), {f"m.{name}": value for name, value in parts.items()}, "m")


def write_text(
    folder: Path, name: str, card: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> None:
    """Keep a level's card as JSON and its history as CSV, each whole."""
    with whole(folder / f"{name}.json") as beside:
        beside.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    with (
        whole(folder / f"{name}.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def _described(op: Operator) -> dict[str, Any]:
    """What rebuilds an operator, but for a matrix's values."""
    described = {"kind": type(op).__name__, "shape": list(op.shape)}
    if isinstance(op, Box):
        return described | {"p": op.p, "border": op.border}
    return described | ({"k": op.k} if isinstance(op, Dense) else {})


def _operator(described: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Operator:
    shape = tuple(described["shape"])
    if described["kind"] == "Box":
        return Box(shape, described["p"], described["border"])
    if described["kind"] in ("Ones", "Identity"):
        return {"Ones": Ones, "Identity": Identity}[described["kind"]](shape)
    peaks, there, values = (tensors[f"{name}.{part}"] for part in ("peaks", "there", "values"))
    count = described["k"] * math.prod(shape)
    use = torch.from_numpy(np.unpackbits(there.numpy(), count=count)).bool()
    matrix = torch.zeros(count, dtype=torch.float32)
    matrix[use] = values.float()
    return Dense((matrix.view(described["k"], -1) * peaks.unsqueeze(1)).view(-1, *shape))


def _parts(matrix: Float[Tensor, "k ..."], cut: float, covering: bool) -> dict[str, Tensor]:
    """Peaks, bits and values. Where rows must cover every column, each keeps its largest entry."""
    flat = matrix.detach().float().cpu().flatten(1)
    peaks = flat.amax(1)
    shares = (flat / torch.where(peaks > 0, peaks, 1).unsqueeze(1)).half()
    use = (shares > 0) & (shares >= cut)
    if covering:
        use |= (flat == flat.amax(0)) & (shares > 0)
    bits = np.packbits(use.flatten().numpy())
    return {"peaks": peaks, "there": torch.from_numpy(bits), "values": shares[use]}
