"""What the book's own Sphinx extensions make: notebooks to download, links into the API pages."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import api_links
import notebooks
import pytest
from docutils import nodes
from sphinx.errors import SphinxError

import fpmc
from tests import check_html

BOOK = Path(__file__).parents[1] / "book"
ADDRESS = "https://github.com/owner/name"


def documented():
    """The names that the API pages hand to autodoc."""
    text = "".join(page.read_text() for page in (BOOK / "api").glob("*.md"))
    return set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(fpmc.__all__))
def test_every_public_name_has_its_place_in_the_api_pages(name):
    assert f"fpmc.{name}" in documented()


def test_the_api_pages_name_modules_that_list_what_is_public():
    for name in documented() - {"fpmc.FPMC", "fpmc.Posterior", "fpmc.Source"}:
        assert importlib.import_module(name).__all__, name


class TestNotebooks:
    def test_a_downloaded_chapter_has_all_its_code_and_no_outputs(self):
        made = notebooks.notebook(BOOK / "optimal.md", "")
        text = (BOOK / "optimal.md").read_text()
        code = [cell for cell in made.cells if cell.cell_type == "code"]
        assert len(code) == text.count("```{code-cell}")
        assert not any(cell.outputs for cell in code)
        assert "parameters" in code[0].metadata["tags"]

    def test_where_the_repository_is_known_the_first_cell_installs_on_colab_alone(self):
        first = notebooks.notebook(BOOK / "optimal.md", ADDRESS).cells[0].source
        assert f"fpmc @ git+{ADDRESS}" in first
        assert '"google.colab" in sys.modules' in first

    @pytest.mark.parametrize("ending", ["", "/", ".git"])
    def test_the_address_comes_from_the_environment(self, monkeypatch, ending):
        monkeypatch.setenv(notebooks.REPOSITORY, ADDRESS + ending)
        assert notebooks.repository() == ADDRESS

    @pytest.mark.parametrize("url", ["owner/name", "https://example.org/a/b", f"{ADDRESS}/x"])
    def test_another_address_is_an_error(self, monkeypatch, url):
        monkeypatch.setenv(notebooks.REPOSITORY, url)
        with pytest.raises(SphinxError, match="FPMC_REPOSITORY: got"):
            notebooks.repository()

    @pytest.mark.parametrize("known", [True, False])
    def test_buttons_need_a_repository(self, monkeypatch, known):
        monkeypatch.setenv(notebooks.REPOSITORY, ADDRESS if known else "")
        monkeypatch.setenv(notebooks.BRANCH, "notebooks")
        context = {"header_buttons": [], "ipynb_source": "book/optimal.ipynb"}
        notebooks.add_buttons(None, "book/optimal", "", context, None)
        urls = [b["url"] for group in context["header_buttons"] for b in group["buttons"]]
        assert len(urls) == 2 * known
        if known:
            assert urls[0].endswith("/owner/name/HEAD?urlpath=lab/tree/book/optimal.md")
            assert urls[1].endswith("/owner/name/blob/notebooks/optimal.ipynb")


class TestLinks:
    def test_shapes_and_letters_in_docstrings_are_no_markup(self):
        lines = ["From (*shape, *) to (k, *rest).", ":param source:", "    S.", "of (b, c, h, w)"]
        api_links.as_markup(None, "", "", None, None, lines)
        assert lines == [
            "From ``(*shape, *)`` to ``(k, *rest)``.",
            ":param source:",
            r"    \S.",
            "of (b, c, h, w)",
        ]

    def test_a_section_without_a_title_takes_no_other_title_away(self):
        analyser = SimpleNamespace(title_stack=["One"])
        api_links.Analyser.depart_section(analyser, nodes.section("", nodes.paragraph("", "a")))
        assert analyser.title_stack == ["One"]

    @pytest.mark.parametrize("text", ["fpmc.data.load", "fpmc.data.load('digits')"])
    def test_a_name_is_found_with_and_without_arguments(self, text):
        assert api_links.NAME.fullmatch(text)[1] == "fpmc.data.load"


def test_the_sliders_move_over_what_the_page_computes():
    page, script = (BOOK / "explore.md").read_text(), (BOOK / "_static/explore.js").read_text()
    written = set(re.findall(r'^    "(\w+)": ', page.split("told = {")[1].split("}\n")[0], re.M))
    assert set(re.findall(r"\bdata\.(\w+)", script)) == written
    for name in re.findall(r'picture\("(\w+)"', script):
        assert f'"{name}": ' in page, name
    (place,) = re.findall(
        r'querySelector\("\.(\w+)"\)', script
    )  # the title has the page's name as id
    assert f'<div class="{place}">' in page


CAPTIONED = '<div class="cell_output"><figure><img src="a.png" alt="A curve."/>{}</figure></div>'


class TestReadable:
    def test_a_figure_with_caption_and_text_is_well(self):
        text = CAPTIONED.format("<figcaption>It rises.</figcaption>")
        assert check_html.unreadable(text) == []

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (CAPTIONED.format(""), "a figure without a caption, a.png"),
            ('<div class="cell_output"><img src="a.png" alt="x"/></div>', "without a caption"),
            (CAPTIONED.replace("A curve.", "").format(""), "without alternative text, a.png"),
            ('<div class="cell_output"><pre>' + "a\n" * 13 + "</pre></div>", "13 printed lines"),
            ('<div class="cell_output"><p>| a | b | |--|--|</p></div>', "a table that is not"),
        ],
    )
    def test_what_a_reader_stumbles_over_is_named(self, text, says):
        assert any(says in found for found in check_html.unreadable(text))

    def test_text_and_pictures_outside_of_outputs_are_left_alone(self):
        assert check_html.unreadable("<img src='a.png'/><pre>" + "a\n" * 40 + "</pre>") == []
