"""A part of a dataset as its files give it: images, and what the files say of their classes."""

from typing import NamedTuple

import numpy as np

__all__ = ["Part"]


class Part(NamedTuple):
    """Images that belong together: those to train on, or those held out.

    Attributes:
        images: uint8, shape (n, c, h, w).
        labels: int64, shape (n,), or None if the files number no classes.
        folders: The folders that each image lies in, below those that all share; None where
            images are no files.
        mapped: Whether the images are a file mapped to memory, of which pieces alone stay on disk.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    folders: list[tuple[str, ...]] | None = None
    mapped: bool = False
