"""The benchmarks run, here on very little, and leave tables; what they show is not tested."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def run(*words):
    command = [sys.executable, str(SCRIPTS / words[0]), *map(str, words[1:])]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("paths.py", "--data photos --n 30 --dense-n 20 --b 1 --sigma 0.5 --repeats 1", 10),
        ("scaling.py", "--data digits --n 8 --dense-n 8", 76),
        ("finetuning.py", "--data digits --n 30 --b 4 --sigma 0.5", 1),
    ],
)
def test_a_table_with_provenance_is_left(script, options, rows, tmp_path):
    done = run(script, *options.split(), "--out", tmp_path / "table.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == rows
    assert all(row["code"] and row["device"] and row["torch"] for row in table)


def test_bad_arguments_are_named():
    for words, says in (
        (("scaling.py", "--data", "nope"), "error: name: got 'nope'"),
        (("paths.py", "--n", "0", "--dense-n", "0"), "error: n_train: got 0"),
        (("paths.py", "--data", "photos", "--device", "nope"), "error: --device: got 'nope'"),
    ):
        done = run(*words)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback" not in done.stderr
