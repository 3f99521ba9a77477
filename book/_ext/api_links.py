"""Names in the text, such as ``fpmc.methods.optimal``, lead to the page that documents them.

Docstrings are written for readers of the code. For the pages two things in them are put as Sphinx
wants them: a shape such as ``(k, *rest)`` becomes a literal, since a star is markup there, and an
argument that is described by one letter is no item of a list. Members whose only text is Python's
or PyTorch's are left out. And sphinx-codeautolink, which links the names in code, expects a title
in every section; the sections of sphinx-exercise have none.
"""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinx_codeautolink import extension
from sphinx_codeautolink.extension.block import CodeBlockAnalyser

NAME = re.compile(r"(fpmc(?:\.\w+)+)(?:\(.*\))?")
LETTER = re.compile(r"^(\s+)(?=[A-Z]\.$)")
SHAPE = re.compile(r"(?<!`)\([\w, *]*\*[\w, *]*\)")


class ApiLinks(SphinxPostTransform):
    """Make a link of every literal that is a documented name, with or without arguments."""

    default_priority = 200

    def run(self, **kwargs):
        """Replace the literals of one page."""
        known = self.env.get_domain("py").objects
        for literal in list(self.document.findall(nodes.literal)):
            match = NAME.fullmatch(literal.astext())
            if not match or match[1] not in known or _is_linked(literal):
                continue
            entry = known[match[1]]
            link = make_refnode(
                self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy()
            )
            literal.replace_self(link)


def _is_linked(node: nodes.Node) -> bool:
    """Whether a node stands in a link or in a heading."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.reference | nodes.title):
            return True
    return False


def as_markup(app, what, name, obj, options, lines):
    """Make literals of shapes with a star, and text of letters with a full stop."""
    quoted = (SHAPE.sub(lambda match: f"``{match[0]}``", line) for line in lines)
    lines[:] = [LETTER.sub(r"\1\\", line) for line in quoted]


def without_foreign_words(app, what, name, obj, skip, options):
    """Leave out fields that have no text but Python's, and methods that have PyTorch's alone."""
    text = getattr(obj, "__doc__", None)
    foreign = name in ("forward", "extra_repr") and not text
    return True if foreign or str(text).startswith("Alias for field number") else None


class Analyser(CodeBlockAnalyser):
    """What looks for names in code, also in sections without a title."""

    def depart_section(self, node):
        """Forget the section's title, if it has one."""
        if any(isinstance(child, nodes.title) for child in node.children):
            super().depart_section(node)


def setup(app):
    """Register all this with Sphinx."""
    extension.CodeBlockAnalyser = Analyser
    app.connect("autodoc-process-docstring", as_markup)
    app.connect("autodoc-skip-member", without_foreign_words)
    app.add_post_transform(ApiLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
