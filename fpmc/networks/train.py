r"""Train a network on the images that are also an FPMC's source.

    python -m fpmc.networks.train --data photos --arch ddpmpp
    python -m fpmc.networks.train --data digits --arch ddpmpp --objective energy
    python -m fpmc.networks.train --data digits --arch ddpmpp --objective energy \
        --start digits/ddpmpp

The second is a network that draws from p(x | z), trained by a scoring rule; the third starts from
the weights of a network of means, and needs less time.

What is left out is taken from the data's recipe, see :mod:`fpmc.networks.recipes`. A run that is
told to end (SIGTERM) saves what it did and ends with status 143; the same command goes on.

Source of the loss and its settings: Karras et al. (2022), table 1, column "Ours".
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fpmc import data as datasets
from fpmc.checks import as_device, as_fraction, as_not_negative, as_positive, as_whole_number
from fpmc.distributional.scoring import KERNELS
from fpmc.networks.architectures import ARCHITECTURES, as_options
from fpmc.networks.optimizers import OPTIMIZERS
from fpmc.networks.preconditioning import Preconditioned
from fpmc.networks.recipes import LEVELS, Recipe, recipe
from fpmc.networks.training.loss import edm_loss, energy_loss, posterior_mean
from fpmc.networks.training.run import Run, tf32
from fpmc.processes import processes

__all__ = ["edm_loss", "energy_loss", "main", "posterior_mean", "train"]

OBJECTIVES = ("mean", "energy", *KERNELS)
"""The squared error, and the scores of draws."""


def train(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    dataset: datasets.Dataset | None = None,
    root: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    compiled: bool = False,
    save_minutes: float = 2.0,
    limit: float = math.inf,
    progress: bool = True,
) -> Preconditioned:
    """Train a network, or go on with the run that lies in ``out``.

    Afterwards ``out`` holds ``network.safetensors`` (averaged weights, float16, with a card),
    ``loss.csv`` (whose ``held_out`` is over the published levels, whatever the recipe's are) and
    ``state.pt`` (everything that a resumed run needs). All are written whole, and a run that is
    stopped at any moment loses what it did since it last saved. Order, noise and flips depend on
    the seed and the step alone, so a resumed run is the run that was not stopped.

    Started by torchrun, the batch is shared between the processes; on CUDA each takes one GPU.

    Args:
        recipe: What to train on what.
        out: A folder; made if it is not there.
        dataset: The images, if they are not to be loaded by the recipe's name.
        root: Where datasets lie: see :func:`fpmc.data.load`.
        device: "cpu" or "cuda".
        precision: "float32", "bf16" (activations; weights stay float32, and on CUDA products of
            posterior means are TF32), or "auto": bf16 where the device computes in it.
        compiled: Whether ``torch.compile`` fuses the steps, which may pay on a GPU. It needs a C++
            compiler, on CUDA Triton, and draws other masks for dropout.
        save_minutes: How often to save.
        limit: Minutes after which to save and stop, whatever is left of the budget.
        progress: Whether to show a progress bar.

    Returns:
        The network with averaged weights.

    Raises:
        TimeoutError: If the limit came before the end of the budget; the same call goes on.
        FloatingPointError: If the loss is not finite; the last saved state is kept.
        TypeError: If the recipe's options are none of its architecture's.
        ValueError: If the minutes are below 0, the recipe has no budget, or an objective, an
            optimizer, a rate, a target, levels or draws that do not exist or do not go together,
            there is no such device or precision, the batch cannot be shared between the processes,
            ``out`` cannot be written to or holds another recipe's run, or its state cannot be read.
    """
    _check(recipe, precision)
    save_minutes = as_not_negative(save_minutes, "save_minutes", finite=False)
    limit = as_not_negative(limit, "limit", finite=False)
    end = time.monotonic() + 60 * limit
    with processes(as_device(device)) as shared:
        if recipe.batch % shared.world:
            raise ValueError(
                f"batch: got {recipe.batch}, wanted a multiple of {shared.world} processes"
            )
        images = dataset or datasets.load(recipe.data, root)
        run = Run(recipe, Path(out), images, shared, precision)
        run.loop.resume()
        run.prepare()
        with tf32(run.bf16 and shared.device.type == "cuda"):
            run.compiled = compiled
            if compiled and shared.agree(run.loop.share)[0] < 1:
                run.compile()
            left = (end - time.monotonic()) / 60
            run.loop.run(save_minutes=save_minutes, limit=left, progress=progress)
    return run.average.eval().requires_grad_(False)


def _check(recipe: Recipe, precision: str) -> None:
    """See that a recipe can be followed."""
    if not (recipe.images >= 0 and 0 <= recipe.minutes < math.inf):
        raise ValueError(f"budget: got {recipe.images} images, {recipe.minutes} minutes")
    if not (recipe.images or recipe.minutes):
        raise ValueError("budget: got none, wanted images or minutes above 0")
    if recipe.objective not in OBJECTIVES:
        wanted = ", ".join(map(repr, OBJECTIVES))
        raise ValueError(f"objective: got {recipe.objective!r}, wanted one of {wanted}")
    if recipe.target not in ("image", "posterior"):
        raise ValueError(f"target: got {recipe.target!r}, wanted 'image' or 'posterior'")
    for name, pair in (("levels", recipe.levels), ("draws", recipe.draws or LEVELS)):
        if not (len(pair) == 2 and all(map(math.isfinite, pair)) and pair[1] > 0):
            raise ValueError(f"{name}: got {pair}, wanted a mean and a deviation above 0, finite")
    if precision not in ("auto", "bf16", "float32"):
        raise ValueError(f"precision: got {precision!r}, wanted 'auto', 'bf16' or 'float32'")
    as_whole_number(recipe.batch, "batch", 1)
    as_positive(recipe.rate, "rate")
    options, ends = as_options(recipe.arch, recipe.options), recipe.arch == "path"
    for name, value in (("target", recipe.target == "posterior"), ("flips", recipe.flips)):
        if value and ends:
            raise ValueError(f"{name}: got {getattr(recipe, name)!r} where ends are known")
    _check_score(recipe, bool(options.get("xi")))


def _check_score(recipe: Recipe, xi: bool) -> None:
    """See that a network's objective, its ξ and the number of its draws go together."""
    beta, repulsion = as_positive(recipe.beta, "beta"), as_fraction(recipe.repulsion, "lambda")
    m = as_whole_number(recipe.population, "population", 1)
    if beta > 2:
        raise ValueError(f"beta: got {beta:g}, wanted a number above 0 and up to 2")
    if recipe.objective == "mean" and (xi or (beta, repulsion, m) != (2, 0, 1)):
        raise ValueError(
            f"objective: got 'mean' with beta = {beta:g}, lambda = {repulsion:g}, population = {m}"
            f"{' and xi' if xi else ''}, wanted a score for these"
        )
    if recipe.objective in KERNELS:
        as_positive(recipe.bandwidth, "bandwidth")
        if beta != 2:
            raise ValueError(f"beta: got {beta:g}, wanted 2, as {recipe.objective!r} has none")
    elif recipe.bandwidth != 0:
        raise ValueError(
            f"bandwidth: got {recipe.bandwidth:g}, wanted 0, as {recipe.objective!r} has none"
        )
    if repulsion > 0 and m < 2:
        raise ValueError(f"population: got 1 with lambda = {repulsion:g}, wanted 2 or more")
    if m > 1 and not xi:
        raise ValueError(
            f"options: got no xi with population = {m}, wanted xi = true: draws would be the same"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.networks.train --help``."""
    parser = argparse.ArgumentParser(prog="python -m fpmc.networks.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data", required=True, help="name or path of a dataset")
    add("--arch", required=True, choices=list(ARCHITECTURES))
    add("--out", type=Path, help="folder of the run; runs/DATA-ARCH-SEED if left out")
    add("--root", help="where datasets lie (default: FPMC_DATA, or ~/.cache/fpmc)")
    add("--images", type=int, help="budget in images")
    add("--minutes", type=float, help="budget in minutes")
    add("--batch", type=int, help="images per step")
    add("--rate", type=float, help="highest learning rate")
    add("--optimizer", choices=list(OPTIMIZERS), help="adam, or muon for the matrices")
    add("--flips", action=argparse.BooleanOptionalAction, help="mirror images at random")
    add("--target", choices=["image", "posterior"], help="what is taught")
    add("--levels", type=float, nargs=2, help="mean and deviation of ln σ in the loss")
    add("--draws", type=float, nargs="*", help="the same, of weighted draws; no number: the loss's")
    add("--objective", choices=list(OBJECTIVES), help="squared error, or a score of draws")
    add("--beta", type=float, help="β of the energy score, up to 2 (default: 1)")
    add("--bandwidth", type=float, help="h of a kernel score, rbf or imq (default: 1)")
    add("--lambda", type=float, dest="repulsion", help="λ of the score (default: 1)")
    add("--population", type=int, help="m, draws for each noisy image in it (default: 4)")
    add("--start", help="a network whose weights the training starts from")
    add("--seed", type=int, help="seed of weights, order and noise (default: 0)")
    add("--options", type=json.loads, help='of the architecture, as JSON: {"channels": 64}')
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--precision", default="auto", choices=["auto", "bf16", "float32"])
    add("--compiled", action="store_true", help="let torch.compile fuse the steps (for a GPU)")
    add("--save-minutes", type=float, default=2.0, help="how often to save (default: 2)")
    given = vars(parser.parse_args(arguments))
    data, arch, out = given.pop("data"), given.pop("arch"), given.pop("out")
    names = ("root", "device", "precision", "compiled", "save_minutes")
    elsewhere = {name: given.pop(name) for name in names}
    try:
        changes = {k: v for k, v in given.items() if v is not None}
        changes |= {k: tuple(changes[k]) for k in ("levels", "draws") if k in changes}
        chosen = recipe(data, arch, **changes)
        out = out or Path("runs") / f"{Path(data).stem}-{arch}-{chosen.seed}"
        train(chosen, out, **elsewhere)
    except (TypeError, ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
