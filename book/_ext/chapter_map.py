"""What a chapter takes: minutes to read it, seconds to run it, and which chapters come before it.

The minutes are counted in the chapter's text, the seconds were measured when it was executed, and
what comes before it is said by its own sentence "Read {doc}`a` and {doc}`b` first". Every chapter
says the first two below its title. The directive ``{chapter-map}`` holds a table whose rows begin
with a chapter, and adds all three.
"""

import re
from pathlib import Path

import chapters
import jupytext
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

WORDS = 200  # a minute
EQUATION = 0.5  # minutes for a displayed equation
LINE = 0.05  # minutes for a line of code that is not folded away
FOLDED = {"hide-input", "remove-input", "remove-cell", "hide-cell"}
SOLUTION = re.compile(
    r"```\{solution\}.*?```|```\{solution-start\}.*?```\{solution-end\}\s*```", re.S
)
EQUATIONS = re.compile(r"```\{math\}.*?```|\$\$.+?\$\$", re.S)
MARKUP = re.compile(r"`+\{[^`\n]*\}`*.*$|^:[\w-]+:.*$|^[`:|\s-]+$", re.M)
FIRST = re.compile(r"\bRead ((?:\{doc\}`\w+`(?:, | and )?)+) first\b")
DOC = re.compile(r"\{doc\}`(\w+)`")


def minutes(chapter: Path) -> float:
    """The time to read a chapter without the solutions of its exercises."""
    cells = jupytext.read(chapter).cells
    shown = (
        c for c in cells if c.cell_type == "code" and not FOLDED & set(c.metadata.get("tags", []))
    )
    lines = sum(len(cell.source.splitlines()) for cell in shown)
    text = SOLUTION.sub("", "\n".join(c.source for c in cells if c.cell_type == "markdown"))
    equations = len(EQUATIONS.findall(text))
    words = len(MARKUP.sub("", EQUATIONS.sub("", text)).split())
    return words / WORDS + equations * EQUATION + lines * LINE


def before(chapter: Path) -> list[str]:
    """The chapters that one asks you to read first."""
    found = FIRST.search(" ".join(chapter.read_text().split()))
    return DOC.findall(found[1]) if found else []


def seconds(chapter: Path, folder: Path = chapters.CACHE) -> float | None:
    """Seconds of a processor that a chapter ran; None if it is not in the cache."""
    executed = chapters.cached(chapter, folder)
    return executed and executed.cpu_seconds


def _told(chapter: Path, env) -> tuple[str, str]:
    """Minutes and seconds as text; no seconds for what is no notebook or was not run."""
    spent = None
    if chapter in chapters.chapters():
        spent = seconds(chapter, Path(env.mystnb_config.execution_cache_path))
    read = f"{max(minutes(chapter), 1):.0f}\N{NO-BREAK SPACE}min"
    return read, "" if spent is None else f"{max(spent, 1):.0f}\N{NO-BREAK SPACE}s"


class ChapterLink(nodes.inline):
    """The number of a chapter, or its title if it has none; linked when numbers are known."""


class ChapterMap(SphinxDirective):
    """A table of chapters, with three columns more."""

    has_content = True

    def run(self):
        """Parse the table and add the columns."""
        parent = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, parent)
        table = parent.next_node(nodes.table)
        group = table.next_node(nodes.tgroup)
        group["cols"] += 3
        group.insert(
            len(list(group.findall(nodes.colspec))), [nodes.colspec(colwidth=10) for _ in range(3)]
        )
        head, *rows = list(table.findall(nodes.row))
        for text in ("read first", "to read", "to run"):
            head += nodes.entry("", nodes.paragraph("", text))
        for row in rows:
            self._extend(row)
        return parent.children

    def _extend(self, row):
        link = row.next_node(pending_xref)
        name = Path(link["reftarget"]).name
        chapter = Path(self.env.srcdir, "book", f"{name}.md")
        link.parent.insert(
            0, [ChapterLink("", "", chapter=f"book/{name}", numbers=True), nodes.Text(" ")]
        )
        first = nodes.paragraph()
        for i, other in enumerate(before(chapter)):
            first += nodes.Text(", " if i else "")
            first += ChapterLink("", "", chapter=f"book/{other}")
        row += nodes.entry("", first)
        for text in _told(chapter, self.env):
            row += nodes.entry("", nodes.paragraph("", text), classes=["text-right"])


class Numbers(SphinxPostTransform):
    """Put the chapters' numbers in."""

    default_priority = 200

    def run(self, **kwargs):
        """Replace the placeholders of one page."""
        for node in list(self.document.findall(ChapterLink)):
            chapter = node["chapter"]
            number = self.env.toc_secnumbers.get(chapter, {}).get("", ())
            text = ".".join(map(str, number))
            if node.get("numbers") or chapter not in self.env.titles:
                node.replace_self(nodes.Text(text))
                continue
            text = text or self.env.titles[chapter].astext()
            node.replace_self(
                make_refnode(self.app.builder, self.env.docname, chapter, "", nodes.Text(text))
            )


def add_times(app, doctree):
    """Say below a chapter's title what it takes."""
    env = app.env
    chapter = Path(env.doc2path(env.docname))
    title = doctree.next_node(nodes.title)
    if env.docname == app.config.root_doc or chapter not in chapters.chapters() or title is None:
        return
    read, run = _told(chapter, env)
    text = f"{read} to read" + (f", {run} to run" if run else "")
    title.parent.insert(
        title.parent.index(title) + 1, nodes.paragraph("", text, classes=["chapter-times"])
    )


def read_the_map_again(app, env, docnames):
    """The landing page says what other pages take: read it whenever one of them is read."""
    if docnames and app.config.root_doc not in docnames:
        docnames.append(app.config.root_doc)


def setup(app):
    """Register with Sphinx."""
    app.add_directive("chapter-map", ChapterMap)
    app.add_node(ChapterLink)
    app.add_post_transform(Numbers)
    app.connect("doctree-read", add_times)
    app.connect("env-before-read-docs", read_the_map_again, priority=400)
    return {"parallel_read_safe": True}
