"""The options of a job, each with what the command line says of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpmc.augment.files import SYNTHETIC
from fpmc.augment.strategies import STRATEGIES
from fpmc.checks import as_device, as_positive, as_whole_number
from fpmc.data import EMBEDDED, NAMES
from fpmc.engine import as_precision
from fpmc.experiments.provenance import ROOT
from fpmc.finetuning.module import LEARN
from fpmc.methods.registry import METHODS

__all__ = ["AUGMENTED", "COMPARED", "FRESH", "RECIPE", "Options"]

FRESH = "fresh"
"""More images of the distribution that D was drawn from, where it can be drawn from."""
AUGMENTED = (*(name for name in STRATEGIES if name != "fractional translations"), SYNTHETIC, FRESH)
"""The six strategies of figure 3, and what they are measured by."""
RECIPE = (
    "masks",
    "q",
    "r",
    "tuned",
    "masks + horizontal flips",
    "masks + synthetic",
    "tuned + horizontal flips",
    "tuned + synthetic",
    "tuned with horizontal flips",
    "tuned with synthetic",
    "Wiener",
)
"""The steps of the recipe: "with" is tuned with the larger source, "+" before it was larger."""
COMPARED = tuple(name for name, method in METHODS.items() if method.compared)
"""The methods that are compared."""
JOINED = ("horizontal flips", SYNTHETIC)
"""What the source of tuned PSPC-Flex is joined with in the paper's table."""
DEFAULTS = {
    "points": 64,
    "samples": 32,
    "sources": {"els": 1_500},
    "fewer": {},
    "joined": JOINED,
    "map_images": 16,
}
"""How much is computed where nothing is said."""
STORED = {
    "digits": {"samples": 1_000},
    "photos": {
        "points": 12,
        "samples": 200,
        "fewer": {"lukoianov": 48, "blend": 64},
        "sources": {"els": 500},
        "joined": ("horizontal flips",),
    },
    "photos32": {"map_images": 2},
    "fashion": {"points": 16, "search_points": 8, "samples": 16, "map_images": 8},
}
"""What of it the stored tables have otherwise, so that nothing is left to compute of them."""
TAKEN = (*NAMES, "engine")
"""Names in the folder of results, which no folder of images may take as its label."""


def option(default: Any, told: str, **more: Any) -> Any:
    """A field of a job that the command line has as an option.

    Args:
        default: The value if nothing is said.
        told: The option's help.
        more: ``group``, the heading that it stands under; ``least``, the least whole number;
            ``positive``, that it is a number above 0; what else argparse's ``add_argument`` takes.
    """
    given = {"default": default} if not isinstance(default, dict) else {}
    given |= {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {}
    return field(metadata={"help": told, **more}, **given)


@dataclass(frozen=True)
class Options:
    """What is compared with what, on which data and how much of it.

    The fields are the options of ``python -m fpmc.experiments``; what they say there is meant here.

    Raises:
        TypeError: If a field is of another type.
        ValueError: If a value lies outside its range, a folder would take the label of a dataset,
            or a reduced precision is asked for where there is none.
    """

    data: str = option("", "name or path of a dataset", required=True)
    root: str | None = option(None, "where datasets lie")
    label: str | None = option(None, "what the tables call the data (default: DATA)")
    out: Path | None = option(None, "folder of the tables (default: results/LABEL)", type=Path)
    runs: Path = option(ROOT / "runs", "folder of states and single maps", type=Path)
    shards: Path | None = option(
        None, "folder of new rows, left for another process to merge (default: merged into --out)",
        type=Path,
    )  # fmt: skip
    device: str = option("cpu", "cpu (default) or cuda")
    precision: str = option(
        "exact",
        "of collections, all methods but wiener and els: exact (default), float32, or on cuda tf32 "
        "or bf16",
    )
    budget: float | None = option(
        None, "working memory of a call in GiB (default: 1)", type=float, positive=True
    )
    seed: int = option(0, "of every draw (default: 0)", type=int, least=0)
    code: str | None = option(None, "version of the code, where no git checkout tells it")

    network: str | None = option(
        None, "what the methods are compared with (default: the data's DDPM++)", group="what"
    )
    other: str | None = option(
        None, "whose samples are the reference (default: the data's NCSN++)", group="what"
    )
    maps: str | None = option(
        None, "the network's sensitivity maps (default: the shipped or computed ones)", group="what"
    )
    tuned: str | None = option(
        None, "folder of PSPC-Flex tuned to the network (default: the shipped one)", group="what"
    )
    joined: tuple[str, ...] = option(
        (), "join the source of what is tuned with images of this strategy alone (again for the "
        "other; default: the stored tables', or both)", group="what", choices=JOINED,
    )  # fmt: skip
    papers: bool | None = option(
        None,
        "published schedules for all, LS and ELS searched around them, and Lukoianov at 0.05 and "
        "0.02 (default: on data that are not embedded)",
        group="what",
    )
    method: tuple[str, ...] = option(
        (), "run this one alone (again for others)", group="what", choices=COMPARED
    )

    published: Path | None = option(
        None, "images that somebody generated with EDM, with their seeds: a folder or .npz",
        group="published", type=Path,
    )  # fmt: skip
    by: tuple[str, ...] = option(
        (), "the methods' source: an image's class, or all of the data (again for the other; "
        "default: class where images have one)", group="published", choices=("class", "all"),
    )  # fmt: skip
    picture: Path | None = option(
        None, "draw the first of them and of the methods' samples, as PNG", group="published",
        type=Path,
    )  # fmt: skip

    points: int | None = option(
        None, "noisy images per noise level (default: the stored tables', or 64)", group="much",
        type=int, least=1,
    )  # fmt: skip
    search_points: int | None = option(
        None,
        "the same for the stage schedules (default: the stored tables', or as many)",
        group="much",
        type=int,
        least=1,
    )
    samples: int | None = option(
        None, "samples per method (default: the stored tables', or 32)", group="much", type=int,
        least=1,
    )  # fmt: skip
    fewer: Mapping[str, int] = option(
        {}, "samples of a method, where fewer than of all (default: the stored tables')",
        group="much", metavar="METHOD=N",
    )  # fmt: skip
    part: int | None = option(
        None, "samples at a time, kept when done (default: all)", group="much", type=int, least=1
    )
    batch: int | None = option(
        None, "images per call (default: 16, on cuda 1000)", group="much", type=int, least=1
    )
    steps: int | None = option(
        None, "noise levels of the sampler (default: 18, 40 at 64 x 64)", group="much", type=int,
        least=2,
    )  # fmt: skip
    sources: Mapping[str, int] = option(
        {}, "images that a method sees, if not all (default: the stored tables', or els=1500)",
        group="much", metavar="METHOD=N",
    )  # fmt: skip
    map_images: int | None = option(
        None, "noisy images per map (default: the stored ones', or 16)", group="much", type=int,
        least=1,
    )  # fmt: skip

    arch: tuple[str, ...] = option(
        (), "train this one alone", group="training", choices=("ddpmpp", "ncsnpp")
    )
    train_minutes: float | None = option(
        None, "budget of each network (default: the recipe's images)", group="training", type=float,
        positive=True,
    )  # fmt: skip
    recipe: Mapping[str, Any] = option(
        {}, 'what else differs from the recipe, as JSON: {"batch": 256}', group="training",
        type=json.loads,
    )  # fmt: skip
    compiled: bool | None = option(
        None, "let torch.compile fuse the steps, which needs a compiler (default: on cuda)",
        group="training",
    )  # fmt: skip

    learn: tuple[str, ...] = option(
        (), "tune this alone: q, r or qr (again for others)", group="tuning", choices=LEARN
    )
    level: tuple[int, ...] = option(
        (), "tune, denoise or augment at this level alone, from 0, the highest (again for others)",
        group="tuning", type=int,
    )  # fmt: skip
    tune_steps: int = option(
        120, "steps of a tuning (default: 120)", group="tuning", type=int, least=1
    )
    tune_batch: int = option(
        64, "images of a step (default: 64)", group="tuning", type=int, least=1
    )
    tune_rate: float = option(
        0.05, "learning rate (default: 0.05)", group="tuning", type=float, positive=True
    )
    subset: int | None = option(
        None, "source images drawn for each step (default: all)", group="tuning", type=int, least=1
    )

    strategy: tuple[str, ...] = option(
        (), 'augment by this alone: "horizontal flips", "vertical flips", translations, rotations, '
        "scalings, synthetic or fresh (again for others)", group="augmentation", choices=AUGMENTED,
    )  # fmt: skip
    size: tuple[float, ...] = option(
        (), "images made for each of the source, 0.2 to 20 (again for others; default: all of "
        "figure 3 that there can be)", group="augmentation", type=float,
    )  # fmt: skip
    mask_level: tuple[int, ...] = option(
        (), "with the masks of this level (again for others; default: the level's own)",
        group="augmentation", type=int,
    )  # fmt: skip

    step: tuple[str, ...] = option(
        (), f"this step alone (again for others): {', '.join(RECIPE)}", group="recipe",
        choices=RECIPE,
    )  # fmt: skip

    score: tuple[str, ...] = option(
        (), "what makes samples, this alone, by its name in the table, such as beta-1-lambda-1-m-4 "
        "or rbf-1 (again for others)", group="distributional",
    )  # fmt: skip
    calls: tuple[int, ...] = option(
        (), "of so many calls alone, of those that the table has (again for others)",
        group="distributional", type=int,
    )  # fmt: skip

    benchmark: tuple[str, ...] = option(
        (),
        "a script of benchmarks/ with its arguments, in which {data}, {label}, {device}, {n} and "
        "{budget} are filled in (default: paths.py, on cuda kernels.py as well)",
        group="engine",
    )

    def __post_init__(self):
        on_cuda = as_device(self.device).type == "cuda"
        for name, made in self.__dataclass_fields__.items():
            value, told = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and "least" in made.metadata:
                as_whole_number(value, told, made.metadata["least"])
            if value is not None and "positive" in made.metadata:
                as_positive(value, told)
        if as_precision(self.precision) in ("tf32", "bf16") and not on_cuda:
            raise ValueError(f"precision: got {self.precision!r} on {self.device}, wanted cuda")
        for told, counts in (("sources", self.sources), ("fewer", self.fewer)):
            for name, n in counts.items():
                if name not in COMPARED and (told, name) != ("fewer", "blend"):
                    raise ValueError(f"{told}: got {name!r}, wanted one of {', '.join(COMPARED)}")
                as_whole_number(n, f"{told}: {name}", 1)
        settled = {
            "label": self.label or Path(os.path.abspath(self.data)).stem,
            "papers": self.data not in EMBEDDED if self.papers is None else self.papers,
            "batch": self.batch or (1000 if on_cuda else 16),
            "compiled": on_cuda if self.compiled is None else self.compiled,
        }
        usual = DEFAULTS | STORED.get(self.data, {})
        settled |= {name: getattr(self, name) or value for name, value in usual.items()}
        label = settled["label"]
        if Path(label).name != label or label == "..":
            raise ValueError(f"label: got {label!r}, wanted a name of a folder, not a path")
        if label in TAKEN and not label == self.data in NAMES:
            raise ValueError(
                f"label: got {label!r} for {self.data}, which is the name of another dataset or "
                "of the engine's tables, wanted --label NAME"
            )
        settled["out"] = self.out or ROOT / "results" / settled["label"]
        for name, value in settled.items():
            object.__setattr__(self, name, value)
