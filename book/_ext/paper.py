"""The book as one PDF: Sphinx puts all pages into one, and a headless Chromium prints it.

As an extension of Sphinx, this lets the pages of one file have all that the book's pages have. As a
script, ``python book/_ext/paper.py``, it prints what ``jupyter-book build . --builder singlehtml``
has left in ``_build/singlehtml``.
"""

import os
import re
import sys

import browser
from chapters import ROOT

FOLDER = ROOT / "_build" / "singlehtml"
BUILT = "book/intro.html"
PAGE = FOLDER / "index.html"
PDF = ROOT / "_build" / "book.pdf"
FOLDED = re.compile(r'(<div class="cell [^"]*tag_hide-cell[^"]*">\s*<details)')
PATIENCE = 120_000  # milliseconds of the page's own clock for its formulas


def share_handlers(app):
    """Let the builder of one page write what the builder of many pages can.

    Sphinx falls back to the handlers of HTML only for a builder that has none of its own, and
    sphinx-exercise brings some.
    """
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = handlers["html"] | handlers.get("singlehtml", {})


def bring_to_the_top() -> None:
    """Put the page where its links expect it: Sphinx writes it below ``book/``, and they do not.

    Nobody unfolds paper: outputs that are folded away are shown.
    """
    text = (FOLDER / BUILT).read_text().replace(f'href="{BUILT}#', 'href="#')
    PAGE.write_text(FOLDED.sub(r"\1 open", text))


def setup(app):
    """Register with Sphinx."""
    app.connect("builder-inited", share_handlers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    """Print the page. Returns 1, with the reason, if there is no page or no browser."""
    program = browser.find()
    if program is None:
        print(browser.MISSING, file=sys.stderr)
        return 1
    if not (FOLDER / BUILT).exists():
        print(f"page: got no {FOLDER / BUILT}, wanted the book on one page", file=sys.stderr)
        return 1
    bring_to_the_top()
    beside = PDF.with_suffix(".tmp")
    browser.run(
        program,
        f"--virtual-time-budget={PATIENCE}",
        "--no-pdf-header-footer",
        "--generate-pdf-document-outline",
        f"--print-to-pdf={beside}",
        PAGE.as_uri(),
    )
    os.replace(beside, PDF)
    print(f"The book is at {PDF.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
