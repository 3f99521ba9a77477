#!/usr/bin/env bash
# A .safetensors file can be read by its owner alone, whatever the umask.
#
# Library: safetensors 0.8.0, numpy 2.4.6.
# Guess: files are made as other files are, so that a umask of 022 lets everybody read them.
# Seen: with a umask of 022, numpy's save makes a file of mode 644 and safetensors' save_file one of
#   mode 600. An existing file is not written into but replaced: a target that others could read
#   before cannot be read by them after.
# For users: checkpoints in a shared folder of a cluster are closed to the group. Writing the bytes
#   that safetensors' save gives, with Python's own file, keeps the umask.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/modes.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save, save_file

os.umask(0o022)
folder, tensors = Path(sys.argv[1]), {"a": np.zeros(3, np.float32)}
names = ("plain.npy", "new", "replaced", "bytes")
plain, new, replaced, written = (folder / name for name in names)
np.save(plain, tensors["a"])
save_file(tensors, new)
replaced.write_bytes(b"")
before = replaced.stat()
save_file(tensors, replaced)
written.write_bytes(save(tensors))
modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (plain, new, replaced, written)}
print("safetensors", safetensors.__version__, modes)
print("replaced is the same file:", before.st_ino == replaced.stat().st_ino)
assert modes == {"plain.npy": "0o644", "new": "0o600", "replaced": "0o600", "bytes": "0o644"}
assert before.st_ino != replaced.stat().st_ino
PYTHON
"$folder/venv/bin/python" "$folder/modes.py" "$folder"
