"""What decides a trained network's weights, and the choices made for the shipped ones."""

import json
import shlex
from dataclasses import dataclass, replace
from typing import Any

from fpmc.distributional.scoring import KERNELS
from fpmc.networks.architectures import ARCHITECTURES

__all__ = ["LEVELS", "Recipe", "command", "recipe"]

LEVELS = (-1.2, 1.2)
"""Mean and standard deviation of ln σ in the loss. Source: Karras et al. (2022), table 1."""


@dataclass(frozen=True)
class Recipe:
    """What decides a network's weights, but for the rounding of the device.

    Attributes:
        data: Name or path of the dataset; its ``train`` images are what is learned.
        arch: "ddpmpp", "ncsnpp", "dit" or "path".
        options: The architecture's options.
        images: Budget in images; 0 if it is in minutes alone.
        minutes: Budget in minutes; 0 if it is in images alone.
        batch: Images per step.
        rate: Highest learning rate; it rises linearly, then falls to 0 as a cosine.
        optimizer: "adam", or "muon" for matrices and convolutions, with Adam for the rest.
        flips: Whether every image is mirrored with probability ½.
        target: What the network is taught to answer to z: the clean "image", or what the training
            set's "posterior" given z says, its mean or draws from it, which has the same gradient
            in expectation and less noise.
        levels: Mean and standard deviation of the normal distribution of ln σ over which the loss
            is averaged.
        draws: Mean and standard deviation of ln σ in the draws of the noise levels, stratified
            and weighted so that the expected loss stays the same. Empty: independent draws of
            the loss's own levels.
        objective: "mean", the squared error; or a score by which a network learns to draw from
            p(x | z): "energy", the generalised energy score, "rbf" or "imq", a kernel score.
        beta: β of the energy score.
        repulsion: λ of the score.
        population: m, draws for each noisy image in the score.
        bandwidth: h of a kernel score, in the units of
            :func:`fpmc.networks.training.loss.kernel_loss`; 0 where there is none.
        start: A network whose weights the training starts from, as ``fpmc.networks.load`` takes
            it; empty for fresh ones. A network that draws may start from one of means.
        seed: Seed of the weights, the order and the noise. A whole number, no generator: each step
            makes its own from it and the step's number, so that a stopped run goes on to the same
            bits, and the card says all that the weights depend on.
    """

    data: str
    arch: str
    options: dict[str, Any]
    images: int = 0
    minutes: float = 0.0
    batch: int = 128
    rate: float = 1e-3
    optimizer: str = "adam"
    flips: bool = True
    target: str = "image"
    levels: tuple[float, ...] = LEVELS
    draws: tuple[float, ...] = ()
    objective: str = "mean"
    beta: float = 2.0
    repulsion: float = 0.0
    population: int = 1
    bandwidth: float = 0.0
    start: str = ""
    seed: int = 0


SMALL = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention": [8], "dropout": 0.0}
TINY = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.2}
WIDE = {"channels": 64, "multipliers": [1, 1, 2], "blocks": 2, "attention": [16], "dropout": 0.0}
TOKENS = {"patch": 2, "width": 96, "depth": 5, "heads": 4, "dropout": 0.1}

MEANS = {"batch": 256, "target": "posterior", "draws": (-0.6, 1.4)}
"""Large batches of posterior means, with many draws at high noise: short training on a GPU."""

HIGH = {
    "batch": 64,
    "rate": 5e-3,
    "optimizer": "muon",
    "target": "posterior",
    "levels": (1.2, 1.2),
    "draws": (0.6, 1.4),
}
"""Small batches of posterior means by Muon, and a loss with most weight on high noise: on a CPU."""

CLOTHES = {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [7], "dropout": 0.0}

XI = {"xi": True, "dropout": 0.0}
"""The options of a network that draws. Dropout would be noise that draws have in training alone."""

ENERGY = {
    "beta": 1.0,
    "repulsion": 1.0,
    "population": 4,
    "levels": (1.0, 1.8),
    "draws": (1.0, 1.8),
}
"""The energy score, and a loss whose levels reach σ = 80: a sampler in few steps starts there."""

KERNEL = ENERGY | {"beta": 2.0, "bandwidth": 1.0}
"""The same by a kernel score, which has no β."""

OTHER = {"unet": WIDE, "dit": TOKENS | {"width": 192}, "images": 10_000_000}
"""The options of a U-Net and of a DiT, and the budget, for a dataset that is not named below."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": HIGH
    | {"unet": TINY, "dit": TOKENS | {"dropout": 0.2}, "images": 1_200_000, "flips": False},
    "photos": OTHER | {"unet": SMALL, "images": 600_000},
    "photos32": OTHER | MEANS | {"images": 550_000},
    "fashion": OTHER
    | HIGH
    | {"unet": CLOTHES, "levels": LEVELS, "draws": (-0.4, 1.5), "images": 200_000, "flips": False},
    "cifar10": OTHER | MEANS,
    "maze": OTHER | {"images": 500_000, "flips": False},
}
"""Per dataset the same, and what else differs from :class:`Recipe`'s own values. (Posterior means
over a dataset of unknown size may take too much memory: they are not among the others'.)"""


def recipe(data: str, arch: str, **changes: Any) -> Recipe:
    """The recipe of the shipped DDPM++ for this dataset, or its like for DiT, with changes.

    With another objective than "mean" it is that of a network that draws: see :data:`XI`,
    :data:`ENERGY` and :data:`KERNEL`.

    What a shipped network was trained with, its budget above all, is on its card.

    Args:
        data: Name or path of a dataset; one without a recipe has :data:`OTHER`.
        arch: "ddpmpp", "ncsnpp", "dit" or "path".
        changes: Other values of :class:`Recipe`'s attributes.

    Raises:
        ValueError: If there is no such architecture.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch: got {arch!r}, wanted one of {', '.join(ARCHITECTURES)}")
    default = dict(DEFAULTS.get(data, OTHER))
    unet, dit = default.pop("unet"), default.pop("dit")
    options = {"dit": dit, "path": {}}.get(arch, unet)
    objective = changes.get("objective", "mean")
    if objective != "mean":
        score = KERNEL if objective in KERNELS else ENERGY
        own = XI if "dropout" in options else {"xi": True}
        default, options = default | score, options | own
    plain = Recipe(data, arch, options, **default)
    if "minutes" in changes and "images" not in changes:
        changes["images"] = 0
    return replace(plain, **changes)


def command(recipe: Recipe) -> str:
    """The command line that makes this network again, whatever the data's own recipe is."""
    words = ["python", "-m", "fpmc.networks.train", "--data", recipe.data, "--arch", recipe.arch]
    for name in ("images", "minutes", "batch", "rate", "seed"):
        if getattr(recipe, name) or name == "seed":
            words += [f"--{name}", str(getattr(recipe, name))]
    words += ["--optimizer", recipe.optimizer]
    words += ["--flips" if recipe.flips else "--no-flips"]
    words += ["--target", recipe.target]
    words += ["--levels", *map(str, recipe.levels)]
    words += ["--draws", *map(str, recipe.draws)]
    if recipe.objective != "mean":
        beta = ["--beta", str(recipe.beta)], ["--bandwidth", str(recipe.bandwidth)]
        words += ["--objective", recipe.objective, *beta[recipe.objective in KERNELS]]
        words += ["--lambda", str(recipe.repulsion), "--population", str(recipe.population)]
    if recipe.start:
        words += ["--start", recipe.start]
    words += ["--options", json.dumps(recipe.options)]
    return shlex.join(words)
