"""A measure on images: each with its weight, and if they are given, its label and its parent."""

import warnings
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fpmc.checks import as_device, as_images, as_whole_number
from fpmc.source.arguments import as_dataset, as_labels, as_log_weights, as_parents, as_positions
from fpmc.source.joined import Joined
from fpmc.source.pixels import from_numpy, to_float

__all__ = ["Source", "as_source"]

CHANNELS = (1, 3, 4)
"""Numbers of channels that images are usually stored with."""


class Source:
    r"""A measure with finite support, :math:`S = \sum_n s_n \delta_{x_n}`, on images in [-1, 1].

    The images stay as they are given and where they are (uint8 takes a quarter of the memory of
    float32, and a memory-mapped array stays on disk): whoever sums over the source reads it a
    chunk at a time.

    Args:
        images: x_n, with shape (n, c, h, w): uint8 pixel values 0 … 255, or floating-point
            values already in [-1, 1]. A torch tensor or a NumPy array.
        weights: s_n > 0, with shape (n,); scaled to sum to 1. Uniform if left out.
        labels: The images' classes, whole numbers with shape (n,), for :meth:`of_class`.
        parents: For each image that is a copy of another, changed as by :mod:`fpmc.augment`, that
            image's position, and −1 for originals; shape (n,). Whoever leaves an image out leaves
            its copies out.
        dataset: The name of the dataset that the images are from, whose schedules the methods then
            take. :meth:`fpmc.data.Dataset.source` gives it.

    Raises:
        TypeError: If the images are neither uint8 nor floating-point, or no dense tensor, or the
            labels or parents no whole numbers, or the dataset no name.
        ValueError: If there are none, their shape or range is wrong or their channels come last,
            they hold NaN, a weight is not positive, labels or parents have another shape, a parent
            is no original's position, or a tensor requires gradients: answers have none with
            respect to the source.

    Source: S in Niedoba et al. (2026), equation (9).
    """

    def __init__(
        self,
        images: Any,
        weights: Any = None,
        labels: Any = None,
        parents: Any = None,
        *,
        dataset: str | None = None,
    ):
        for name, given in (("images", images), ("weights", weights)):
            if isinstance(given, Tensor) and given.requires_grad:
                raise ValueError(
                    f"{name}: got a tensor that requires gradients, which an FPMC has for z and "
                    f"dense operators alone, wanted {name}.detach()"
                )
        self.images = images if isinstance(images, Joined) else _as_stored(images)
        n = len(self.images)
        self.log_weights = None if weights is None else as_log_weights(weights, n)
        self.labels = None if labels is None else as_labels(labels, n)
        self.parents = None if parents is None else as_parents(parents, n)
        self.dataset = as_dataset(dataset)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return tuple(self.images.shape[1:])

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The images as they are stored, one tensor or those of each part of a union."""
        return self.images.parts if isinstance(self.images, Joined) else (self.images,)

    def __repr__(self) -> str:
        c, h, w = self.shape
        return f"Source({len(self):,} images, {c} × {h} × {w}, {self.images.dtype})"

    def __getitem__(self, index: Any) -> Float[Tensor, "m c h w"]:
        """The images at an index (slice, list or tensor of positions), float32 in [-1, 1]."""
        return self.read(index)

    def of_class(self, label: int) -> "Source":
        r"""The images of one class, :math:`S(x \mid a)`, with their weights scaled to sum to 1.

        They are copied, but for those that lie one behind another.

        Args:
            label: The class, one of the source's labels.

        Raises:
            TypeError: If it is no whole number.
            ValueError: If the source has no labels, or no image of this class that is not left
                out.
        """
        if self.labels is None:
            raise ValueError(
                "label: the source has no labels, wanted fpmc.Source(images, labels=labels), as "
                "in a dataset's train_labels"
            )
        label = as_whole_number(label, "label", -(2**63), 2**63 - 1)
        index = torch.nonzero(self.labels == label).flatten()
        weights = None if self.log_weights is None else self.log_weights[index]
        if len(index) == 0 or (weights is not None and weights.max() == -torch.inf):
            known = self.labels.unique().tolist()
            listed = ", ".join(map(str, known[:10])) + ", ..." * (len(known) > 10)
            raise ValueError(f"label: got {label}, of which there is no image, wanted of {listed}")
        first, last = index[0].item(), index[-1].item() + 1
        in_a_row = last - first == len(index)
        chosen = slice(first, last) if in_a_row else index.to(self.images.device)
        other = self._with_log_weights(None if weights is None else weights - weights.logsumexp(0))
        other.images, other.labels = self.images[chosen], self.labels[index]
        if self.parents is not None:
            place = torch.full((len(self) + 1,), -1)  # and one for the parent −1
            place[index] = torch.arange(len(index))
            other.parents = place[self.parents[index]]
        return other

    def without(self, index: Any) -> "Source":
        """The same source but for some images and their copies, which get no weight.

        Nothing is copied. A copy of an image is one whose parent it is; to leave out a copy leaves
        out nothing else. Positions and ``len`` stay: an image that is left out has a log-weight of
        −∞, and answers are those of a source that was made without it.

        Args:
            index: Positions of images, 0 … n − 1: a whole number, a list, an array or a tensor.

        Raises:
            TypeError: If they are not whole numbers.
            ValueError: If one is out of range, or no image would be left.
        """
        index = as_positions(index, len(self))
        if index.numel() == 0:
            return self
        kept = torch.zeros(len(self), dtype=torch.float64)
        if self.log_weights is not None:
            kept = self.log_weights.cpu().clone()
        gone = torch.zeros(len(self), dtype=torch.bool)
        gone[index] = True
        if self.parents is not None:
            gone |= (self.parents >= 0) & gone[self.parents]
        kept[gone] = -torch.inf
        if kept.max() == -torch.inf:
            raise ValueError("index: got every image that is left, wanted some to stay")
        return self._with_log_weights(kept - kept.logsumexp(0))

    def shard(self, rank: int, world: int) -> "Source":
        r"""One of several contiguous parts, whose sizes differ by one image at most.

        Part r of W has the images from position ⌊rN/W⌋ on, up to ⌊(r + 1)N/W⌋; none, if that is the
        same. Nothing is copied. Weights are those of the whole source, and sum to the part's share
        of it: the sum over a part and that over the others make that over the whole, which is what
        :mod:`fpmc.distributed` does. Labels follow, and parents as positions in the part, −1 for
        those outside: leave images out, with :meth:`without`, before.

        Args:
            rank: Which, from 0 to W − 1.
            world: How many parts W there are, at least 1.

        Raises:
            TypeError: If one is no whole number.
            ValueError: If one is out of range.
        """
        world = as_whole_number(world, "world", 1)
        rank = as_whole_number(rank, "rank", 0, world - 1)
        start, stop = (i * len(self) // world for i in (rank, rank + 1))
        weights = None if self.log_weights is None else self.log_weights[start:stop]
        other, images = self._with_log_weights(weights), self.images
        joined = isinstance(images, Joined)
        other.images = images.part(start, stop) if joined else images[start:stop]
        other.labels = None if self.labels is None else self.labels[start:stop]
        if self.parents is not None:
            parents = self.parents[start:stop]
            inside = (parents >= start) & (parents < stop)
            other.parents = torch.where(inside, parents - start, -1)
        return other

    def to(self, device: str | torch.device) -> "Source":
        """The same source, whose images lie on a device.

        Raises:
            ValueError: If there is no such device.
        """
        other = copy(self)
        other.images = self.images.to(as_device(device))
        return other

    def unweighted(self) -> "Source":
        """The same images, all with the same weight but those left out."""
        if self.log_weights is None:
            return self
        left_out = self.log_weights == -torch.inf
        if not left_out.any():
            return self._with_log_weights(None)
        return self._with_log_weights(torch.where(left_out, self.log_weights, 0.0))

    def _with_log_weights(self, log_weights: Tensor | None) -> "Source":
        other = copy(self)
        other.log_weights = log_weights
        return other

    def read(
        self, index: Any, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Float[Tensor, "m c h w"]:
        """Read images in [-1, 1] with this dtype, on this device.

        Args:
            index: A slice, a list or a tensor of positions, with m entries.
            dtype: The floating-point type of what comes back.
            device: Where it lies; the source's own device if left out.
        """
        if isinstance(index, Tensor):
            index = index.to(self.images.device)
        images = self.images[index].to(device or self.images.device)
        return to_float(images, dtype) if images.dtype == torch.uint8 else images.to(dtype)


def as_source(source: Any) -> Source:
    """Return the source.

    Raises:
        TypeError: If it is not an :class:`fpmc.Source`.
    """
    if not isinstance(source, Source):
        raise TypeError(f"source: got {type(source).__name__}, wanted an fpmc.Source")
    return source


def _as_stored(images: Any) -> Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]:
    """A source's images, as :class:`Source` takes them, as a tensor of the same memory."""
    is_array = isinstance(images, np.ndarray)
    if is_array:
        images = from_numpy(images)
    elif not isinstance(images, Tensor):
        listed = isinstance(images, list | tuple)
        package = "np" if listed and isinstance((*images, None)[0], np.ndarray) else "torch"
        raise TypeError(
            f"images: got {type(images).__name__}, wanted a tensor or array (n, c, h, w)"
            + f" ({package}.stack makes one of a list)" * listed
        )
    if images.layout != torch.strided or images.is_meta:
        raise TypeError(
            f"images: got {images.layout} on {images.device}, wanted a dense tensor with values"
        )
    if images.dtype == torch.uint8:
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, wanted (n, c, h, w), none of them 0"
            )
    elif not images.is_floating_point():
        raise TypeError(
            f"images: got {images.dtype}, wanted uint8 pixel values, or floats in [-1, 1]"
        )
    else:
        low, high = as_images(images, "images").aminmax()
        if low < -1 or high > 1:
            raise ValueError(
                f"images: got floating-point values from {low.item()!r} to {high.item()!r}, "
                "wanted them in [-1, 1]; pass pixel values as uint8, and clamp what a network "
                "or a sampler produced"
            )
        if low >= 0.0 and high > 0.5:
            warnings.warn(
                f"images: all values lie from {low.item():.3g} to {high.item():.3g}; if pixels "
                "were scaled to [0, 1], pass 2 * images - 1",
                stacklevel=3,
            )
    n, c, h, w = images.shape
    far_apart = min(c, h) >= 2 * max(CHANNELS)
    if w in CHANNELS and (far_apart or c == h > max(CHANNELS)):
        raise ValueError(
            f"images: got shape {(n, c, h, w)}, which looks like (n, h, w, c), wanted "
            "(n, c, h, w): move the last axis with "
            + ("np.moveaxis(images, -1, 1)" if is_array else "images.movedim(-1, 1)")
        )
    return images
