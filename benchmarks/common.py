"""What the benchmarks share: timing, the machine, and tables that carry their provenance."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fpmc.experiments.provenance import cpu
from fpmc.experiments.provenance import provenance as where
from fpmc.storage import write_rows


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options that say which images are summed over."""
    parser.add_argument("--data", default="photos32", help="name or path (default: photos32)")
    parser.add_argument("--root", help="where datasets lie")
    parser.add_argument("--label", help="what the table calls the data (default: DATA)")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, where the data's label is their name unless another is given."""
    options = parser.parse_args()
    options.label = options.label or options.data
    return options


@contextmanager
def named() -> Iterator[None]:
    """End the program with an error's message alone, where it is about what was asked for."""
    try:
        yield
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def fastest(work: Callable[[], object], repeats: int = 3, *, warm: bool = True) -> float:
    """Seconds that the work takes: the best of several runs, after one that is not counted.

    On one thread these are seconds of the processor's time, which other programs do not lengthen;
    on several, seconds by the clock, which is right on an idle machine alone; on a CUDA device,
    seconds by the clock until it is done.
    """
    on_cuda = torch.cuda.is_initialized()
    one_thread = torch.get_num_threads() == 1 and not on_cuda
    clock = time.process_time if one_thread else time.perf_counter
    times = []
    for _ in range(repeats + warm):
        start = clock()
        work()
        if on_cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[warm:])


def gpu(device: str | torch.device) -> dict[str, str]:
    """The column that names the GPU, for a table of what ran on one."""
    device = torch.device(device)
    return {"GPU": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def provenance() -> dict[str, object]:
    """When, on what and with which code."""
    told = where()
    return {
        "date": told["date"],
        "device": cpu(),
        "threads": torch.get_num_threads(),
        "seconds of": "processor" if torch.get_num_threads() == 1 else "clock",
        "torch": told["torch"],
        "code": told["code"],
    }


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows, each with the provenance, to a CSV file, whole or not at all.

    What a row lacks is not a number.
    """
    told = provenance()
    texts = [{**{key: _text(value) for key, value in row.items()}, **told} for row in rows]
    write_rows(path, texts, missing="nan")


def show(rows: Sequence[dict[str, object]]) -> None:
    """Print rows as a table."""
    texts = [[_text(value) for value in row.values()] for row in rows]
    heads = list(rows[0])
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    for line in (heads, *texts):
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
