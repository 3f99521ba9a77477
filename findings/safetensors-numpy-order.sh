#!/usr/bin/env bash
# safetensors saves NumPy arrays in the order of their memory, and gives back other numbers.
#
# Library: safetensors 0.8.0, numpy 2.4.6.
# Guess: safetensors.numpy.save keeps an array's values whatever its strides, or refuses, as
#   safetensors.torch does for tensors that are not contiguous.
# Seen: transposed, reversed, strided and Fortran-ordered arrays come back with their shape and type
#   and with other values: images saved as x.transpose(0, 3, 1, 2) are scrambled. No error or warning.
# For users: np.ascontiguousarray(x) before saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/order.py" <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, save

X = np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
ARRAYS = {
    "as it is": X,
    "transposed": X.transpose(0, 3, 1, 2),
    "reversed": X[::-1],
    "every second": X[:, ::2],
    "Fortran-ordered": np.asfortranarray(X),
}
print("safetensors", safetensors.__version__, "numpy", np.__version__)
for name, x in ARRAYS.items():
    found = load(save({"x": x}))["x"]
    assert found.shape == x.shape and found.dtype == x.dtype
    print(f"{name}: {(found != x).mean():.0%} of the values are others")
    assert np.array_equal(found, x) == (name == "as it is")
    assert np.array_equal(load(save({"x": np.ascontiguousarray(x)}))["x"], x)
PYTHON
"$folder/venv/bin/python" "$folder/order.py"
