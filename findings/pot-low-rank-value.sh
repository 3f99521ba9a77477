#!/usr/bin/env bash
# POT's low-rank transport gives a cost in units of its own, and its factored one half of the cost.
#
# Library: POT 0.9.7.post1, numpy 2.4.6, scipy 1.17.1.
# Guess: solve_sample(X, Y, method=...).value is a transport cost between the two sets, squared
#   distances by default. A plan of low rank is one of all plans, so its cost is the exact one's or
#   above it, and data in other units, ten times as large, cost a hundred times as much.
# Seen: method="lowrank" answers 0.73 where the exact cost is 18.4, and still 0.73 when the data are
#   ten or a hundred times as large. It rescales the costs before it solves, and does not scale the
#   value back; solve_sample has no option for that. The plan is right: its own
#   cost is 19.3. value_linear, documented as the linear part of the loss, is scaled too.
#   method="factored" answers 9.3, the two ways over the points between, where its plan costs 18.5.
#   No warning. Exact, entropic and Gaussian answers are in the data's units.
# For users: take sum(plan * costs) from .lazy_plan before costs of sample sets are compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    POT==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
cat > "$folder/costs.py" <<'PYTHON'
import warnings

import numpy as np
import ot
from scipy.spatial.distance import cdist

draws = np.random.default_rng(0)
X, Y = draws.normal(size=(200, 2)), draws.normal(size=(200, 2)) + 3
METHODS = {
    "exact": {},
    "gaussian": {"method": "gaussian"},
    "entropic": {"reg": 1.0},
    "lowrank": {"method": "lowrank", "rank": 10},
    "factored": {"method": "factored", "rank": 50},
}


def answer(scale, name):
    """What the method says its value is, and what its plan costs."""
    x, y = X * scale, Y * scale
    options = dict(METHODS[name])
    if "reg" in options:
        options["reg"] *= scale**2
    solved = ot.solve_sample(x, y, **options)
    value = solved.value if solved.value_linear is None else solved.value_linear
    if name == "gaussian":
        return value, np.nan
    plan = solved.lazy_plan[:] if solved.plan is None else solved.plan
    assert np.allclose(plan.sum(0), 1 / 200) and np.allclose(plan.sum(1), 1 / 200)
    return value, (plan * cdist(x, y, "sqeuclidean")).sum()


warnings.simplefilter("error")
print("POT", ot.__version__, "numpy", np.__version__)
found = {}
for name in METHODS:
    for scale in (1, 10, 100):
        found[name, scale] = answer(scale, name)
        value, cost = found[name, scale]
        print(f"{name}, data times {scale}: value {value:.5g}, its plan's cost {cost:.5g}")
for name in ("exact", "gaussian", "entropic"):
    assert np.isclose(found[name, 100][0], 1e4 * found[name, 1][0], rtol=1e-3)
assert np.isclose(*found["exact", 1]) and np.isclose(*found["entropic", 1])
assert np.isclose(found["lowrank", 1][0], found["lowrank", 100][0], rtol=1e-3)
assert found["lowrank", 1][0] < 1 < found["exact", 1][0] < found["lowrank", 1][1]
assert np.isclose(found["factored", 1][0], found["factored", 1][1] / 2, rtol=0.05)
PYTHON
"$folder/venv/bin/python" "$folder/costs.py"
