"""Store the code of every chapter, with default parameters, and the outputs that tests compare.

The outputs are those of the book's cache; what it lacks is executed. Prose, pictures and what no
test compares are left out, so that diffs read well and the repository stays small.
"""

import os
import sys
from pathlib import Path

import nbformat
from tqdm import tqdm

FOLDER = Path(__file__).parent
COMPARED = "nbval-check-output"
"""The tag of cells whose outputs are compared."""
TEXT = ("text/plain", "text/markdown")
"""What is kept of an output: what a terminal shows, and tables."""
sys.path.insert(0, str(FOLDER.parents[1] / "book" / "_ext"))
import chapters  # noqa: E402


def stored(chapter: Path) -> Path:
    """Where a chapter's executed notebook is stored."""
    return FOLDER / f"{chapter.stem}.ipynb"


def code_alone(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter's code with the text outputs that are compared."""
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        compared = COMPARED in cell.metadata.get("tags", [])
        cell.outputs = _text(cell.outputs) if compared else []
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def _text(outputs: list) -> list:
    """Standard output in one piece, and text results; no images, no standard error."""
    printed = "".join(o.text for o in outputs if o.get("name") == "stdout")
    kept = [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
    for output in outputs:
        data = output.get("data", {})
        if "text/plain" in data and not any(kind.startswith("image/") for kind in data):
            output.data = {kind: data[kind] for kind in TEXT if kind in data}
            kept.append(output)
    return kept


def main(names: list[str]) -> int:
    """Store all chapters, or those named. Returns 1 if one fails; it is left as it was."""
    known = {chapter.stem: chapter for chapter in chapters.chapters()}
    if unknown := sorted(set(names) - set(known)):
        print(f"NAME: got {', '.join(unknown)}, wanted some of {', '.join(known)}", file=sys.stderr)
        return 2
    wanted, status = [known[name] for name in names or known], 0
    stale = sum(chapters.cached(chapter) is None for chapter in wanted)
    for chapter, done in tqdm(chapters.bring_up_to_date(wanted), "chapters", stale):
        if done.error is not None:
            print(f"{chapter}\n{done.error}", file=sys.stderr)
            status = 1
    for chapter in wanted:
        if (done := chapters.cached(chapter)) is not None:
            beside = stored(chapter).with_suffix(".tmp")
            nbformat.write(code_alone(done.notebook), beside)
            os.replace(beside, stored(chapter))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
