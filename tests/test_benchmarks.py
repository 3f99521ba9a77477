"""The benchmarks run, here on very little, and leave tables; what they show is not tested."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch, as_users_do):
    """Run a script as the command line does, in this process and with one thread."""

    def script(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    monkeypatch.syspath_prepend(SCRIPTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield script
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("paths.py", "--data photos --n 30 --dense-n 20 --b 1 --sigma 0.5 --repeats 1", 10),
        ("scaling.py", "--data digits --n 8 --dense-n 8 --els-n 8", 95),
        ("finetuning.py", "--data digits --n 30 --b 4 --sigma 0.5", 1),
        (
            "pareto.py",
            "--data digits --n 90 --few 50 --b 1 --calls 2 --sigma 0.14 --maps digits/ddpmpp",
            44,
        ),
    ],
)
def test_a_table_with_provenance_is_left(run, script, options, rows, tmp_path):
    run(script, *options.split(), "--out", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == rows
    assert all(row["code"] and row["device"] and row["torch"] for row in table)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("scaling.py", "--data", "nope"), "error: name: got 'nope'"),
        (("paths.py", "--n", "0", "--dense-n", "0"), "error: n_train: got 0"),
        (("paths.py", "--data", "photos", "--device", "nope"), "error: --device: got 'nope'"),
        (("paths.py", "--against", "nope"), "error: --against: got nope, wanted a folder"),
    ],
)
def test_bad_arguments_are_named(run, words, says):
    with pytest.raises(SystemExit) as left:
        run(*words)
    assert says in left.value.code


def test_a_build_against_itself_gives_the_same_bits(run, tmp_path):
    """Each child ends with its parent, and starts none itself."""
    words = "--data photos --n 30 --b 1 --sigma 0.5 --repeats 1"
    options = ("--method", "LS, p = 7", "--against", SCRIPTS.parent)
    run("paths.py", *words.split(), *options, "--out", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["answer: bits"] == row["back: bits"] == "same"
    assert float(row["answer: ratio"]) > 0


def test_els_against_itself_says_what_is_claimed_of_it(run, tmp_path, capsys):
    """A row for each claim, and the verdict: a build is as fast as itself."""
    words = ("--claimed", "--n", 20, "--against", SCRIPTS.parent)
    run("els.py", *words, "--out", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["p"] for row in table] == ["7", "15"]
    assert all(row["answer: bits"] == "same" and float(row["times as fast"]) > 0 for row in table)
    assert "at p = 7 and p = 15: does not hold, by" in capsys.readouterr().out


def test_no_script_hides_a_module_that_its_imports_need():
    """Python looks in the script's folder first; torch imports a module named cuda, for one."""
    command = [sys.executable, str(SCRIPTS / "paths.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
