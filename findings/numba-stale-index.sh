#!/usr/bin/env bash
# A renamed class breaks numba's cache instead of making it stale.
#
# Library: numba 0.68.1, numpy 2.4.6.
# Guess: cached machine code belongs to a file's time stamp and size, so a file that was changed is
#   compiled again.
# Seen: the index holds the types of arguments, pickled, and is unpickled before the stamp is
#   compared. If a function took a NamedTuple whose class has another name in the new file, the call
#   ends in an AttributeError ("Can't get attribute ..."), at every start, until the files in
#   __pycache__ are removed by hand.
# For users: a package that keeps compiled kernels breaks on upgrade where it renames such a class.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 numpy==2.4.6
mkdir "$folder/code"
cat > "$folder/code/kernels.py" <<'PYTHON'
from typing import NamedTuple

import numpy as np
from numba import njit


class Room(NamedTuple):
    values: np.ndarray


@njit(cache=True)
def total(room):
    return room.values.sum()


def answer():
    return total(Room(np.arange(3.0)))
PYTHON
cd "$folder/code"
python="$folder/venv/bin/python"
"$python" -c "import numba, kernels; print('numba', numba.__version__, 'first:', kernels.answer())"
sed -i 's/Room/Buffers/' kernels.py
if "$python" -c "import kernels; print(kernels.answer())" > out 2>&1; then
    echo "changed: the renamed class was compiled again"
    exit 1
fi
tail -n 1 out
grep -q "Can't get attribute 'Room'" out
rm -r __pycache__
"$python" -c "import kernels; print('without the cache:', kernels.answer())"
