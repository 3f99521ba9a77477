#!/usr/bin/env bash
# usearch takes uint8 images for rows of bits, and by default keeps vectors as roughly as the CPU likes.
#
# Library: usearch 2.26.6, numpy 2.4.6, scikit-learn 1.9.1 (its 8×8 digits).
# Guess: search(..., exact=True) has the squared distances of the arrays given, uint8 as any other
#   type, and Index(dtype="u8") keeps their values. Index's default is float32.
# Seen: uint8 arrays mean packed bits, whatever the metric. Exact squared distances of the digits as
#   uint8 are no numbers, or wrong ones; an index of dtype "u8" keeps 0 and 1 in place of the values, and
#   of its five nearest images a fifth are right. As float32 or float16 both are right. No warning.
#   The default dtype is bfloat16 where the CPU has instructions for it, else float16, else float32:
#   with bfloat16, distances of digits in [-1, 1] to themselves with noise of 0.01 are off by up to a
#   seventh, as they would not be on another machine.
# For users: convert images to float32, and name dtype="f32".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    usearch==2.26.6 numpy==2.4.6 scikit-learn==1.9.1
cat > "$folder/nearest.py" <<'PYTHON'
import numpy as np
import usearch
from sklearn.datasets import load_digits
from usearch.index import Index, MetricKind, search

pixels = load_digits().images.reshape(-1, 64)
bytes_ = np.rint(pixels * 255 / 16).astype(np.uint8)
queries = 50


def distances(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def right(matches, true):
    """Of the five images found, the share that lies no further than the five nearest."""
    found = np.take_along_axis(true, matches.keys.astype(int), 1)
    return (found <= np.sort(true, 1)[:, 4:5]).mean()


print("usearch", usearch.__version__, "numpy", np.__version__)
true = distances(bytes_[:queries], bytes_)
nearest = np.sort(true, 1)[:, :5]
for kind in (np.uint8, np.float32, np.float16):
    images = bytes_.astype(kind)
    told = search(images, images[:queries], 5, MetricKind.L2sq, exact=True)
    same = np.allclose(told.distances, nearest, rtol=1e-3)
    print(f"exact search, {kind.__name__}: right {same}; {told.distances[0, 1]}, wanted {nearest[0, 1]}")
    assert same == (kind is not np.uint8)
for dtype, images in (("u8", bytes_), ("f32", bytes_.astype(np.float32))):
    index = Index(ndim=64, metric="l2sq", dtype=dtype)
    index.add(np.arange(len(images)), images)
    share = right(index.search(images[:queries], 5), true)
    kept = np.asarray(index.get([0])[0]).max()
    print(f"index of {dtype}: {share:.0%} of the nearest five; largest value kept {kept}")
    assert (share < 0.5 and kept == 1) if dtype == "u8" else share > 0.99
scaled = (pixels / 8 - 1).astype(np.float32)
noise = np.random.default_rng(0).normal(size=(queries, 64)).astype(np.float32)
noisy = scaled[:queries] + 0.01 * noise
true = distances(noisy, scaled)
for dtype in (None, "bf16", "f32"):
    index = Index(ndim=64, metric="l2sq", dtype=dtype)
    index.add(np.arange(len(scaled)), scaled)
    told = index.search(noisy, 1)
    wanted = np.take_along_axis(true, told.keys.astype(int).reshape(queries, 1), 1)
    off = np.abs(told.distances.reshape(queries, 1) / wanted - 1).max()
    print(f"dtype {dtype} is {index.dtype}: distances off by up to {off:.1%}")
    assert (off > 0.05) == ("BF16" in str(index.dtype)) or dtype is None
PYTHON
"$folder/venv/bin/python" "$folder/nearest.py"
