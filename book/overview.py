"""Draw the README's picture: run the landing page and keep the figure it draws."""

import base64
import os
import tempfile
from pathlib import Path

import nbformat

from fpmc.run import run

BOOK = Path(__file__).parent
PICTURE = BOOK / "_static" / "overview.png"


def main() -> None:
    """Execute ``intro.md`` with its default parameters and write ``_static/overview.png``."""
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, "intro.ipynb")
        run(BOOK / "intro.md", executed, {})
        notebook = nbformat.read(executed, as_version=4)
    figures = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    beside = PICTURE.with_suffix(".tmp")
    beside.write_bytes(base64.b64decode(figures[-1]))
    os.replace(beside, PICTURE)


if __name__ == "__main__":
    main()
