"""Crops of the natural colour photographs that ship inside scikit-learn and scikit-image.

Every photograph is cut into cells; a fifth of them, spread over it like knight's moves, is for
testing. Where a crop lies decides its split: no pixel of a training crop belongs to a test cell,
nor the other way round, at any scale.
"""

from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

__all__ = ["PHOTOGRAPHS", "SCALES", "crops"]

PHOTOGRAPHS = {
    "china": ("sklearn.datasets.images", "china.jpg"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
    "astronaut": ("skimage.data", "astronaut.png"),
    "chelsea": ("skimage.data", "chelsea.png"),
    "coffee": ("skimage.data", "coffee.png"),
    "rocket": ("skimage.data", "rocket.jpg"),
    "motorcycle": ("skimage.data", "motorcycle_left.png"),
    "hubble": ("skimage.data", "hubble_deep_field.jpg"),
}
"""Each photograph's package and file."""

SCALES = {16: (1, 2, 4), 32: (1, 2, 3)}
"""For each side of a crop, the factors by which a photograph is shrunk before it is cropped."""

CELL = 112


def crops(side: int, split: str, n: int, seed: int) -> np.ndarray:
    """Draw crops, independently: a photograph, a scale, then a place, each uniformly.

    Args:
        side: The crops' side in pixels, a key of :data:`SCALES`.
        split: "train" or "test".
        n: How many. A longer draw with the same seed begins with the shorter one.
        seed: Seed of the draw.

    Returns:
        uint8, shape (n, 3, side, side).
    """
    draws = np.random.default_rng([seed, int(split == "test")]).random((n, 3))
    scales = SCALES[side]
    views = [(name, scale) for name in PHOTOGRAPHS for scale in scales]
    chosen = (draws[:, 0] * len(PHOTOGRAPHS)).astype(int) * len(scales)
    chosen += (draws[:, 1] * len(scales)).astype(int)
    out = np.empty((n, side, side, 3), np.uint8)
    for view in np.unique(chosen):
        name, scale = views[view]
        pixels, is_test = _shrunk(name, scale)
        places = _places(is_test if split == "test" else _is_train(name, scale), side)
        rows = np.flatnonzero(chosen == view)
        picked = places[(draws[rows, 2] * len(places)).astype(int)]
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))
        out[rows] = windows[picked[:, 0], picked[:, 1]].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


@cache
def _photograph(name: str) -> Image.Image:
    package, file = PHOTOGRAPHS[name]
    with resources.as_file(resources.files(package) / file) as path:
        return Image.open(path).convert("RGB")


@cache
def _shrunk(name: str, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph at a scale (h, w, 3), and which of its pixels come from test cells alone."""
    photo = _photograph(name)
    w, h = (size // scale * scale for size in photo.size)
    pixels = np.asarray(photo.crop((0, 0, w, h)).reduce(scale))
    return pixels, _blocks(_test_cells(name)[:h, :w], scale).all((1, 3))


def _is_train(name: str, scale: int) -> np.ndarray:
    """Which pixels of the shrunk photograph come from no test cell."""
    h, w = (size * scale for size in _shrunk(name, scale)[0].shape[:2])
    return ~_blocks(_test_cells(name)[:h, :w], scale).any((1, 3))


@cache
def _test_cells(name: str) -> np.ndarray:
    """Which pixels of the photograph, at full size, are for testing: shape (h, w)."""
    w, h = _photograph(name).size
    row = np.arange(h) * (h // CELL) // h
    column = np.arange(w) * (w // CELL) // w
    return (row[:, None] + 2 * column[None, :]) % 5 == 0


def _blocks(mask: np.ndarray, scale: int) -> np.ndarray:
    h, w = mask.shape
    return mask.reshape(h // scale, scale, w // scale, scale)


def _places(allowed: np.ndarray, side: int) -> np.ndarray:
    """Corners (row, column) of all windows that lie wholly where it is allowed."""
    counts = np.pad(allowed.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = counts[side:, side:] - counts[:-side, side:] - counts[side:, :-side]
    return np.argwhere(inside + counts[:-side, :-side] == side * side)
