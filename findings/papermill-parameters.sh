#!/usr/bin/env bash
# papermill writes tuples as text, and the keys of a mapping as text, without a word.
#
# Library: papermill 2.7.0, Python kernel.
# Guess: a parameter arrives as the value that was passed, or is refused.
# Seen: (2.0, 4.0) arrives as the string "(2.0, 4.0)", also inside lists and mappings, and
#   {1.5: 3} as {"1.5": 3}: a schedule that maps noise levels to patch sizes arrives with keys that
#   are no numbers. Lists, NaN and infinity arrive as they are; a set is refused.
# For users: pass lists for tuples, and pairs of numbers in place of mappings from numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 ipykernel==6.29.5
cat > "$folder/run.py" <<'PYTHON'
import sys

import nbformat
import papermill

source, executed = sys.argv[1:]
cells = [
    nbformat.v4.new_code_cell("value = None", metadata={"tags": ["parameters"]}),
    nbformat.v4.new_code_cell("print(repr(value))"),
]
kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), source)


def arrives(value):
    done = papermill.execute_notebook(source, executed, {"value": value}, progress_bar=False)
    return done.cells[-1].outputs[0].text.strip()


expected = [
    ([2.0, 4.0], "[2.0, 4.0]"),
    (float("inf"), "inf"),
    ((2.0, 4.0), "'(2.0, 4.0)'"),
    ({"a": (1, 2)}, "{'a': '(1, 2)'}"),
    ({1.5: 3}, "{'1.5': 3}"),
]
print("papermill", papermill.__version__)
for value, wanted in expected:
    found = arrives(value)
    print(f"{value!r} arrives as {found}")
    assert found == wanted, f"changed: {found}, before {wanted}"
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder/in.ipynb" "$folder/out.ipynb" 2>/dev/null
