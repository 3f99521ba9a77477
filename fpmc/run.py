"""Run a chapter of the book with other parameters.

    python -m fpmc.run book/optimal.md -p data photos -p seed 1 -o out.ipynb

A chapter's parameters are the variables of its cell tagged ``parameters``; jupytext reads the
chapter, papermill sets them and runs it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpmc.limits import OUT_OF_TIME, OutOfTimeError

try:
    import jupytext
    import papermill
    from papermill.exceptions import PapermillExecutionError
except ImportError as error:
    raise ImportError(
        f"chapters run through jupytext and papermill ({error}); pip install 'fpmc[book]'"
    ) from error

__all__ = ["main", "parameters_of", "parse", "run"]


def run(chapter: str | os.PathLike, output: str | os.PathLike, parameters: dict) -> None:
    """Execute a chapter with these parameters and write the notebook, outputs included.

    The notebook is written beside its final name and renamed when the run ends, also when a cell
    fails: then it holds everything up to that cell, and the cell's error.

    Args:
        chapter: A MyST notebook, ``.md``.
        output: Where the executed notebook goes, ``.ipynb``.
        parameters: {name: value}; what is left out keeps the chapter's default.

    Raises:
        FileNotFoundError: If there is no such chapter.
        ValueError: If the file is no notebook, a name is not one of the chapter's parameters, the
            output is no ``.ipynb``, or a value is a mapping from something else than text.
        fpmc.limits.OutOfTimeError: If a cell ended because its minutes were over: by this error, or
            with the exit status :data:`fpmc.limits.OUT_OF_TIME`. The notebook is there.
        papermill.exceptions.PapermillExecutionError: If a cell fails.
    """
    chapter, output = Path(chapter), Path(output)
    if not chapter.is_file():
        raise FileNotFoundError(f"{chapter}: no such chapter")
    if output.suffix != ".ipynb" or output.is_dir():
        raise ValueError(f"output: got {output}, wanted a file name ending in .ipynb")
    known = parameters_of(chapter)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        own = "\n".join(f"  {name} = {default}" for name, default in known.items())
        raise ValueError(
            f"parameter: {chapter} has no {', '.join(unknown)}; "
            f"its parameters are\n{own or '  none'}"
        )
    parameters = {name: _plain(name, value) for name, value in parameters.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".fpmc-run-") as folder:
        source, executed = Path(folder, "chapter.ipynb"), Path(folder, output.name)
        jupytext.write(_read(chapter), source)
        try:
            papermill.execute_notebook(source, executed, parameters, kernel_name="python3")
        except PapermillExecutionError as error:
            if _is_out_of_time(error):
                told = f"{chapter}: cell {error.exec_count} stopped, its minutes are over"
                raise OutOfTimeError(told) from error
            raise
        finally:
            if executed.exists():
                os.replace(executed, output)


def _plain(name: str, value: Any) -> Any:
    """A value as papermill can write it: it writes a tuple, and a key that is a number, as text."""
    if isinstance(value, tuple | list):
        return [_plain(name, entry) for entry in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(
                    f"{name}: got a mapping from {key!r}, wanted keys that are text, or pairs: "
                    "notebooks' parameters have no others"
                )
        return {key: _plain(name, entry) for key, entry in value.items()}
    return value


def _is_out_of_time(error: PapermillExecutionError) -> bool:
    """Whether a cell ended as long work does whose minutes are over."""
    exited = error.ename == "SystemExit" and str(error.evalue) == str(OUT_OF_TIME)
    return exited or error.ename == OutOfTimeError.__name__


def parameters_of(chapter: str | os.PathLike) -> dict[str, str]:
    """A chapter's parameters and their defaults, as they stand in its source.

    Raises:
        ValueError: If the file is no notebook.
    """
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder, "chapter.ipynb")
        jupytext.write(_read(chapter), notebook)
        inspected = papermill.inspect_notebook(str(notebook))
    return {name: details["default"] for name, details in inspected.items()}


def _read(chapter: str | os.PathLike) -> dict:
    """A chapter as a notebook: an ``.ipynb``, or text whose header says that it is one."""
    try:
        notebook = jupytext.read(chapter)
    except Exception as error:  # its readers raise many kinds
        raise ValueError(f"{chapter}: not a chapter ({error})") from error
    if Path(chapter).suffix != ".ipynb" and "kernelspec" not in notebook.metadata:
        raise ValueError(f"{chapter}: not a chapter (no header with a kernelspec)")
    return notebook


def parse(value: str) -> Any:
    """A parameter's value as typed on the command line.

    Numbers, ``null`` (or ``None``), ``true``, ``false``, and JSON lists and objects are read as
    such; everything else is text.
    """
    for read in (int, float, json.loads):
        try:
            return read(value)
        except ValueError:
            continue
    return {"None": None, "True": True, "False": False}.get(value, value)


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns 0; 2 if the call is wrong, 1 if a cell fails, 75 if a cell's minutes are over.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fpmc.run", description="Run a chapter of the book with other parameters."
    )
    parser.add_argument("chapter", help="a chapter, for instance book/optimal.md")
    parser.add_argument(
        "-p",
        "--parameter",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter; may be given several times",
    )
    parser.add_argument("-o", "--output", help="the executed notebook; NAME.ipynb if left out")
    options = parser.parse_args(arguments)
    output = Path(options.output or Path(options.chapter).with_suffix(".ipynb").name)
    parameters = {name: parse(value) for name, value in options.parameters}
    try:
        run(options.chapter, output, parameters)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OutOfTimeError as error:
        print(f"{error}; what ran until there is in {output}", file=sys.stderr)
        return OUT_OF_TIME
    except PapermillExecutionError as error:
        print(
            f"{options.chapter}: cell {error.exec_count} failed, {error.ename}: {error.evalue}\n"
            f"what ran until there, and the traceback, is in {output}",
            file=sys.stderr,
        )
        return 1
    print(f"executed notebook: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
