"""How to cite the book: BibTeX, made from ``CITATION.cff`` when the pages are built."""

from pathlib import Path

import yaml
from docutils import nodes
from notebooks import repository
from sphinx.util.docutils import SphinxDirective


def bibtex(cff: str, url: str = "") -> str:
    """The entry of the software that a citation file describes."""
    told = yaml.safe_load(cff)
    fields = {
        "title": told["title"],
        "author": " and ".join(f"{{{author['name']}}}" for author in told["authors"]),
        "year": str(told["date-released"])[:4],
        "version": told["version"],
    }
    if url:
        fields["url"] = url
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join(["@software{fpmc,", *lines, "}"])


class Citation(SphinxDirective):
    """A block of BibTeX."""

    def run(self):
        """Read the file, and let a change of it be a change of the page."""
        file = Path(self.env.srcdir, "CITATION.cff")
        self.env.note_dependency(str(file))
        text = bibtex(file.read_text(), repository())
        return [nodes.literal_block(text, text, language="bibtex")]


def setup(app):
    """Register with Sphinx."""
    app.add_directive("bibtex-of-this-book", Citation)
    return {"parallel_read_safe": True}
