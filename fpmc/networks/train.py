"""Train a network on the images that are also an FPMC's source.

    python -m fpmc.networks.train --data photos --arch ddpmpp

What is left out is taken from the data's recipe, see :mod:`fpmc.networks.recipes`.

Source of the loss and its settings: Karras et al. (2022), table 1, column "Ours".
"""

import argparse
import contextlib
import copy
import csv
import json
import math
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fpmc
from fpmc import data as datasets
from fpmc.checks import as_device, as_positive, as_whole_number
from fpmc.networks.architectures import ARCHITECTURES, as_options, build
from fpmc.networks.checkpoints import save
from fpmc.networks.loading import card, load
from fpmc.networks.optimizers import OPTIMIZERS, optimizer
from fpmc.networks.preconditioning import Preconditioned
from fpmc.networks.recipes import LEVELS, Recipe, command, recipe
from fpmc.source import to_float
from fpmc.storage import try_writing, whole

__all__ = ["edm_loss", "main", "posterior_mean", "train"]

EMA_SHARE = 0.05
"""Half-life of the averaged weights, as a share of the images seen so far."""
WARM_UP = 0.02
"""Share of the budget over which the learning rate rises."""
LOG_EVERY = 10_000
"""Images per row of the loss curve up to a million; ten times as many up to ten million, etc."""


def edm_loss(
    network: Preconditioned,
    x: Float[Tensor, "b c h w"],
    sigma: Float[Tensor, " b"],
    noise: Tensor,
    weight: Tensor | float = 1.0,
    target: Tensor | None = None,
) -> Float[Tensor, ""]:
    r"""The denoising loss, weighted so that every noise level starts out equal.

    .. math:: \frac1b \sum_i \lambda(\sigma_i) \, \text{mean}
              \big(D(x_i + \sigma_i \epsilon_i, \sigma_i) - x_i\big)^2, \qquad
              \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2}

    Args:
        network: D.
        x: Clean images in [-1, 1], shape (b, c, h, w).
        sigma: A noise level for each, shape (b,).
        noise: ε ~ N(0, I), shape (b, c, h, w).
        weight: A further factor for each, shape (b,): density over that of the draw, for noise
            levels that were drawn from another distribution.
        target: What stands in the loss in place of x as the answer, shape (b, c, h, w).
    """
    level = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
    error = network.denoise(x + sigma[:, None, None, None] * noise, sigma)
    error = error - (x if target is None else target)
    return (weight * level * error.square().mean(dim=(1, 2, 3))).mean()


def posterior_mean(
    images: Float[Tensor, "n c h w"], z: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    r"""The mean of the images given z: the optimal denoiser, with a noise level for each z.

    As :math:`\mathbb{E}[x \mid z]` is the best answer to z, the loss with it in place of x differs
    by a constant from the loss with x: the gradient is the same in expectation, without the
    scatter of x about it. Source: Xu, Tong and Jaakkola (2023), "Stable Target Field for Reduced
    Variance Score Estimation in Diffusion Models", here with the whole training set.
    """
    x, flat = images.flatten(1), z.flatten(1)
    logits = (flat @ x.T - x.square().sum(1) / 2) / sigma[:, None] ** 2
    return (logits.softmax(1) @ x).reshape(z.shape)


class _Loss(torch.nn.Module):
    """The loss as a module, so that gradients can be averaged over processes."""

    def __init__(self, network: Preconditioned):
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        return edm_loss(self.network, *batch)


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
        ValueError: If the recipe has no budget, or an optimizer, a rate, a target, levels or draws
            that do not exist, there is no such device or precision, the batch cannot be shared
            between the processes, ``out`` cannot be written to or holds another recipe's run, or
            its state cannot be read.
    """
    if not (recipe.images >= 0 and 0 <= recipe.minutes < math.inf):
        raise ValueError(f"budget: got {recipe.images} images, {recipe.minutes} minutes")
    if not (recipe.images or recipe.minutes):
        raise ValueError("budget: got none, wanted images or minutes above 0")
    if recipe.target not in ("image", "posterior"):
        raise ValueError(f"target: got {recipe.target!r}, wanted 'image' or 'posterior'")
    for name, pair in (("levels", recipe.levels), ("draws", recipe.draws or LEVELS)):
        if not (len(pair) == 2 and all(map(math.isfinite, pair)) and pair[1] > 0):
            raise ValueError(f"{name}: got {pair}, wanted a mean and a deviation above 0, finite")
    if precision not in ("auto", "bf16", "float32"):
        raise ValueError(f"precision: got {precision!r}, wanted 'auto', 'bf16' or 'float32'")
    as_whole_number(recipe.batch, "batch", 1)
    as_positive(recipe.rate, "rate")
    as_options(recipe.arch, recipe.options)
    end = time.monotonic() + 60 * limit
    with _processes(as_device(device)) as (rank, world, device):
        if recipe.batch % world:
            raise ValueError(f"batch: got {recipe.batch}, wanted a multiple of {world} processes")
        run = _Run(recipe, Path(out), dataset, root, device, precision, rank, world)
        run.resume()
        run.prepare()
        with torch.random.fork_rng(), _tf32(run.bf16 and device.type == "cuda"):
            run.compiled = compiled
            if compiled and run._agree(run.done) < 1:
                run.compile()
            run.go(save_minutes, end, progress)
    return run.average.eval().requires_grad_(False)


class _Run:
    """One process's part of a training run."""

    def __init__(self, recipe, out, dataset, root, device, precision, rank, world):
        self.recipe, self.out, self.device = recipe, out, device
        self.rank, self.world, self.compiled, self.begun = rank, world, False, None
        self.dataset = dataset or datasets.load(recipe.data, root)
        self.bf16 = precision == "bf16" or (precision == "auto" and _has_bf16(device))
        shape = tuple(self.dataset.train.shape[1:])
        network = build(recipe.arch, shape, seed=recipe.seed, **recipe.options)
        if recipe.start:
            self.begin(network)
        self.network = network.to(device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.loss = _Loss(self.network)
        if world > 1:
            self.loss = DistributedDataParallel(self.loss)
        self.optimizer = optimizer(recipe.optimizer, self.network, recipe.rate)
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.timed = bool(recipe.minutes)
        self.pending: list[Tensor] = []
        self.epoch, self.order = -1, torch.empty(0)
        self.known = None
        if recipe.target == "posterior":
            x = to_float(self.dataset.train)
            self.known = (torch.cat([x, x.flip(3)]) if recipe.flips else x).to(device)

    def begin(self, network: Preconditioned) -> None:
        """Take the weights of another network of this architecture, dropout aside."""
        start = load(self.recipe.start)
        try:
            self.begun = card(self.recipe.start)
        except ValueError:  # another's, which has none
            self.begun = {"network": str(self.recipe.start)}
        got, wanted = (
            {k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (start, network)
        )
        differ = [name for name in got | wanted if got.get(name) != wanted.get(name)]
        if differ:
            some = (f"{k} {got.get(k, 'none')}, {wanted.get(k, 'none')}" for k in differ[:3])
            raise ValueError(
                f"start: {self.recipe.start!r} is another network: got {start.size:,} parameters, "
                f"wanted {network.size:,}\n{len(differ)} tensors differ in name or shape, "
                f"first (got, wanted): {'; '.join(some)}"
            )
        network.load_state_dict(start.state_dict())

    @property
    def images(self) -> int:
        return self.step * self.recipe.batch

    @property
    def done(self) -> float:
        """Share of the budget that is spent."""
        shares = [0.0]
        if self.recipe.images:
            shares.append(self.images / self.recipe.images)
        if self.recipe.minutes:
            shares.append(self.seconds / 60 / self.recipe.minutes)
        return max(shares)

    def go(self, save_minutes: float, end: float, progress: bool) -> None:
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        self.timed = bool(self.recipe.minutes) or math.isfinite(end)
        total = self.recipe.images or None
        with tqdm(
            total=total,
            initial=self.images,
            unit="img",
            mininterval=1.0 if sys.stderr.isatty() else 60.0,
            disable=not progress or self.rank > 0,
        ) as bar:
            done = self._agree(self.done)
            while done < 1:
                self.advance()
                self.seconds = time.monotonic() - started
                bar.update(self.recipe.batch)
                every = _images_per_row(self.images)
                if self.images // every > (self.images - self.recipe.batch) // every:
                    self.log()
                    bar.set_postfix(loss=f"{self.rows[-1]['loss']:.4f}")
                if time.monotonic() - saved > 60 * save_minutes:
                    self.write()
                    saved = time.monotonic()
                done = self._agree(self.done)
                if done < 1 and self._agree(float(time.monotonic() >= end)):
                    self.write()
                    raise TimeoutError(
                        f"stopped after {self.images:,} images, {done:.0%} of the budget; what was "
                        f"done is in {self.out}, and the same call goes on"
                    )
        if self.pending:
            self.log()
        self.write()

    def compile(self) -> None:
        """Compile the loss and its gradient now: a budget in minutes does not count it."""
        self.loss.compile()
        self.gradient()
        self.optimizer.zero_grad()

    def advance(self) -> None:
        """One step: a batch, its gradient, the weights, their average."""
        for group in self.optimizer.param_groups:
            rise = min(1.0, self.done / WARM_UP + 1e-3)
            group["lr"] = self.recipe.rate * rise * (1 + math.cos(math.pi * self.done)) / 2
        self.optimizer.zero_grad()
        loss = self.gradient()
        self.optimizer.step()
        self.step += 1
        keep = 0.5 ** (self.recipe.batch / (EMA_SHARE * self.images))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
            for average, now in pairs:
                average.lerp_(now, 1 - keep)
        self.pending.append(loss)

    def gradient(self) -> Tensor:
        """Add the gradient of the step's loss to the weights' own; the loss."""
        batch = [part[self.rank :: self.world].to(self.device) for part in self.batch(self.step)]
        torch.manual_seed(_seed(self.recipe.seed, 2, self.step, self.rank))
        if self.known is not None:
            x, sigma, noise, _ = batch
            z = x + sigma[:, None, None, None] * noise
            batch.append(posterior_mean(self.known, z, sigma))
        with self.autocast():
            loss = self.loss(*batch)
        loss.backward()
        return loss.detach()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, noise levels, noise and weights of a step, for all processes together."""
        train, size, seed = self.dataset.train, self.recipe.batch, self.recipe.seed
        index = torch.tensor([self.position(i) for i in range(step * size, (step + 1) * size)])
        generator = torch.Generator().manual_seed(_seed(seed, 1, step))
        x = to_float(train[index])
        sigma, weight = self.levels(generator)
        noise = torch.randn(x.shape, generator=generator)
        mirrored = torch.rand(size, generator=generator) < 0.5
        if self.recipe.flips:
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x, sigma, noise, weight

    def levels(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise levels of a step, and the density of the loss over that of the draws."""
        size, (middle, spread) = self.recipe.batch, self.recipe.levels
        if not self.recipe.draws:
            sigma = (middle + spread * torch.randn(size, generator=generator)).exp()
            return sigma, torch.ones(size)
        mean, std = self.recipe.draws
        strata = torch.randperm(size, generator=generator)
        share = (strata + torch.rand(size, generator=generator)) / size
        drawn = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
        log = mean + std * drawn
        wanted = (log - middle) / spread
        return log.exp(), std / spread * ((drawn**2 - wanted**2) / 2).exp()

    def position(self, i: int) -> int:
        """Which image is the i-th: every image once per epoch, in an order of its own."""
        epoch, place = divmod(i, len(self.dataset.train))
        if epoch != self.epoch:
            rng = np.random.default_rng([self.recipe.seed, 0, epoch])
            self.epoch, self.order = epoch, rng.permutation(len(self.dataset.train))
        return int(self.order[place])

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def log(self) -> None:
        """A row of the loss curve: training loss since the last, loss on held-out images.

        The latter is over :data:`LEVELS`, whatever the recipe's are, so that curves compare.
        """
        loss = torch.stack(self.pending).mean()
        self.pending = []
        if self.world > 1:
            distributed.all_reduce(loss)
            loss = loss / self.world
        x = to_float(self.dataset.test[:256])
        generator = torch.Generator().manual_seed(_seed(self.recipe.seed, 3))
        sigma = (LEVELS[0] + LEVELS[1] * torch.randn(len(x), generator=generator)).exp()
        noise = torch.randn(x.shape, generator=generator)
        held_out = math.nan
        if len(x):
            with self.autocast():
                batch = (part.to(self.device) for part in (x, sigma, noise))
                held_out = edm_loss(self.average, *batch).item()
        self.rows.append(
            {
                "images": self.images,
                "minutes": round(self.seconds / 60, 3),
                "loss": round(loss.item(), 6),
                "held_out": round(held_out, 6),
            }
        )

    def resume(self) -> None:
        """Take up the state in ``out``, if there is one."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before = Recipe(**state["recipe"])
            same = replace(before, images=self.recipe.images, minutes=self.recipe.minutes)
            if same != self.recipe:
                raise ValueError(f"holds a run of {before}, wanted {self.recipe}")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
            self.pending = list(state["pending"])
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            EOFError,
            pickle.PickleError,
        ) as error:
            raise ValueError(
                f"{path}: {error}. Name another folder as out, or remove this one"
            ) from error

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to."""
        if self.rank > 0:
            return
        made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try:
            with contextlib.suppress(OSError):  # what is wrong shows when it is written to
                self.out.mkdir(parents=True, exist_ok=True)
            try_writing(self.out, "out")
        except ValueError:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise

    def write(self) -> None:
        """Save the state, the loss curve and the averaged network, each whole."""
        if self.rank > 0:
            return
        losses = [row["loss"] for row in self.rows[-1:]] + self.pending
        if not all(math.isfinite(loss) for loss in losses):
            raise FloatingPointError(
                f"the loss is not finite after {self.images:,} images; try a lower rate. "
                f"What was saved before is in {self.out}"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self.recipe),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "pending": self.pending,
        }
        with whole(self.out / "state.pt") as path:
            torch.save(state, path)
        with (
            whole(self.out / "loss.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, ["images", "minutes", "loss", "held_out"])
            writer.writeheader()
            writer.writerows(self.rows)
        save(self.average, self.out / "network.safetensors", self.card())

    def card(self) -> dict[str, Any]:
        return {
            **asdict(self.recipe),
            "images": self.images,
            "minutes": round(self.seconds / 60, 1),
            "train_images": len(self.dataset.train),
            "parameters": self.network.size,
            "device": _device_name(self.device, self.world),
            "precision": "bf16" if self.bf16 else "float32",
            "compiled": self.compiled,
            "versions": {"fpmc": fpmc.__version__, "torch": torch.__version__},
            "command": command(self.recipe),
            **({} if self.begun is None else {"begun": self.begun}),
            "loss": self.rows,
        }

    def _agree(self, value: float) -> float:
        """The same value in every process, where time decides: all stop at the same step."""
        if self.world == 1 or not self.timed:
            return value
        shared = torch.tensor(value, device=self.device, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return shared.item()


@contextlib.contextmanager
def _processes(device: torch.device) -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device: those of torchrun, or one process alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield distributed.get_rank(), world, device
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Products of float32 matrices in TF32, if wanted."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _images_per_row(seen: int) -> int:
    """See :data:`LOG_EVERY`."""
    return LOG_EVERY * 10 ** max(0, len(str(seen)) - 6)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _device_name(device: torch.device, world: int) -> str:
    if device.type == "cuda":
        return f"{world} × {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads() * world
    return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"


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
