#!/usr/bin/env bash
# SciPy's distances between two images, and its Wiener filter, are wrong for uint8 images.
#
# Library: scipy 1.17.1, numpy 2.4.6, scikit-image 0.26.0 for a photograph.
# Guess: scipy.spatial.distance.f(u, v) is what cdist says with metric "f", and scipy.signal.wiener
#   answers in float64 whatever it is given, so both mean the same for uint8 pixels as for floats.
# Seen: euclidean, minkowski, cityblock, chebyshev and cosine subtract or multiply in uint8, where
#   1 - 2 is 255. Between two rows of a photograph "cosine" is 0.0 in place of 0.23, and
#   "chebyshev" 219 in place of 194; cdist is right. sqeuclidean, correlation and braycurtis are
#   right too, so that euclidean is not sqeuclidean's root. wiener squares the image in uint8 before
#   it takes the local variance: with noise of 400 one pixel of eight is off by more than a grey
#   level, by up to 127. cosine warns of an overflow, the others of nothing.
# For users: images.astype(float) before any of them. The pages say "array_like" and no more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    scipy==1.17.1 numpy==2.4.6 scikit-image==0.26.0
cat > "$folder/pixels.py" <<'PYTHON'
import warnings

import numpy as np
import scipy
from scipy.signal import wiener
from scipy.spatial import distance
from skimage.data import camera

IMAGE = camera()
U, V = IMAGE[0], IMAGE[300]
NAMES = (
    "euclidean", "minkowski", "cityblock", "chebyshev", "cosine",
    "sqeuclidean", "correlation", "braycurtis",
)  # fmt: skip

print("scipy", scipy.__version__, "numpy", np.__version__, IMAGE.dtype, IMAGE.shape)
found = {}
for name in NAMES:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        told = getattr(distance, name)(U, V)
    truth = getattr(distance, name)(U.astype(float), V.astype(float))
    many = distance.cdist(U[None], V[None], name).item()
    assert np.isclose(many, truth)
    found[name] = told, truth
    print(f"{name}: {told:.6g}, of floats and by cdist {truth:.6g}; {len(said)} warnings")
wrong = [name for name in NAMES if not np.isclose(*found[name])]
print("wrong:", *wrong)
assert wrong == list(NAMES[:5])
assert found["cosine"][0] == 0 and found["cosine"][1] > 0.2

with np.errstate(all="ignore"):  # flat pieces divide by zero and are replaced
    told, truth = wiener(IMAGE, 5, 400.0), wiener(IMAGE.astype(float), 5, 400.0)
off = np.abs(told - truth)
print(f"wiener: {told.dtype}, {(off > 1).mean():.1%} of pixels off by > 1, up to {off.max():.0f}")
assert (off > 1).mean() > 0.1 and off.max() > 100
PYTHON
"$folder/venv/bin/python" "$folder/pixels.py"
