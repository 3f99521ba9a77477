#!/usr/bin/env bash
# scoringrules' numba backend computes another CRPS than its other backends, and a biased one.
#
# Library: scoringrules 0.10.0, numba 0.68.1, numpy 2.4.6.
# Guess: a backend is a matter of speed. estimator="akr" compares each draw with the one before it,
#   the first with the last, and gives the same score in all of them.
# Seen: with backend="numba" the first draw is compared with the last but one. Of two draws that is
#   the first itself, so that half of the distance between the two is missing: the score is that of
#   "nrg", which is biased, in place of that of "fair", which is not. With ten draws scores differ by
#   up to 0.19. Other estimators, and "akr" in es_ensemble for draws of one dimension, agree.
# For users: take "fair", or leave the backend at its default, which is numpy's formula here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    scoringrules==0.10.0 numpy==2.4.6 scipy==1.17.1 numba==0.68.1
cat > "$folder/akr.py" <<'PYTHON'
from importlib.metadata import version

import numpy as np
import scoringrules as rules

print("scoringrules", version("scoringrules"), "numba", version("numba"))
generator = np.random.default_rng(0)
for m in (2, 10):
    target, draws = generator.normal(size=1000), generator.normal(size=(1000, m))
    score = {
        (estimator, backend): rules.crps_ensemble(
            target, draws, estimator=estimator, backend=backend
        )
        for estimator in ("akr", "nrg", "fair", "qd", "pwm", "akr_circperm")
        for backend in ("numpy", "numba")
    }
    for estimator in ("akr", "nrg", "fair"):
        means = (f"{b} {score[estimator, b].mean():.4f}" for b in ("numpy", "numba"))
        print(f"{m} draws, {estimator}:", ", ".join(means))
    for estimator in ("nrg", "fair", "qd", "pwm"):
        assert np.allclose(score[estimator, "numpy"], score[estimator, "numba"])
    right, other = score["akr", "numpy"], score["akr", "numba"]
    print(f"{m} draws, akr: up to {np.abs(right - other).max():.3f} apart")
    assert np.abs(right - other).max() > 0.1
    energy = rules.es_ensemble(
        target[:, None], draws[..., None], estimator="akr", backend="numba"
    )
    assert np.allclose(energy, right)
    missing = np.abs(draws[:, 0] - draws[:, -1]) - np.abs(draws[:, 0] - draws[:, -2])
    assert np.allclose(other - right, missing / (2 * m))
    if m == 2:
        assert np.allclose(right, score["fair", "numpy"])
        assert np.allclose(other, score["nrg", "numpy"])
PYTHON
"$folder/venv/bin/python" "$folder/akr.py"
