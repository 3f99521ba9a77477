"""The chapters' outputs: computed once, two chapters at a time, for the pages and for the tests.

The outputs lie where the pages take them from, in jupyter-cache's folder in ``_build``. It knows a
chapter by its code. What a chapter shows depends on more: on the package, on the tables in
``results/`` and on the versions of the libraries. So each record also holds a hash of these, and a
record with another hash is computed again.

As an extension of Sphinx, this computes what is missing before Sphinx reads the chapters. As a
script, ``python book/_ext/chapters.py [NAME ...]``, it does the same and prints the times.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution

BOOK = Path(__file__).parents[1]
ROOT = BOOK.parent
CACHE = ROOT / "_build" / ".jupyter_cache"
DECIDES = (".py", ".csv", ".npz", ".safetensors", ".toml")  # files of these kinds decide outputs
TIMEOUT = 600  # seconds for one cell
LIMIT = 40  # seconds of a processor for one chapter
WORKERS = min(os.cpu_count() or 1, 4)  # more would share too little memory
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not the user's
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else debugpy warns about frozen modules
}
LOOPS = (  # what the kernel runs first
    f"__import__('sys').path.append({str(Path(__file__).parent)!r})",
    "get_ipython().extension_manager.load_extension('loops')",
)


class Executed(NamedTuple):
    """A chapter with its outputs.

    Attributes:
        notebook: All its cells. If one failed, it holds the error, and later ones hold nothing.
        seconds: Time from start to end.
        cpu_seconds: Time of a processor that the kernel took.
        error: The traceback, or None.
    """

    notebook: nbformat.NotebookNode
    seconds: float
    cpu_seconds: float
    error: str | None


def chapters() -> list[Path]:
    """The book's pages that are notebooks."""
    return sorted(path for path in BOOK.glob("*.md") if "{code-cell}" in path.read_text())


@functools.cache
def code() -> str:
    """A hash of what decides the chapters' outputs beside their own cells."""
    paths = [p for top in ("fpmc", "results") for p in (ROOT / top).rglob("*")]
    digest = hashlib.sha256()
    for path in [*sorted(p for p in paths if p.suffix in DECIDES), ROOT / "requirements.lock"]:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def cached(chapter: Path, folder: Path = CACHE) -> Executed | None:
    """What the cache holds of a chapter, or None if that is missing or from other code."""
    cache, notebook = get_cache(folder), jupytext.read(chapter)
    try:
        record = cache.match_cache_notebook(notebook)
        if record.data.get("code") != code():
            return None
        _, notebook = cache.merge_match_into_notebook(notebook)
    except KeyError:
        return None
    return Executed(notebook, record.data["execution_seconds"], record.data["cpu_seconds"], None)


def execute(chapter: Path) -> Executed:
    """Run a chapter in a kernel with one thread, where loops that should print must do so."""
    os.environ.update(ENVIRONMENT)
    notebook, before = jupytext.read(chapter), os.times()
    done = single_nb_execution(
        notebook,
        cwd=str(chapter.parent),
        timeout=TIMEOUT,
        allow_errors=False,
        extra_arguments=[f"--IPKernelApp.exec_lines={line}" for line in LOOPS],
    )
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])  # of processes that ended: the kernel
    return Executed(notebook, done.time, spent, done.exc_string)


def store(chapter: Path, executed: Executed, folder: Path = CACHE) -> None:
    """Put a chapter that ran to its end into the cache, as the pages' builder does."""
    data = {
        "execution_seconds": executed.seconds,
        "cpu_seconds": executed.cpu_seconds,
        "code": code(),
    }
    bundle = CacheBundleIn(executed.notebook, str(chapter), data=data)
    get_cache(folder).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def outputs(chapter: Path, folder: Path = CACHE) -> Executed:
    """A chapter's outputs from the cache, or else from a run that is then cached."""
    executed = cached(chapter, folder)
    if executed is None:
        executed = execute(chapter)
        if executed.error is None:
            store(chapter, executed, folder)
    return executed


def bring_up_to_date(
    wanted: Iterable[Path], folder: Path = CACHE
) -> Iterator[tuple[Path, Executed]]:
    """Compute and cache what the cache lacks of these chapters; yield each as it ends.

    The longest texts start first, since they tend to run longest.
    """
    stale = [chapter for chapter in wanted if cached(chapter, folder) is None]
    stale.sort(key=lambda chapter: -chapter.stat().st_size)
    if not stale:
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(WORKERS, len(stale)), fresh) as pool:
        chapter_of = {pool.submit(execute, chapter): chapter for chapter in stale}
        for future in as_completed(chapter_of):
            chapter, executed = chapter_of[future], future.result()
            if executed.error is None:
                store(chapter, executed, folder)
            yield chapter, executed


def before_reading(app, env, docnames: list[str]) -> None:
    """Compute the outputs of the chapters that Sphinx is about to read."""
    from sphinx.errors import SphinxError
    from sphinx.util import logging

    if app.config.nb_execution_mode != "cache":
        return
    notebooks = set(chapters())
    wanted = [path for name in docnames if (path := Path(env.doc2path(name))) in notebooks]
    failed = []
    for chapter, executed in bring_up_to_date(wanted, Path(env.mystnb_config.execution_cache_path)):
        logging.getLogger(__name__).info(report(chapter, executed))
        if executed.error is not None:
            failed.append(f"{chapter}\n{executed.error}")
    if failed:
        raise SphinxError("these chapters fail:\n" + "\n".join(failed))


def setup(app):
    """Register with Sphinx. A changed hash makes Sphinx read every page again."""
    app.add_config_value("chapters_code", code(), "env", [str])
    app.connect("env-before-read-docs", before_reading)
    return {"parallel_read_safe": True}


def report(chapter: Path, executed: Executed) -> str:
    """A line about a chapter's run."""
    line = f"{chapter.stem:16} {executed.seconds:6.1f} s {executed.cpu_seconds:6.1f} s of a CPU"
    if executed.error is not None:
        return f"{line}, fails"
    return f"{line}, over {LIMIT}" if executed.cpu_seconds > LIMIT else line


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing, print every chapter's times. Returns 1 if one fails or is slow."""
    names = [chapter.stem for chapter in chapters()]
    parser = argparse.ArgumentParser(description="Execute the chapters and print their times.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    wanted = parser.parse_args(arguments).names or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"NAME: got {', '.join(unknown)}, wanted some of {', '.join(names)}")
    paths = [BOOK / f"{name}.md" for name in wanted]
    failed = {path: run for path, run in bring_up_to_date(paths) if run.error is not None}
    for error in failed.values():
        print(error.error, file=sys.stderr)
    runs = [(path, failed.get(path) or cached(path)) for path in paths]
    print("\n".join(report(*run) for run in runs))
    print(f"together {sum(executed.cpu_seconds for _, executed in runs):6.1f} s of a CPU")
    return int(any(e.error is not None or e.cpu_seconds > LIMIT for _, e in runs))


if __name__ == "__main__":
    sys.exit(main())
