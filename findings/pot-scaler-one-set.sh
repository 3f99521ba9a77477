#!/usr/bin/env bash
# POT's solve_sample scales one of the two sets of samples.
#
# Library: POT 0.9.7.post1, numpy 2.4.6, scipy 1.17.1.
# Guess: scaler= is applied to both sets, as its page says ("function to scale the input data") and
#   as ot.utils.apply_scaler does, so that a set is at distance 0 from itself whatever the scaler.
# Seen: the second set stays as it is: its scaled copy goes to a name that nothing reads. With a
#   division by 10, a set and itself cost 56.3 in place of 0, and a set that lies 1 away in each of
#   two coordinates 70.5 in place of 0.02. It holds for the exact, the entropic and the Gaussian
#   method, for functions and for objects with transform. No warning.
# For users: scale both sets before the call, and leave scaler alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    POT==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
cat > "$folder/scaled.py" <<'PYTHON'
import numpy as np
import ot
from ot.utils import apply_scaler

draws = np.random.default_rng(0)
X = draws.normal(size=(50, 2)) * 5 + 3
METHODS = {"exact": {}, "gaussian": {"method": "gaussian"}, "entropic": {"reg": 50.0}}


def tenth(x):
    return x / 10


class Tenth:
    def transform(self, x):
        return x / 10


print("POT", ot.__version__, "numpy", np.__version__)
assert all(np.allclose(x, y) for x, y in zip(apply_scaler(X, X + 1, tenth), (X / 10, X / 10 + 0.1)))
for name, options in METHODS.items():
    for shift in (0, 1):
        y = X + shift
        truth = ot.solve_sample(X / 10, y / 10, **options).value
        half = ot.solve_sample(X / 10, y, **options).value
        told = [ot.solve_sample(X, y, scaler=s, **options).value for s in (tenth, Tenth())]
        print(f"{name}, moved by {shift}: {told[0]:.4f}, {told[1]:.4f};", end=" ")
        print(f"both scaled by hand {truth:.4f}, the first alone {half:.4f}")
        assert np.allclose(told, half)
        assert told[0] > truth + 10
PYTHON
"$folder/venv/bin/python" "$folder/scaled.py"
