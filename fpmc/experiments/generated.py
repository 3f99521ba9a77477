"""What somebody generated with EDM on a GPU: the images, their seeds, and so their noise.

A folder of images as ``generate.py`` writes it, each called by its seed: ``000000.png``, with or
without a folder for each thousand; ``dataset.json`` may give their classes. Or an ``.npz``:

- ``images``: uint8, (n, c, h, w) or (n, h, w, c);
- ``seeds``: n whole numbers; or one, from which all n images were drawn at once, as ``example.py``
  does;
- ``threads``, where that number matters: see :func:`fpmc.diffusion.edm_noise`;
- ``labels``: n classes, if there are any;
- ``chosen``: which of the images count, from 0; all if left out.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.data.archive import read_archive, reading
from fpmc.data.arrays import read_arrays
from fpmc.data.parts import Part
from fpmc.diffusion import edm_labels, edm_noise

__all__ = ["Generated", "read"]


class Generated(NamedTuple):
    """Images of a network, and where it started.

    Attributes:
        name: What tables call it.
        images: uint8, shape (n, c, h, w).
        noise: Of unit variance, float32, the same shape.
        labels: Their classes, shape (n,): those that are given.
        drawn: The same, as EDM draws them after the noise; None if no classes were named.
    """

    name: str
    images: UInt8[Tensor, "n c h w"]
    noise: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"] | None
    drawn: Int64[Tensor, " n"] | None

    @property
    def classes(self) -> Int64[Tensor, " n"] | None:
        """The classes that are given, or else those that EDM draws."""
        return self.drawn if self.labels is None else self.labels

    def first(self, n: int) -> "Generated":
        """The first n of them, or all if they are fewer."""
        return Generated(self.name, *(None if a is None else a[:n] for a in self[1:]))


def read(path: str | os.PathLike, classes: int | None = None) -> Generated:
    """Read images and draw their noise again.

    Args:
        path: The folder or ``.npz``.
        classes: How many the network has, if it has any.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read, or lacks what is named above.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"published: {path}: no such folder or .npz")
    if path.is_dir():
        part, seeds, threads, chosen = read_archive(path)[0], _called(path), None, None
    else:
        part, seeds, threads, chosen = _from_arrays(path)
    n, c, h, w = part.images.shape
    if len(seeds) not in (1, n):
        raise ValueError(f"{path}: got {len(seeds)} seeds for {n} images, wanted {n}, or 1")
    each = n if len(seeds) == 1 else 1
    shape = each * c, h, w
    noise = edm_noise(seeds, shape, threads=threads).view(n, c, h, w)
    options = {"each": each, "threads": threads}
    drawn = edm_labels(seeds, shape, classes, **options) if classes else None
    labels = None if part.labels is None else torch.from_numpy(part.labels)
    images = torch.from_numpy(np.ascontiguousarray(part.images))
    index = slice(None) if chosen is None else torch.tensor(chosen)
    kept = (None if a is None else a[index] for a in (images, noise, labels, drawn))
    return Generated(path.stem, *kept)


def _called(folder: Path) -> list[int]:
    """The seeds that files are called by, in the order of :func:`read_archive`."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in ("", ".json")]
    names = sorted(p.relative_to(folder).as_posix() for p in files)
    others = [name for name in names if not Path(name).stem.isdecimal()]
    if others:
        raise ValueError(f"{folder}: got {others[0]}, wanted names that are seeds: 000000.png")
    return [int(Path(name).stem) for name in names]


def _from_arrays(path: Path) -> tuple[Part, list[int], int | None, list[int] | None]:
    part = read_arrays(path)[0]
    with reading(path), np.load(path, allow_pickle=False) as file:
        held = {name: np.atleast_1d(file[name]).tolist() for name in file if name in NUMBERS}
    if "seeds" not in held:
        raise ValueError(f"{path}: got no seeds, wanted one for each image, or one for all")
    n = len(part.images)
    chosen = [as_whole_number(i, f"{path}: chosen", 0, n - 1) for i in held.get("chosen", [])]
    return part, held["seeds"], held.get("threads", [None])[0], chosen or None


NUMBERS = ("seeds", "threads", "chosen")
"""What an ``.npz`` says beside images and labels."""
