#!/usr/bin/env bash
# Whether FAISS's exact index finds a near copy of an image depends on how many are asked about at once.
#
# Library: faiss-cpu 1.15.1, numpy 2.4.6, scikit-learn 1.9.1 (its two photographs).
# Guess: IndexFlatL2 is exact up to float32's rounding, about 1e-6 of a distance, so that crops of which
#   one number of 3,072 is moved by 1 are at a squared distance of 1 from their originals.
# Seen: so it is for up to 10 queries in a call. With many, squared distances are differences of squared
#   norms and products: those of near copies are off by up to hundreds (pixels from 0 to 255), about half
#   are 0, and range_search within √2 misses about half of the copies. Pixels in [-1, 1] do not help:
#   the error is one of the images' norms. No warning, and the order of the nearest is right here.
# For users: faiss.cvar.distance_compute_blas_threshold = 2**31 - 1 before the search, which is then exact
#   for any number of queries, and slower; or the distances again, of what was found, in float64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    faiss-cpu==1.15.1 numpy==2.4.6 scikit-learn==1.9.1 pillow==12.3.0
cat > "$folder/copies.py" <<'PYTHON'
import faiss
import numpy as np
from sklearn.datasets import load_sample_images

places = [(k, i, j) for k in (0, 1) for i in range(0, 390, 20) for j in range(0, 600, 20)]
photographs = load_sample_images().images
crops = np.stack([photographs[k][i : i + 32, j : j + 32] for k, i, j in places])
crops = crops.reshape(len(places), 3072).astype(np.float32)
copies = crops.copy()
copies[:, 0] += 1


def asked(queries, scale, shift):
    """Of the first copies: the largest error of a squared distance, and the share in range."""
    images, near = ((x * scale + shift).astype(np.float32) for x in (crops, copies))
    index = faiss.IndexFlatL2(3072)
    index.add(images)
    told, which = index.search(near[:queries], 1)
    assert (which[:, 0] == np.arange(queries)).all()
    true = ((near[:queries].astype(float) - images[:queries]) ** 2).sum(1)
    ends, _, found = index.range_search(near[:queries], 2 * scale**2)
    own = [i in found[a:b] for i, (a, b) in enumerate(zip(ends, ends[1:]))]
    off = np.abs(told[:, 0] - true).max() / scale**2
    print(f"{queries:4} queries: squared distances off by up to {off:.3g}; {np.mean(own):.0%} in range")
    return off, np.mean(own)


print("faiss", faiss.__version__, "numpy", np.__version__)
for name, scale, shift in (("0 to 255", 1, 0), ("-1 to 1", 1 / 127.5, -1)):
    print(f"pixels from {name}, in units of the first's squares")
    off, share = asked(10, scale, shift)
    assert off < 1e-3 and share == 1
    off, share = asked(500, scale, shift)
    assert off > 10 and share < 0.9
print("without BLAS")
faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
off, share = asked(500, 1, 0)
assert off < 1e-3 and share == 1
PYTHON
"$folder/venv/bin/python" "$folder/copies.py"
