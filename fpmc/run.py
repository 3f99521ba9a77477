"""Run a chapter of the book with other parameters.

    python -m fpmc.run book/optimal.md -p data photos -p seed 1 -o out.ipynb

A chapter's parameters are the variables of its cell tagged ``parameters``; jupytext reads the
chapter, papermill sets them and runs it.
"""

import argparse
import ast
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fpmc.limits import (
    DEAD_KERNEL,
    ENDINGS,
    OUT_OF_TIME,
    TERMINATED,
    OutOfTimeError,
    on_termination,
)

try:
    import jupytext
    import papermill
    from papermill.exceptions import PapermillExecutionError
except ImportError as error:
    raise ImportError(
        f"chapters run through jupytext and papermill ({error}); pip install 'fpmc[book]'"
    ) from error

__all__ = ["DeadKernelError", "main", "parameters_of", "parse", "run"]


class DeadKernelError(RuntimeError):
    """The process that runs a chapter's cells ended, or never began."""


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
        TypeError: If a value is none that a notebook's parameters can have.
        ValueError: If the file is no notebook, a name is not one of the chapter's parameters, the
            output is no ``.ipynb``, a value is a mapping from something else than text, or one
            value is given where the default holds several.
        fpmc.limits.OutOfTimeError: If a cell ended because its minutes were over: by this error, or
            with the exit status :data:`fpmc.limits.OUT_OF_TIME`. The notebook is there.
        papermill.exceptions.PapermillExecutionError: If a cell fails.
        DeadKernelError: If the kernel dies, for instance because memory is over.
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
    for name, value in parameters.items():
        _check_several(name, value, known[name])
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
        except RuntimeError as error:  # which nbclient raises if it does not start, too
            raise DeadKernelError(f"{chapter}: the kernel {_death(executed, error)}") from error
        finally:
            if executed.exists():
                os.replace(executed, output)


def _death(executed: Path, error: Exception) -> str:
    """How far a kernel came that is no longer there."""
    cells = json.loads(executed.read_text("utf-8"))["cells"] if executed.exists() else []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    begun = [i for i, cell in enumerate(code, 1) if cell["metadata"]["papermill"]["start_time"]]
    return f"died in cell {begun[-1]}" if begun else f"did not start ({error})"


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
    if not (value is None or isinstance(value, str | bool | int | float)):
        raise TypeError(
            f"{name}: got {type(value).__name__}, wanted text, a number, true, false, nothing, or "
            "lists and mappings of them: papermill writes all else as text"
        )
    return value


def _check_several(name: str, value: Any, default: str) -> None:
    """See that a parameter whose default holds several values is given several."""
    several = isinstance(ast.parse(default, mode="eval").body, ast.List | ast.Tuple | ast.Dict)
    if several and isinstance(value, str | int | float):
        raise ValueError(
            f"{name}: got {value!r}, wanted several as in {default}; on a command line such as "
            f"-p {name} '{json.dumps([value])}'"
        )


def _is_out_of_time(error: PapermillExecutionError) -> bool:
    """Whether a cell ended as long work does whose minutes are over."""
    exited = error.ename == "SystemExit" and str(error.evalue) == str(OUT_OF_TIME)
    return exited or error.ename == OutOfTimeError.__name__


def parameters_of(chapter: str | os.PathLike) -> dict[str, str]:
    """A chapter's parameters and their defaults, as they stand in its source.

    Raises:
        ValueError: If the file is no notebook.
    """
    tagged = (
        cell.source
        for cell in _read(chapter).cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    )
    source = next(tagged, "")
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{chapter}: its parameters are no Python ({error})") from error
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                found |= _assigned(target, statement.value, source)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            found |= _assigned(statement.target, statement.value, source)
    return found


def _assigned(target: ast.expr, value: ast.expr, source: str) -> dict[str, str]:
    """The names that an assignment sets, and the text of what each is set to."""
    if isinstance(target, ast.Name):
        return {target.id: ast.get_source_segment(source, value)}
    if not isinstance(target, ast.Tuple | ast.List):
        return {}
    apart = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
    values = value.elts if apart else [value] * len(target.elts)
    found = {}
    for name, part in zip(target.elts, values, strict=True):
        found |= _assigned(name, part, source)
    return found


def _read(chapter: str | os.PathLike) -> dict:
    """A chapter as a notebook: an ``.ipynb``, or text whose header says that it is one."""
    try:
        notebook = jupytext.read(chapter)
    except Exception as error:  # its readers raise many kinds
        raise ValueError(f"{chapter}: not a chapter ({error})") from error
    if Path(chapter).suffix != ".ipynb" and "kernelspec" not in notebook.metadata:
        raise ValueError(f"{chapter}: not a chapter (no header with a kernelspec)")
    return notebook


@contextlib.contextmanager
def _until_told_to_end() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP are exits with a status, so that files and kernel are seen to."""

    def leave(*_) -> None:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)  # a second one would end the cleaning
        sys.exit(TERMINATED)

    with on_termination(leave):
        yield


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

    Returns 0; 2 if the call is wrong, 1 if a cell fails or the disk is full, 71 if the kernel dies,
    75 if a cell's minutes are over, 143 after a SIGTERM or SIGHUP. What ran until then is in the
    notebook.
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
    parser.add_argument(
        "-r",
        "--raw",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "TEXT"),
        help="set a parameter to text, also if it looks like a number; may be given several times",
    )
    parser.add_argument("-o", "--output", help="the executed notebook; NAME.ipynb if left out")
    options = parser.parse_args(arguments)
    output = Path(options.output or Path(options.chapter).with_suffix(".ipynb").name)
    parameters = {name: parse(value) for name, value in options.parameters} | dict(options.raw)
    try:
        with _until_told_to_end():
            run(options.chapter, output, parameters)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OutOfTimeError as error:
        print(f"{error}; what ran until there is in {output}", file=sys.stderr)
        return OUT_OF_TIME
    except DeadKernelError as error:
        print(f"{error}; what ran until there is in {output}", file=sys.stderr)
        return DEAD_KERNEL
    except OSError as error:
        print(f"{output}: cannot be written ({error.strerror or error})", file=sys.stderr)
        return 1
    except SystemExit:
        print(
            f"{options.chapter}: told to end; what ran until there is in {output}", file=sys.stderr
        )
        return TERMINATED
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
