"""Execute every chapter with its default parameters and store it beside this file, for nbval.

Only text outputs are kept, so that diffs read well and the repository stays small.
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

FOLDER = Path(__file__).parent
BOOK = FOLDER.parents[1] / "book"


def chapters() -> list[Path]:
    """The book's pages that are notebooks."""
    return sorted(path for path in BOOK.glob("*.md") if "{code-cell}" in path.read_text())


def stored(chapter: Path) -> Path:
    """Where a chapter's executed notebook is stored."""
    return FOLDER / f"{chapter.stem}.ipynb"


def execute(chapter: Path) -> nbformat.NotebookNode:
    """Run a chapter and keep its text outputs."""
    notebook = jupytext.read(chapter)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        if cell.cell_type != "code":
            continue
        cell.outputs = _text(cell.outputs)
        cell.metadata.pop("execution", None)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def _text(outputs: list) -> list:
    """Standard output in one piece, and text results; no images, no standard error."""
    printed = "".join(o.text for o in outputs if o.get("name") == "stdout")
    kept = [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
    for output in outputs:
        data = output.get("data", {})
        if "text/plain" in data and not any(kind.startswith("image/") for kind in data):
            output.data = {"text/plain": data["text/plain"]}
            kept.append(output)
    return kept


def main(names: list[str]) -> None:
    """Regenerate all stored notebooks, or those of the chapters named."""
    wanted = [path for path in chapters() if not names or path.stem in names]
    for chapter in tqdm(wanted, desc="chapters"):
        beside = stored(chapter).with_suffix(".tmp")
        nbformat.write(execute(chapter), beside)
        os.replace(beside, stored(chapter))


if __name__ == "__main__":
    main(sys.argv[1:])
