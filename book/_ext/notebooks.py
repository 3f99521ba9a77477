"""Every chapter as a notebook to download, and buttons that open it on Binder and on Colab.

The notebooks are made from the chapters' text when the pages are written, without outputs. Where
the environment variable ``FPMC_REPOSITORY`` names the repository on GitHub, pages link to it, and
to Binder and Colab. Colab opens notebooks from a branch alone: ``FPMC_NOTEBOOKS`` names the branch
to which the folder ``_sources/book`` of the built pages is pushed.
"""

import os
from pathlib import Path

import jupytext
import nbformat
from sphinx.errors import SphinxError

REPOSITORY, BRANCH = "FPMC_REPOSITORY", "FPMC_NOTEBOOKS"
GITHUB = "https://github.com/"
INSTALL = """# Colab has no fpmc: install it there. Elsewhere this does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "fpmc @ git+{repository}"
"""


def repository() -> str:
    """The address of the repository, without a slash at its end; empty if it is not told."""
    url = os.environ.get(REPOSITORY, "").removesuffix("/").removesuffix(".git")
    if url and (not url.startswith(GITHUB) or url.removeprefix(GITHUB).count("/") != 1):
        raise SphinxError(f"{REPOSITORY}: got {url!r}, wanted an address {GITHUB}OWNER/NAME")
    return url


def notebook(chapter: Path, address: str) -> nbformat.NotebookNode:
    """A chapter without outputs; with a cell that installs the package if an address is given."""
    made = jupytext.read(chapter)
    if address:
        made.cells.insert(0, nbformat.v4.new_code_cell(INSTALL.format(repository=address)))
    return made


def write_notebook(app, pagename, templatename, context, doctree):
    """Write the page's notebook beside its source, and name it for the theme's button."""
    chapter = Path(app.srcdir, f"{pagename}.md")
    if doctree is None or not chapter.exists() or "kernelspec:" not in chapter.read_text():
        return
    name = f"{pagename}.ipynb"
    target = Path(app.outdir, "_sources", name)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(chapter, repository()), target)
    context["ipynb_source"] = name


def add_buttons(app, pagename, templatename, context, doctree):
    """Add links to Binder and Colab, if the repository is known."""
    address = repository()
    if not address or "ipynb_source" not in context:
        return
    place = address.removeprefix(GITHUB)
    buttons = [
        ("Binder", f"https://mybinder.org/v2/gh/{place}/HEAD?urlpath=lab/tree/{pagename}.md")
    ]
    if branch := os.environ.get(BRANCH):
        file = f"{Path(pagename).name}.ipynb"
        url = f"https://colab.research.google.com/github/{place}/blob/{branch}/{file}"
        buttons.append(("Colab", url))
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": "Run this page",
            "icon": "fas fa-rocket",
            "label": "launch-buttons",
            "buttons": [
                {"type": "link", "text": text, "tooltip": f"Open on {text}", "url": url}
                for text, url in buttons
            ],
        }
    )


def name_repository(app, config):
    """Let the theme link to the repository and to each page's source."""
    if address := repository():
        config.html_theme_options |= {
            "repository_url": address,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_source_button": True,
        }


def setup(app):
    """Register with Sphinx: before the theme makes its buttons (priority 501), and after."""
    app.connect("config-inited", name_repository)
    app.connect("html-page-context", write_notebook, priority=400)
    app.connect("html-page-context", add_buttons, priority=503)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
