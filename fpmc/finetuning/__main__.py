"""Tune a method to a network at the sampler's noise levels.

python -m fpmc.finetuning --data photos --method pspc_flex --level 9 --learn qr --out runs/tuned
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpmc import data, methods, networks, sensitivity
from fpmc.checks import as_device, as_positive, as_whole_number
from fpmc.collection import FPMC
from fpmc.diffusion import edm_sigmas
from fpmc.finetuning.images import fingerprints, fresh
from fpmc.finetuning.loop import FineTuned, finetune
from fpmc.finetuning.module import LEARN
from fpmc.finetuning.parametrisation import MAPS
from fpmc.finetuning.sharing import SHARE
from fpmc.methods.schedules import FOUND, PUBLISHED
from fpmc.processes import Processes, processes
from fpmc.source import Source

__all__ = ["main"]

METHODS = ("optimal", "pspc_square", "pspc_flex", "lukoianov")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m fpmc.finetuning", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add("--data", required=True, help="name or path of a dataset")
    add("--method", required=True, choices=METHODS, help="what is tuned")
    add("--level", required=True, help="of the sampler: a number from 0 (the highest), or all")
    add("--out", type=Path, help="folder (default: runs/DATA-METHOD-LEARN-SEED)")
    add("--learn", choices=LEARN, default="qr", help="queries, responses, or both (default)")
    add("--network", help="what it is tuned to (default: DATA/ddpmpp)")
    add("--schedule", help="of the method (default: the data's own, or the published one)")
    add("--maps", help="sensitivity maps, a file (default: the network's shipped ones)")
    add("--levels", type=int, default=18, help="the sampler's noise levels (default: 18)")
    add("--root", help="where datasets lie (default: FPMC_DATA, or ~/.cache/fpmc)")
    add("--n", type=int, help="source images (default: all for training)")
    add("--validation", type=int, help="images that choose (default: half of those for tests)")
    add("--test", type=int, help="images that are reported on (default: the others for tests)")
    for name in ("steps", "batch", "subset", "every", "seed"):
        add(f"--{name}", type=int, help="see fpmc.finetuning.settings")
    for name in ("rate", "weight-decay", "zeros", "cut"):
        add(f"--{name}", type=float, help="see fpmc.finetuning.settings")
    add("--mapping", choices=list(MAPS), help="how numbers are kept above 0")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add(
        "--precision", default="exact", help="of validation: exact (default), float32, tf32 or bf16"
    )
    add(
        "--share",
        choices=SHARE,
        default="images",
        help="what processes share that torchrun started: images (default) or source",
    )
    add("--budget", type=float, help="working memory of a call in GiB (default: 1)")
    add("--save-minutes", type=float, default=2.0, help="how often to save (default: 2)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.finetuning --help``."""
    given = parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with processes(as_device(given.device, "--device")) as joined:
            run(given, shlex.join(words), joined)
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def run(given: argparse.Namespace, command: str, joined: Processes) -> None:
    """Tune at one level, or at all in turn, and print what came of each.

    Images for tests that the source has too, and their second copies, are left out.
    """
    sigmas = edm_sigmas(as_whole_number(given.levels, "--levels", 2, 10_000)).tolist()
    levels = levels_of(given.level, len(sigmas))
    dataset = data.load(given.data, given.root)
    n = len(dataset.train)
    n = n if given.n is None else as_whole_number(given.n, "--n", 1, n)
    source = Source(dataset.train[:n])
    held = dataset.test[fresh(dataset.test, fingerprints(source))]
    if len(held) < 2:
        raise ValueError(f"--data: got {len(held)} images for tests alone, wanted 2 or more")
    chosen = len(held) // 2 if given.validation is None else given.validation
    chosen = as_whole_number(chosen, "--validation", 1, len(held) - 1)
    shown = len(held) - chosen if given.test is None else given.test
    shown = as_whole_number(shown, "--test", 1, len(held) - chosen)
    network = given.network or f"{given.data}/ddpmpp"
    answering = networks.load(network, shape=source.shape).to(joined.device)
    denoiser = method_of(given, network, source).with_precision(given.precision)
    names = ("steps", "batch", "subset", "every", "seed", "rate", "weight_decay", "zeros", "cut")
    settings = {name: getattr(given, name) for name in (*names, "mapping")}
    settings = {name: value for name, value in settings.items() if value is not None}
    folder = f"{Path(given.data).stem}-{given.method}-{given.learn}-{given.seed or 0}"
    for level in levels:
        found = finetune(
            denoiser,
            answering,
            None,
            sigmas[level],
            validation=held[len(held) - chosen :],
            test=held[:shown],
            learn=given.learn,
            out=given.out or Path("runs") / folder,
            device=joined.device,
            share=given.share,
            save_minutes=given.save_minutes,
            card={"data": given.data, "method": given.method, "network": network, "level": level}
            | {"command": f"python -m fpmc.finetuning {command}"},
            **settings,
        )
        if joined.rank == 0:
            print(line(level, sigmas[level], found), flush=True)


def levels_of(level: str, count: int) -> list[int]:
    """The levels that are asked for, as positions among the sampler's.

    Raises:
        ValueError: If there is none such.
    """
    if level == "all":
        return list(range(count))
    if not level.isdecimal() or int(level) >= count:
        raise ValueError(f"--level: got {level!r}, wanted a number from 0 to {count - 1}, or all")
    return [int(level)]


def method_of(given: argparse.Namespace, network: str, source: Source) -> FPMC:
    """The collection that tuning starts from.

    Raises:
        ValueError: If the data have no schedule, or the network no maps, and none was named.
    """
    options: dict[str, Any] = {}
    if given.budget is not None:
        options["budget"] = int(as_positive(given.budget, "--budget") * 2**30)
    if given.method == "optimal":
        return methods.optimal(source, **options)
    schedule = given.schedule or given.data
    if schedule not in FOUND and schedule not in PUBLISHED:
        known = ", ".join((*FOUND, *PUBLISHED))
        raise ValueError(f"--schedule: got {schedule!r}, wanted one of {known}")
    if given.method == "pspc_square":
        return methods.pspc_square(source, schedule, **options)
    if given.method == "lukoianov":
        return methods.lukoianov(source, schedule, **options)
    maps = sensitivity.read(given.maps) if given.maps else sensitivity.load(network)
    return methods.pspc_flex(source, maps, schedule, **options)


def line(level: int, sigma: float, found: FineTuned) -> str:
    """What came of a level, in a line."""
    card = found.card
    before, after = card["validation"]["given"], card["validation"]["tuned"]
    before_test, after_test = card["test"]["given"], card["test"]["tuned"]
    best = "nothing better found" if card["best_step"] is None else f"step {card['best_step']}"
    share = card["start_to_given"] / before[0] if before[0] else math.nan
    return (
        f"level {level}, sigma {sigma:.4g}: validation {before[0]:.3g} to {after[0]:.3g} "
        f"(± {after[1]:.2g}), test {before_test[0]:.3g} to {after_test[0]:.3g} "
        f"(± {after_test[1]:.2g}); {best}; the start is {share:.2%} of the error away from "
        "what was given"
    )


if __name__ == "__main__":
    main()
