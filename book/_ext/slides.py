"""Slides for lectures, made from the book's own figures and equations.

``book/lectures.md`` holds the lectures: a heading for each, a heading for each slide with its
minutes, and below it lists, formulas and the labels of figures and equations. A figure is taken
from the executed chapter, its text is the first sentence of its caption, and an equation is taken
from the chapter's source. What comes out is one file of HTML, which needs no other file and prints
a slide a page.

As an extension of Sphinx, this writes ``slides.html`` beside the pages. As a script,
``python book/_ext/slides.py [FILE]``, it executes only the chapters that have a figure in it.
"""

import argparse
import html
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import chapters
import jupytext
import nbformat
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

LECTURES = chapters.BOOK / "lectures.md"
SLIDES = chapters.ROOT / "_build" / "html" / "slides.html"
TEMPLATE = Path(__file__).with_name("slides.html")
LABEL = re.compile(r"^\{(numref|eq)\}`([\w-]+)`$", re.M)
TITLE = re.compile(r"^## (?P<title>.+) · (?P<minutes>\d+) min$")
EQUATION = re.compile(r"```\{math\}\n:label: ([\w-]+)\n(.*?)```", re.S)
SENTENCE = re.compile(r"^.*?[.!?](?=\s|$)")
ROLE = re.compile(r"\{[\w:]+\}`[^`]*`")


class Slide(NamedTuple):
    """One idea: a title, the minutes that it takes, and Markdown with labels."""

    title: str
    minutes: int
    body: str


class Figure(NamedTuple):
    """A figure of a chapter: its cell's source, caption and alternative text."""

    chapter: Path
    source: str
    caption: str
    alt: str


def lectures(text: str) -> dict[str, list[Slide]]:
    """The slides of each lecture, by its title.

    Raises:
        ValueError: If a slide's heading does not end in its minutes.
    """
    found = {}
    for part in re.split(r"^# ", text, flags=re.M)[1:]:
        lecture, *slides = re.split(r"^(?=## )", part, flags=re.M)
        found[lecture.strip()] = [_slide(slide) for slide in slides]
    return found


def _slide(text: str) -> Slide:
    heading, _, body = text.partition("\n")
    match = TITLE.match(heading)
    if match is None:
        raise ValueError(f"slide: got the heading {heading!r}, wanted '## TITLE · MINUTES min'")
    return Slide(match["title"], int(match["minutes"]), body.strip())


def figures() -> dict[str, Figure]:
    """The figures of all chapters, by their labels."""
    found = {}
    for chapter in chapters.chapters():
        for cell in jupytext.read(chapter).cells:
            told = cell.metadata.get("mystnb", {})
            if name := told.get("figure", {}).get("name"):
                caption, alt = told["figure"]["caption"], told["image"]["alt"]
                found[name] = Figure(chapter, cell.source, " ".join(caption.split()), alt)
    return found


def equations() -> dict[str, str]:
    """The numbered equations of all chapters, by their labels."""
    texts = (chapter.read_text() for chapter in chapters.chapters())
    found = (match for text in texts for match in EQUATION.findall(text))
    return {label: tex.strip().rstrip(",. ") for label, tex in found}


def labels(slides: list[Slide]) -> Iterator[tuple[str, str]]:
    """The role and the label of every figure and equation that slides name."""
    for slide in slides:
        yield from LABEL.findall(slide.body)


def picture(figure: Figure, notebook: nbformat.NotebookNode) -> str:
    """The figure's PNG in base64, from its chapter's executed notebook."""
    for cell in notebook.cells:
        if cell.source == figure.source:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return output.data["image/png"].replace("\n", "")
    raise ValueError(f"{figure.chapter.name}: got no picture, wanted one of {figure.source!r}")


class Writer:
    """Turns slides into HTML, with the book's figures and equations in it."""

    def __init__(self, folder: Path = chapters.CACHE):
        self.folder, self.figures, self.equations = folder, figures(), equations()
        self.notebooks = {}
        self.markdown = MarkdownIt().use(dollarmath_plugin, renderer=_formula)

    def document(self, text: str) -> str:
        """All lectures as one page of HTML."""
        config = yaml.safe_load((chapters.ROOT / "_config.yml").read_text())
        macros = config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]
        package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
        parts = {
            "TITLE": html.escape(config["title"]),
            "MACROS": json.dumps(macros),
            "MATHJAX": (package / "static/mathjax/tex-svg.js").read_text(),
            "SLIDES": "\n".join(self._lecture(*item) for item in lectures(text).items()),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text())

    def _lecture(self, title: str, slides: list[Slide]) -> str:
        outline = "".join(f"<li>{self._line(slide.title)}</li>" for slide in slides)
        total = sum(slide.minutes for slide in slides)
        first = (
            f"<h1>{self._line(title)}</h1><p>{total} minutes</p><ol class='outline'>{outline}</ol>"
        )
        return "\n".join(
            f"<section>{part}</section>" for part in [first, *map(self._slide, slides)]
        )

    def _slide(self, slide: Slide) -> str:
        shown = LABEL.sub(lambda match: f"\n\n{match[0]}\n\n", slide.body)
        parts = [self._part(part) for part in re.split(r"\n{2,}", shown)]
        minutes = f"<p class='minutes'>{slide.minutes} min</p>"
        return f"<h2>{self._line(slide.title)}</h2>{''.join(parts)}{minutes}"

    def _part(self, text: str) -> str:
        match = LABEL.fullmatch(text)
        if match is None:
            return self.markdown.render(text)
        role, label = match.groups()
        known = self.figures if role == "numref" else self.equations
        if label not in known:
            raise ValueError(f"label: got {label!r}, wanted one of {', '.join(sorted(known))}")
        return (
            self._figure(known[label])
            if role == "numref"
            else _formula(known[label], {"display_mode": True})
        )

    def _figure(self, figure: Figure) -> str:
        if figure.chapter not in self.notebooks:
            self.notebooks[figure.chapter] = chapters.outputs(figure.chapter, self.folder).notebook
        png = picture(figure, self.notebooks[figure.chapter])
        said = self._line(SENTENCE.search(ROLE.sub("", figure.caption))[0])
        return (
            f"<figure><img alt='{html.escape(figure.alt, quote=True)}' "
            f"src='data:image/png;base64,{png}'><figcaption>{said}</figcaption></figure>"
        )

    def _line(self, text: str) -> str:
        return self.markdown.renderInline(text)


def _formula(content: str, options: dict) -> str:
    """A formula as MathJax finds it."""
    text = html.escape(content.strip())
    return rf"<p>\[{text}\]</p>" if options.get("display_mode") else rf"\({text}\)"


def write(path: Path, folder: Path = chapters.CACHE) -> None:
    """Write the slides; nothing half-written is left."""
    text = Writer(folder).document(LECTURES.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def after_the_pages(app, exception):
    """Write the slides beside the book's pages."""
    if exception is None and app.builder.name == "html" and app.config.nb_execution_mode == "cache":
        write(Path(app.outdir, SLIDES.name), Path(app.env.mystnb_config.execution_cache_path))


def setup(app):
    """Register with Sphinx."""
    app.connect("build-finished", after_the_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the slides of two lectures.")
    parser.add_argument("file", nargs="?", type=Path, default=SLIDES, help="where to, %(default)s")
    target = parser.parse_args().file
    write(target)
    print(f"The slides are at {target.resolve().as_uri()}")
