"""What makes the book easy to take up: a map of chapters, slides, a PDF, an animation."""

import base64
import io
import re
import subprocess
import sys
from types import SimpleNamespace

import browser
import chapter_map
import chapters
import citation
import motion
import nbformat
import paper
import pytest
import slides
import yaml
from PIL import Image

from tests import check_widths

ROOT = chapters.ROOT
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
ORDER = [entry["file"].removeprefix("book/") for part in PARTS for entry in part["chapters"]]
NUMBERED = {
    part["caption"]: [entry["file"].removeprefix("book/") for entry in part["chapters"]]
    for part in PARTS
    if part.get("numbered")
}
WITH_EXERCISES = [name for names in NUMBERED.values() for name in names]
EXERCISE = re.compile(r"```\{exercise\} (.+)\n:label: ([\w-]+)\n")
HEADER = chapters.BOOK.joinpath("optimal.md").read_text().split("\n# ")[0]


def exercises(names):
    """Of some chapters: the exercises' titles, by label, and the labels that have a solution."""
    text = "".join((chapters.BOOK / f"{name}.md").read_text() for name in names)
    found = {label: title for title, label in EXERCISE.findall(text)}
    return found, set(re.findall(r"\{solution(?:-start)?\} ([\w-]+)", text))


@pytest.fixture
def chapter(tmp_path):
    """Write a chapter with this text below its title."""

    def write(text):
        path = tmp_path / "chapter.md"
        path.write_text(f"{HEADER}\n# A chapter\n\n{text}\n")
        return path

    return write


class TestMap:
    """Reading times, run times, and what to read first."""

    def test_the_time_to_read_grows_with_words_equations_and_code(self, chapter):
        words = chapter_map.minutes(chapter("word " * 400))
        assert words == pytest.approx(2, abs=0.05)
        assert chapter_map.minutes(chapter("word " * 400 + "\n\n$$ x = 1 $$")) == words + 0.5
        code = "\n\n```{code-cell} ipython3\n" + "x = 1\n" * 20 + "```"
        assert chapter_map.minutes(chapter("word " * 400 + code)) == words + 1

    @pytest.mark.parametrize(
        "hidden",
        [
            "```{solution} ex-a\n:class: dropdown\n\n" + "word " * 200 + "\n```",
            "```{code-cell} ipython3\n:tags: [hide-input]\n\n" + "x = 1\n" * 20 + "```",
        ],
    )
    def test_solutions_and_folded_code_take_no_time(self, chapter, hidden):
        assert chapter_map.minutes(chapter(hidden)) == chapter_map.minutes(chapter(""))

    def test_what_comes_before_is_what_the_chapter_says(self, chapter):
        text = "Read {doc}`fpmc`, {doc}`pspc_flex`\nand {doc}`lukoianov` first."
        assert chapter_map.before(chapter(text)) == ["fpmc", "pspc_flex", "lukoianov"]
        assert chapter_map.before(chapter("Read {doc}`cost` for the operations.")) == []

    def test_chapters_to_read_first_come_first(self):
        for path in chapters.chapters():
            for other in chapter_map.before(path):
                assert ORDER.index(other) < ORDER.index(path.stem), path.stem

    def test_the_map_has_every_numbered_chapter(self):
        text = (chapters.BOOK / "intro.md").read_text()
        rows = re.findall(r"^\| \{doc\}`(\w+)` \|", text.split("{chapter-map}")[1], re.M)
        assert {name for names in NUMBERED.values() for name in names} <= set(rows)
        assert set(rows) <= set(ORDER)

    def test_a_chapter_that_was_not_run_has_no_run_time(self, chapter, tmp_path):
        assert chapter_map.seconds(chapter(""), tmp_path / "cache") is None


class TestExercises:
    """Each chapter has some, and each part has some that students can be asked to hand in."""

    @pytest.mark.parametrize("name", WITH_EXERCISES)
    def test_a_chapter_has_three(self, name):
        assert len(exercises([name])[0]) >= 3

    @pytest.mark.parametrize("part", NUMBERED)
    def test_a_part_has_two_without_a_solution_and_a_project(self, part):
        found, solved = exercises(NUMBERED[part])
        projects = {label for label, title in found.items() if title.startswith("Project: ")}
        assert projects
        assert len(set(found) - solved - projects) >= 2
        assert solved <= set(found)

    @pytest.mark.parametrize("name", WITH_EXERCISES)
    def test_each_says_how_hard_it_is(self, name):
        for title in exercises([name])[0].values():
            assert re.search(r"^Project: |\((easy|medium|hard)\)$", title), title


class TestSlides:
    """Two lectures, from figures and equations that the book has."""

    lectures = slides.lectures(slides.LECTURES.read_text())

    def test_two_lectures_take_90_minutes_each(self):
        totals = [sum(slide.minutes for slide in part) for part in self.lectures.values()]
        assert totals == [90, 90]

    def test_every_figure_and_equation_is_in_the_book(self):
        known = {"numref": slides.figures(), "eq": slides.equations()}
        for part in self.lectures.values():
            for role, label in slides.labels(part):
                assert label in known[role], f"{role}: {label}"

    def test_a_slide_holds_one_figure_at_most(self):
        for slide in (slide for part in self.lectures.values() for slide in part):
            roles = [role for role, _ in slides.labels([slide])]
            assert roles.count("numref") <= 1, slide.title

    def test_what_is_no_label_would_not_be_shown_as_text(self):
        text = slides.LECTURES.read_text()
        named = sum(1 for part in self.lectures.values() for _ in slides.labels(part))
        assert named == len(re.findall(r"\{(?:numref|eq)\}", text))

    def test_a_slide_without_minutes_is_named(self):
        with pytest.raises(ValueError, match="slide: got the heading '## One', wanted"):
            slides.lectures("# A lecture\n\n## One\n")

    def test_an_unknown_label_is_named(self):
        with pytest.raises(ValueError, match="label: got 'fig-none', wanted one of fig-"):
            slides.Writer().document("# A lecture\n\n## One · 5 min\n{numref}`fig-none`\n")

    def test_the_picture_is_that_of_the_figures_cell(self):
        figure = slides.figures()["fig-optimal-error"]
        output = nbformat.v4.new_output("display_data", {"image/png": "ab\ncd\n"})
        cells = [nbformat.v4.new_code_cell(text) for text in ("1", figure.source)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        with pytest.raises(ValueError, match=r"optimal\.md: got no picture"):
            slides.picture(figure, notebook)
        cells[1].outputs = [output]
        assert slides.picture(figure, notebook) == "abcd"

    def test_the_slides_are_one_file_with_formulas_and_the_captions_first_sentence(
        self, monkeypatch
    ):
        figure = slides.figures()["fig-optimal-error"]
        monkeypatch.setattr(slides, "picture", lambda figure, notebook: "abcd")
        monkeypatch.setattr(
            chapters, "outputs", lambda chapter, folder: chapters.Executed({}, 0, 0, None)
        )
        text = (
            "# A lecture\n\n## One · 5 min\n{numref}`fig-optimal-error`\n{eq}`eq-optimal`\n- $x$\n"
        )
        document = slides.Writer().document(text)
        first = figure.caption.split(". ")[0]
        assert f"<figcaption>{first}.</figcaption>" in document
        assert "src='data:image/png;base64,abcd'" in document
        assert r"\(x\)" in document
        assert r"\[D^*" in document
        loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=['\"](?!data:)", document)
        assert loaded == []


class TestPaper:
    """The book as one PDF."""

    def test_without_a_browser_there_is_one_clear_error(self, monkeypatch, capsys):
        monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
        assert browser.find() is None
        assert paper.main() == 1
        assert "no Chromium: got none of chromium, " in capsys.readouterr().err

    def test_make_says_so_before_it_builds(self):
        script = chapters.BOOK / "_ext" / "browser.py"
        done = subprocess.run(
            [sys.executable, script], env={"CHROMIUM": "/none"}, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith("no Chromium: got none of")

    def test_links_within_the_one_page_stay_within_it(self, monkeypatch, tmp_path):
        monkeypatch.setattr(paper, "FOLDER", tmp_path)
        monkeypatch.setattr(paper, "PAGE", tmp_path / "index.html")
        (tmp_path / "book").mkdir()
        (tmp_path / paper.BUILT).write_text('<a href="book/intro.html#eq">1</a><a href="#a">2</a>')
        paper.bring_to_the_top()
        assert paper.PAGE.read_text() == '<a href="#eq">1</a><a href="#a">2</a>'

    def test_folded_tables_are_printed_and_folded_code_is_not(self, monkeypatch, tmp_path):
        monkeypatch.setattr(paper, "FOLDER", tmp_path)
        monkeypatch.setattr(paper, "PAGE", tmp_path / "index.html")
        cell = '<div class="cell tag_hide-{} tag_x docutils container">\n<details class="hide">'
        (tmp_path / "book").mkdir()
        (tmp_path / paper.BUILT).write_text(cell.format("cell") + cell.format("input"))
        paper.bring_to_the_top()
        opened = cell.format("cell").replace("<details", "<details open")
        assert paper.PAGE.read_text() == opened + cell.format("input")

    def test_the_page_is_the_landing_page(self):
        root = yaml.safe_load((ROOT / "_toc.yml").read_text())["root"]
        assert f"{root}.html" == paper.BUILT

    def test_what_only_the_web_has_handlers_for_is_printed_too(self):
        handlers = {"html": {"a": 1, "b": 2}, "singlehtml": {"b": 3}}
        app = SimpleNamespace(registry=SimpleNamespace(translation_handlers=handlers))
        paper.share_handlers(app)
        assert handlers["singlehtml"] == {"a": 1, "b": 3}


class TestMotion:
    """An animation has a still, and a button that stops it."""

    def test_the_still_is_the_last_frame(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("black", "red", "white")]
        path = tmp_path / "moves.png"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
        still = Image.open(io.BytesIO(motion.last_frame(path)))
        assert still.getpixel((0, 0)) == (255, 255, 255)
        assert not getattr(still, "is_animated", False)

    def test_a_still_picture_is_left_alone(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "still.png")
        assert motion.last_frame(tmp_path / "still.png") is None

    def test_the_button_knows_the_still(self):
        script = (chapters.BOOK / "_static" / "motion.js").read_text()
        assert 'class="motion"' in motion.BEFORE
        assert '".motion"' in script
        assert "prefers-reduced-motion: reduce" in motion.BEFORE
        assert "<button" in motion.AFTER.removeprefix("</picture>")

    def test_the_books_animation_is_small(self):
        notebook = chapters.outputs(chapters.BOOK / "explore.md").notebook
        pngs = [
            base64.b64decode(output.data["image/png"])
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        moving = [png for png in pngs if getattr(Image.open(io.BytesIO(png)), "is_animated", False)]
        assert len(moving) == 1
        assert len(moving[0]) < 1_500_000


class TestWidths:
    """What is wider than its page is found, where there is a browser to measure it."""

    def test_only_pages_that_show_an_article_are_measured(self, tmp_path):
        (tmp_path / "a.html").write_text("<article></article>")
        (tmp_path / "b.html").write_text("<p></p>")
        assert check_widths.pages(tmp_path) == ["a.html"]

    @pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)
    def test_a_wide_table_is_found_and_a_box_to_scroll_in_serves_on_a_phone_alone(self, tmp_path):
        page = "<!doctype html><body style='margin: 0'><article>{}</article>"
        wide = "<table style='width: {}px'><tr><td>a</td></tr></table>"
        box = "<div style='overflow-x: auto'>{}</div>"
        tables = {
            "fits": wide.format(300),
            "boxed": box.format(wide.format(800)),
            "open": wide.format(800),
            "huge": box.format(wide.format(2000)),
        }
        for name, table in tables.items():
            (tmp_path / f"{name}.html").write_text(page.format(table))
        found = check_widths.problems(tmp_path, browser.find())
        assert {(line.split(": at ")[0], line.split()[2]) for line in found} == {
            ("open.html", "390"),
            ("huge.html", "1400"),
        }


def test_the_citation_is_that_of_the_file():
    cff = (ROOT / "CITATION.cff").read_text()
    told = yaml.safe_load(cff)
    entry = citation.bibtex(cff, "https://github.com/owner/name")
    assert entry.startswith("@software{fpmc,")
    assert f"version = {{{told['version']}}}" in entry
    assert told["title"] in entry
    assert "url = {https://github.com/owner/name}" in entry
    assert "url" not in citation.bibtex(cff)
