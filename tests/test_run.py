"""Running a chapter with other parameters."""

import errno
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from fpmc.limits import ENDINGS
from fpmc.run import main, parameters_of, parse, run

CHAPTER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A chapter

```{code-cell} ipython3
:tags: [parameters]

data = "digits"
seed = 0
```

```{code-cell} ipython3
print(data, seed + 1)
```

```{code-cell} ipython3
assert seed != 13, "unlucky"
```

```{code-cell} ipython3
print("the end")
```
"""


@pytest.fixture
def chapter(tmp_path):
    path = tmp_path / "chapter.md"
    path.write_text(CHAPTER)
    return path


def printed(path):
    """Everything that a notebook's cells printed."""
    notebook = nbformat.read(path, as_version=4)
    return "".join(o["text"] for c in notebook.cells for o in c.get("outputs", []) if "text" in o)


def test_parameters_are_set(chapter, tmp_path, capsys):
    out = tmp_path / "new" / "out.ipynb"
    assert main([str(chapter), "-p", "data", "photos", "-p", "seed", "41", "-o", str(out)]) == 0
    assert "photos 42" in printed(out)
    assert "the end" in printed(out)
    assert str(out) in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["out.ipynb"]


def test_a_failing_cell_leaves_what_ran_and_says_where(chapter, tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    assert main([str(chapter), "-p", "seed", "13", "-o", str(out)]) == 1
    assert "digits 14" in printed(out)
    assert "the end" not in printed(out)
    message = capsys.readouterr().err
    assert "AssertionError: unlucky" in message
    assert str(out) in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chapter.md", "out.ipynb"]


def test_an_unknown_parameter_lists_the_chapters_own(chapter, tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    assert main([str(chapter), "-p", "sed", "1", "-o", str(out)]) == 2
    message = capsys.readouterr().err
    assert "has no sed" in message
    assert 'data = "digits"' in message
    assert "seed = 0" in message
    assert not out.exists()


def test_a_missing_chapter_and_a_wrong_ending_are_named(chapter, tmp_path, capsys):
    assert main([str(tmp_path / "nothing.md")]) == 2
    assert "nothing.md: no such chapter" in capsys.readouterr().err
    assert main([str(chapter), "-o", str(tmp_path / "out.html")]) == 2
    assert "wanted a file name ending in .ipynb" in capsys.readouterr().err
    (tmp_path / "folder.ipynb").mkdir()
    assert main([str(chapter), "-o", str(tmp_path / "folder.ipynb")]) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "# Title\n\n```bash\ntouch ran\n```\n\n---\nkernelspec: none\n---\n"),
        ("cells.md", "---\ntitle: A page\n---\n\n```{code-cell}\nopen('ran', 'w')\n```\n"),
        ("script.py", "open('ran', 'w')\n"),
        ("table.csv", "1, 2\n"),
        ("broken.ipynb", "{}"),
    ],
)
def test_what_is_no_chapter_is_not_run(name, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert main([name, "-o", "out.ipynb"]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: not a chapter (")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_notebook_needs_no_header(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")])
    nbformat.write(notebook, tmp_path / "plain.ipynb")
    assert main([str(tmp_path / "plain.ipynb"), "-o", str(tmp_path / "out.ipynb")]) == 0
    assert "42" in printed(tmp_path / "out.ipynb")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("null", None),
        ("None", None),
        ("true", True),
        ("no", "no"),
        ("[1, 2.5]", [1, 2.5]),
        ("[", "["),
        ("2024-01-01", "2024-01-01"),
        ("photos32", "photos32"),
    ],
)
def test_values_are_read_as_typed(text, value):
    assert parse(text) == value


def test_parameters_are_those_of_the_tagged_cell(chapter):
    assert parameters_of(chapter) == {"data": '"digits"', "seed": "0"}


@pytest.mark.parametrize(
    "stop", ["raise SystemExit(75)", "from fpmc.limits import OutOfTimeError; raise OutOfTimeError"]
)
def test_a_chapter_whose_minutes_are_over_ends_with_75_and_leaves_the_notebook(
    stop, chapter, tmp_path, capsys
):
    chapter.write_text(CHAPTER.replace('assert seed != 13, "unlucky"', stop))
    output = tmp_path / "out.ipynb"
    assert main([str(chapter), "-o", str(output)]) == 75
    assert "its minutes are over" in capsys.readouterr().err
    assert printed(output).startswith("digits 1\n")
    assert "the end" not in printed(output)


def test_another_exit_status_is_a_failed_cell(chapter, tmp_path):
    chapter.write_text(CHAPTER.replace('assert seed != 13, "unlucky"', "raise SystemExit(3)"))
    assert main([str(chapter), "-o", str(tmp_path / "out.ipynb")]) == 1


def test_parameters_are_read_as_python_reads_them(chapter, tmp_path):
    text = """
patch, sigma = 5, 0.3
size = 3  # where p = 3
which: str | None = None  # a | b
shape = (
    1,
    2,
)
colour = "#ff0000"
first, *others = [1, 2]
a = b = {"x": 1}
"""
    chapter.write_text(CHAPTER.replace('data = "digits"\nseed = 0\n', text))
    assert parameters_of(chapter) == {
        "patch": "5",
        "sigma": "0.3",
        "size": "3",
        "which": "None",
        "shape": "(\n    1,\n    2,\n)",
        "colour": '"#ff0000"',
        "first": "1",
        "a": '{"x": 1}',
        "b": '{"x": 1}',
    }
    code = "print(patch, sigma, size, which, shape, colour)"
    chapter.write_text(chapter.read_text().replace("print(data, seed + 1)", code))
    chapter.write_text(chapter.read_text().replace('assert seed != 13, "unlucky"', "pass"))
    out = tmp_path / "out.ipynb"
    words = ["-p", "sigma", "1.0", "-p", "shape", "[3, 4]", "-r", "colour", "2024"]
    assert main([str(chapter), *words, "-o", str(out)]) == 0
    assert "5 1.0 3 None [3, 4] 2024" in printed(out)
    chapter.write_text(CHAPTER.replace("seed = 0", "seed = ="))
    with pytest.raises(ValueError, match="its parameters are no Python"):
        parameters_of(chapter)


def test_one_value_where_several_are_wanted_is_refused_with_the_default(chapter, tmp_path, capsys):
    text = chapter.read_text("utf-8")
    several = 'names = ["a", "b"]\nlevels = {\n    0.1: 3,\n}\nseed = 0'
    chapter.write_text(text.replace("seed = 0", several), "utf-8")
    out = tmp_path / "out.ipynb"
    for name, value, shown in (("names", "c", '["c"]'), ("levels", "3", "[3]")):
        assert main([str(chapter), "-p", name, value, "-o", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{name}: got ")
        assert f"-p {name} '{shown}'" in said
    run(chapter, out, {"names": ["c"], "levels": [[0.1, 3]]})
    assert printed(out) == "digits 1\nthe end\n"


def test_raw_text_is_never_read_as_a_number(chapter, tmp_path):
    chapter.write_text(CHAPTER.replace("print(data, seed + 1)", "print(repr(data))"))
    for text in ("2024", "null", "[1, 2]", "true"):
        out = tmp_path / "out.ipynb"
        assert main([str(chapter), "-r", "data", text, "-o", str(out)]) == 0
        assert repr(text) in printed(out)


def test_a_kernel_that_dies_is_one_line_that_names_the_cell(chapter, tmp_path, capsys):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    chapter.write_text(CHAPTER.replace('assert seed != 13, "unlucky"', code))
    out = tmp_path / "out.ipynb"
    assert main([str(chapter), "-o", str(out)]) == 71
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"{chapter}: the kernel died in cell 3; what ran until there is in {out}"
    assert "digits 1" in printed(out)
    assert "the end" not in printed(out)


def test_a_notebook_that_cannot_be_written_is_one_line(chapter, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fpmc.run.jupytext.write", full)
    out = tmp_path / "out.ipynb"
    assert main([str(chapter), "-o", str(out)]) == 1
    assert capsys.readouterr().err == f"{out}: cannot be written (No space left on device)\n"
    assert [p.name for p in tmp_path.iterdir()] == ["chapter.md"]
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out.ipynb"
    assert main([str(chapter), "-o", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"{out}: cannot be written (")


@pytest.mark.parametrize("number", [n for n in ENDINGS if signal.getsignal(n) != signal.SIG_IGN])
def test_told_to_end_a_run_leaves_what_ran_and_nothing_else(chapter, tmp_path, number):
    running, out = tmp_path / "running", tmp_path / "out.ipynb"
    code = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(running)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    chapter.write_text(CHAPTER.replace('assert seed != 13, "unlucky"', code))
    command = [sys.executable, "-m", "fpmc.run", str(chapter), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (running.exists() and running.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"{chapter}: told to end; what ran until there is in {out}\n" in told, told
    assert "digits 1" in printed(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chapter.md", "out.ipynb", "running"]
    for _ in range(50):
        if not _alive(int(running.read_text())):
            break
        time.sleep(0.2)
    assert not _alive(int(running.read_text()))


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_values_arrive_as_they_are_or_are_refused(chapter, tmp_path):
    chapter.write_text(CHAPTER.replace("print(data, seed + 1)", "print(repr(seed))"))
    output = tmp_path / "out.ipynb"
    run(chapter, output, {"seed": (2.0, [1, (3,)])})
    assert printed(output).startswith("[2.0, [1, [3]]]")
    with pytest.raises(ValueError, match=r"seed: got a mapping from 1\.5, wanted keys that are"):
        run(chapter, output, {"seed": {1.5: 3}})
    with pytest.raises(TypeError, match=r"seed: got .*Path, wanted text, a number, "):
        run(chapter, output, {"seed": [output]})
