#!/usr/bin/env bash
# A number that NumPy computed and MyST-NB glues into a sentence vanishes from the page.
#
# Libraries: myst-nb 1.4.0, numpy 2.4.6, on Sphinx 7.4.7.
# Guess: after glue("error", value), {glue:text}`error:.2f` prints value to two digits, whether value
#   is a float of Python or of NumPy, which is a subclass of it.
# Seen: MyST-NB formats the text that IPython would show. NumPy 2 shows np.float64(1.5), which is no
#   number: the sentence says "is ." with nothing in the gap, the build warns and ends with 0. Without
#   a format the sentence says "is np.float64(1.5)". A mean, an array's element, float32: all alike.
# For users: glue float(value), or build with warnings as errors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    myst-nb==1.4.0 numpy==2.4.6 sphinx==7.4.7 ipykernel==6.31.0 'docutils<0.22'
"$folder/venv/bin/python" -m ipykernel install --sys-prefix > "$folder/log" 2>&1
mkdir "$folder/book"
echo 'extensions = ["myst_nb"]; nb_execution_mode = "force"' > "$folder/book/conf.py"
cat > "$folder/book/index.md" <<'MYST'
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Page

```{code-cell}
import numpy as np
from myst_nb import glue

values = np.array([1.0, 2.0])
glue("python", 1.5, display=False)
glue("mean", values.mean(), display=False)
glue("single", values.astype("float32").mean(), display=False)
```

Python's is {glue:text}`python:.2f`.

The mean is {glue:text}`mean:.2f`.

The float32 is {glue:text}`single:.2f`.

Without a format it is {glue:text}`mean`.
MYST
"$folder/venv/bin/pip" list 2> "$folder/log" | grep -iE '^(myst-nb|numpy|sphinx) '
"$folder/venv/bin/sphinx-build" -q -b text "$folder/book" "$folder/text" 2> "$folder/warnings"
grep -o 'could not convert.*' "$folder/warnings"
grep -E ' is ' "$folder/text/index.txt"
grep -qx "Python's is 1.50." "$folder/text/index.txt"
grep -qx 'The mean is .' "$folder/text/index.txt"
grep -qx 'The float32 is .' "$folder/text/index.txt"
grep -qx 'Without a format it is np.float64(1.5).' "$folder/text/index.txt"
