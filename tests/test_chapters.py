"""Chapters are executed once for the pages and the tests, and again after a change."""

import chapters
import jupytext
import pytest
from jupyter_cache.readers import get_reader

from tests.notebooks.conftest import Replay

READER = {"type": "plugin", "name": "myst_nb_md"}

CELLS = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A chapter

```{code-cell} ipython3
pairs = zip("ab", [])
for _ in pairs:
    pass
```

```{code-cell} ipython3
for name in "ab":
    print(name)
    for _ in pairs:
        print(_)
```

```{code-cell} ipython3
LAST
```
"""


@pytest.fixture
def written(tmp_path):
    """Write a chapter that ends with these lines."""

    def write(last):
        path = tmp_path / "chapter.md"
        path.write_text(CELLS.replace("LAST", last))
        return path

    return write


def test_times_are_those_that_the_kernel_computed(written):
    asleep, busy = (
        chapters.execute(written(f"import time\nend = time.{clock}() + 2\nwhile {do}: pass"))
        for clock, do in (
            ("monotonic", "time.sleep(0.1) or time.monotonic() < end"),
            ("process_time", "time.process_time() < end"),
        )
    )
    assert asleep.seconds > 2
    assert busy.cpu_seconds > asleep.cpu_seconds + 1


def test_a_chapter_is_executed_once_and_again_for_other_code(written, tmp_path, monkeypatch):
    chapter, folder = written("print(6 * 7)"), tmp_path / "cache"
    assert chapters.cached(chapter, folder) is None
    first = chapters.outputs(chapter, folder)
    monkeypatch.setattr(chapters, "execute", None)  # not called
    again = chapters.outputs(chapter, folder)
    for executed in (first, again):
        assert executed.error is None
        assert executed.seconds > 0
        assert executed.cpu_seconds > 0
        assert [c.outputs[0].text for c in executed.notebook.cells[2:]] == ["a\nb\n", "42\n"]
    assert list(chapters.bring_up_to_date([chapter], folder)) == []
    monkeypatch.setattr(chapters, "code", lambda: "another hash")
    assert chapters.cached(chapter, folder) is None
    monkeypatch.undo()
    written("print(6 * 8)")
    assert chapters.cached(chapter, folder) is None


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("for pair in pairs:\n    print(pair)\nprint(1)", "there was nothing to loop over"),
        ("if True:\n    for pair in pairs:\n        print(pair)", "nothing to loop over"),
        ("[][0]\n```\n\n```{code-cell} ipython3\nprint('not run')", "IndexError"),
    ],
)
def test_a_chapter_that_fails_is_not_kept(written, tmp_path, last, says):
    chapter, folder = written(last), tmp_path / "cache"
    executed = chapters.outputs(chapter, folder)
    assert says in executed.error
    assert chapters.cached(chapter, folder) is None
    kernel = Replay(executed.notebook)
    for cell in executed.notebook.cells[1:]:
        kernel.execute_cell_input(cell.source)
    kinds = [message["msg_type"] for message in kernel.messages]
    assert kinds[:4] == ["status", "stream", "status", "error"]
    assert kinds.count("error") == (2 if "not run" in last else 1)


def test_a_cell_that_the_chapter_has_not_is_named(written):
    kernel = Replay(jupytext.read(written("1")))
    with pytest.raises(AssertionError, match=r"run make notebooks\n +print"):
        kernel.execute_cell_input("print(2)")


@pytest.mark.parametrize("chapter", chapters.chapters(), ids=lambda path: path.stem)
def test_the_pages_find_what_was_cached(chapter, tmp_path):
    cache, as_pages_read = chapters.get_cache(tmp_path), get_reader(READER)
    hashes = [
        cache.create_hashed_notebook(notebook)[1]
        for notebook in (jupytext.read(chapter), as_pages_read(str(chapter)))
    ]
    assert hashes[0] == hashes[1]


def test_the_command_line_names_an_unknown_chapter(capsys):
    with pytest.raises(SystemExit, match="2"):
        chapters.main(["nope"])
    assert "NAME: got nope, wanted some of agreement, " in capsys.readouterr().err
