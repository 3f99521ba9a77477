"""Which images are which: positions in the source, and sets that must have none in common."""

import hashlib
from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.checks import as_images, kind
from fpmc.source import Source, to_float

__all__ = ["Tuned", "as_pixels", "digest", "disjoint", "fingerprints", "fresh", "see_some_left"]

CHUNK = 1024
"""Images at a time."""


class Tuned:
    """The images that are tuned on, and where the source has them.

    Args:
        images: Images, shape (n, c, h, w), uint8 or floats in [-1, 1]; the source's if None.
        source: S.

    Raises:
        TypeError: If the images are no tensor of pixel values.
        ValueError: If their shape is not the source's.
    """

    def __init__(self, images: Any, source: Source):
        self.prints = fingerprints(source)
        self.families = _families(source)
        places = defaultdict(list)
        for position, found in enumerate(self.prints):
            places[found].append(position)
        self.images = source
        self.copies = [places[found] for found in self.prints]
        if images is not None:
            self.images = Source(as_pixels(images, "images", source.shape))
            own = fingerprints(self.images)
            self.copies = [places.get(found, []) for found in own]
            self.prints = self.prints + own

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1]."""
        return self.images.read(index)

    def positions(self, index: Int[Tensor, " b"]) -> Int[Tensor, " m"]:
        """Where in the source these images are, and all copies of them: those with the same pixels,
        and what was made of the same image.
        """
        same = {position for i in index.tolist() for position in self.copies[i]}
        found = {position for one in same for position in self.families.get(one, [one])}
        return torch.tensor(sorted(found), dtype=torch.long)


def see_some_left(
    source: Source, without: Int[Tensor, " m"], only: Int[Tensor, " n"] | None, batch: int
) -> None:
    """See that a step has source images left, of all or of those drawn.

    Raises:
        ValueError: If the batch's images, with their copies, are all that there is.
    """
    left = torch.ones(len(source), dtype=torch.bool)
    if source.log_weights is not None:
        left = source.log_weights.cpu() > -torch.inf
    left[without] = False
    if not (left if only is None else left[only]).any():
        drawn = "" if only is None else f", of which {len(only)} were drawn (subset)"
        raise ValueError(
            f"batch: got {batch}, wanted fewer: a step leaves its images and their copies out of "
            f"the source, and none is left of its {len(source)} images{drawn}"
        )


def _families(source: Source) -> dict[int, list[int]]:
    """For each image that is a copy or has some: where it is, its original and all copies of it."""
    found = defaultdict(list)
    if source.parents is None:
        return found
    for position in (source.parents >= 0).nonzero()[:, 0].tolist():
        parent = int(source.parents[position])
        family = found[parent] = found[parent] or [parent]
        family.append(position)
        found[position] = family
    return found


def as_pixels(images: Any, name: str, shape: tuple[int, int, int]) -> Tensor:
    """Return images of this (c, h, w), uint8 or floating-point.

    Raises:
        TypeError: If they are neither.
        ValueError: If their shape is another.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return as_images(images, name, shape)
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"{name}: got {kind(images)}, wanted a tensor of uint8 or floats")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape) or not len(images):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, wanted (n, {wanted})")
    return images


def fingerprints(images: Source | Tensor) -> list[bytes]:
    """A short value for each image, the same for images of the same pixels, however stored."""
    found = []
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        part = to_float(part) if part.dtype == torch.uint8 else part.float()
        rows = part.cpu().flatten(1).numpy()
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    return found


def disjoint(**sets: list[bytes]) -> None:
    """See that no image is in two of these sets of fingerprints, given by the arguments' names.

    Raises:
        ValueError: If one is, naming both.
    """
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            common = len(set(sets[first]) & set(sets[second]))
            if common:
                raise ValueError(
                    f"{second}: got {common} images that are in {first} too, wanted none: what is "
                    "tuned on, chosen by and reported on must differ"
                )


def fresh(images: Tensor, *others: list[bytes]) -> Int[Tensor, " m"]:
    """Positions of the images that are in none of these sets of fingerprints, each image once."""
    seen, positions = set().union(*others), []
    for position, found in enumerate(fingerprints(images)):
        if found not in seen:
            positions.append(position)
            seen.add(found)
    return torch.tensor(positions, dtype=torch.long)


def digest(*parts: Any) -> str:
    """A short text for values, the same for the same values: tensors, fingerprints, texts."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            total.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, list):
            total.update(b"".join(part))
        else:
            total.update(repr(part).encode())
    return total.hexdigest()
