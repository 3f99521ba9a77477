#!/usr/bin/env bash
# Inside numba, the mean of 154 million pixels in float32 is less than a quarter of what it is.
#
# Library: numba 0.68.1, numpy 2.4.6.
# Guess: np.mean, np.sum and np.std in a compiled function are NumPy's, which adds float32 numbers in
#   pairs and is right to some 1e-7.
# Seen: numba adds them one by one into a float32. Once the sum is 2^24, a pixel in [0, 1] no longer
#   changes it: the mean of as many pixels as CIFAR-10's training images have is 0.109 in place of
#   0.500, their deviation 0.486 in place of 0.289, and the mean of 2^25 ones is 0.5. Of the pixels
#   of 50,000 digits, 3.2 million, the mean is off by a share of 5e-5. No warning.
# For users: ask for np.sum(values, dtype=np.float64), or add into a float64 in a loop of your own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 numba==0.68.1
cat > "$folder/means.py" <<'PYTHON'
import numba
import numpy as np


@numba.njit
def statistics(values):
    return np.mean(values), np.std(values), np.sum(values, dtype=np.float64) / values.size


print("numba", numba.__version__, "numpy", np.__version__)
pixels = np.random.default_rng(0).random(50_000 * 3 * 32 * 32, dtype=np.float32)
found = {}
for name, values in (("digits", pixels[: 50_000 * 64]), ("CIFAR-10", pixels)):
    mean, deviation, wide = found[name] = statistics(values)
    print(f"{name}, {values.size} pixels: NumPy's mean {np.mean(values):.6f}; numba's {mean:.6f},")
    print(f"  in float64 {wide:.6f}, deviation {deviation:.6f}, exactly {12**-0.5:.6f}")
    assert abs(np.mean(values) - wide) < 1e-6
    assert abs(wide - 0.5) < 1e-3
assert 1e-5 < abs(found["digits"][0] - found["digits"][2]) < 1e-3
assert abs(found["CIFAR-10"][0] - 2**24 / pixels.size) < 1e-3
assert found["CIFAR-10"][1] > 0.4
ones = statistics(np.ones(2**25, dtype=np.float32))[0]
print("mean of 2^25 ones:", ones)
assert ones == 0.5
PYTHON
"$folder/venv/bin/python" "$folder/means.py"
