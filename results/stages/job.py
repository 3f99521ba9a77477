"""What is compared with what, on which data, how much of it, and where."""

import datetime
import platform
import subprocess
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch

import fpmc
from fpmc import data, diffusion, methods, networks, sensitivity
from fpmc.source import to_float

__all__ = ["SMALL", "Job", "in_batches"]

ROOT = Path(__file__).parents[2]
LARGE = {"ffhq64": 40, "afhqv2-64": 40}
"""Noise levels of the sampler where they are not 18."""
COLLECTIONS = ("optimal", "pspc_square", "pspc_flex", "ls", "lukoianov")
"""The methods that have a precision; all else is exact."""
SMALL = ("digits", "photos", "photos32")
"""Datasets on which every knob is searched in full; elsewhere near the published schedule."""


@dataclass(frozen=True)
class Job:
    """What is compared with what, on which data and how much of it.

    Attributes:
        data: Name or path of a dataset.
        out: Folder of the tables.
        label: What the tables call the data.
        root: Where datasets lie.
        network: What the methods are compared with; None for the data's DDPM++, see :meth:`file`.
        other: Whose samples are the reference; None for the data's NCSN++.
        maps: The network's sensitivity maps: a file, or the name of a shipped network; None for
            those that belong to the network.
        points: Noisy images per noise level.
        searched: The same for the search; None for as many.
        samples: Samples per method.
        part: Samples at a time; None for all.
        batch: Images per call.
        sources: {method: source images that it sees}, for those that do not see all.
        papers: Whether the contestants are the papers' for large data: see
            :mod:`stages.contest`.
        only: The methods to run; none for all.
        steps: The sampler's noise levels; None for the data's own number.
        budget: Bytes of working memory of a call; None for the package's own.
        runs: Folder of what is large and no result: states of training, single maps.
        seed: Of every draw.
        device: "cpu" or "cuda".
        precision: What collections are asked to be computed in, where :func:`fpmc.engine.denoise`
            has a choice: squares and whole images on a CPU are exact whatever this is.
        code: The code's version, if there is no git checkout to ask.
    """

    data: str
    out: Path
    label: str
    root: str | None = None
    network: str | None = None
    other: str | None = None
    maps: str | None = None
    points: int = 64
    searched: int | None = None
    samples: int = 32
    part: int | None = None
    batch: int = 16
    sources: dict[str, int] = field(default_factory=lambda: {"els": 1_500})
    papers: bool = False
    only: tuple[str, ...] = ()
    steps: int | None = None
    budget: int | None = None
    runs: Path = ROOT / "runs"
    seed: int = 0
    device: str = "cpu"
    precision: str = "exact"
    code: str | None = None

    @cached_property
    def dataset(self) -> data.Dataset:
        return data.load(self.data, self.root)

    @cached_property
    def source(self) -> fpmc.Source:
        return fpmc.Source(self.dataset.train.to(self.device))

    @cached_property
    def parts(self) -> dict[str, fpmc.Source]:
        """The part of the source that a method sees, chosen by the seed."""
        n = len(self.source)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        return {
            name: fpmc.Source(self.source.images[order[: min(size, n)].to(self.device)])
            for name, size in self.sources.items()
        }

    def seen_by(self, method: str) -> fpmc.Source:
        return self.parts.get(method, self.source)

    @cached_property
    def gaussian(self):
        return methods.wiener(self.source)

    @property
    def folder(self) -> Path:
        """Where networks trained here are, and maps computed here."""
        return self.out / "networks"

    def file(self, arch: str) -> str:
        """The data's own network of this architecture: a shipped one, or the one trained here."""
        names = (f"{name}/{arch}" for name in (self.label, self.data))
        shipped = (name for name in names if name in networks.SHIPPED)
        return next(shipped, f"{self.folder / arch}.safetensors")

    @property
    def reference_file(self) -> str:
        return self.network or self.file("ddpmpp")

    @property
    def other_file(self) -> str:
        return self.other or self.file("ncsnpp")

    def called(self, network: str) -> str:
        """What the tables call a network."""
        path = Path(network)
        return f"{self.label}/{path.stem}" if path.parent == self.folder else network

    def load(self, file: str) -> networks.Preconditioned:
        """A network for the job's images, on its device."""
        return networks.load(file, shape=self.dataset.train.shape[1:]).to(self.device)

    @cached_property
    def reference(self) -> networks.Preconditioned:
        return self.load(self.reference_file)

    @cached_property
    def other_network(self) -> networks.Preconditioned:
        return self.load(self.other_file)

    @property
    def maps_file(self) -> Path:
        """Where maps computed here are kept."""
        if self.maps and Path(self.maps).suffix == ".npz":
            return Path(self.maps)
        return self.folder / f"{Path(self.reference_file).stem}.npz"

    @cached_property
    def sensitivity(self):
        named = self.maps or self.reference_file
        if named in networks.SHIPPED:
            return sensitivity.load(named)
        return sensitivity.read(self.maps_file)

    @cached_property
    def levels(self) -> list[float]:
        return diffusion.edm_sigmas(self.steps or LARGE.get(self.data, 18)).tolist()

    @property
    def side(self) -> int:
        return min(self.dataset.train.shape[2:])

    def test(self, n: int) -> torch.Tensor:
        return to_float(self.dataset.test[:n]).to(self.device)

    def method(self, name: str, knob) -> diffusion.Denoiser:
        """A method with its patch size, threshold or schedule, called with a batch at a time."""
        source, options = self.seen_by(name), {"budget": self.budget}
        made = {
            "optimal": lambda: methods.optimal(source, **options),
            "wiener": lambda: self.gaussian,
            "pspc_square": lambda: methods.pspc_square(source, knob, **options),
            "pspc_flex": lambda: methods.pspc_flex(source, self.sensitivity, knob, **options),
            "ls": lambda: methods.ls(source, knob, **options),
            "els": lambda: methods.els(source, knob, **options),
            "lukoianov": lambda: methods.lukoianov(source, knob, gaussian=self.gaussian, **options),
        }
        denoiser = made[name]()
        if name in COLLECTIONS:
            denoiser = denoiser.with_precision(self.precision)
        return in_batches(denoiser, self.batch)

    def provenance(self, method: str = "", seconds: float | None = None) -> dict[str, object]:
        """The columns that say how a row came about."""
        on_cuda = torch.device(self.device).type == "cuda"
        where = torch.cuda.get_device_name(self.device) if on_cuda else platform.machine()
        return {
            "n_source": len(self.seen_by(method)),
            "seed": self.seed,
            "device": where,
            "precision": self.precision if method in COLLECTIONS else "exact",
            "version": fpmc.__version__,
            "torch": torch.__version__,
            "code": self.code or _commit(),
            "date": datetime.date.today().isoformat(),
            "seconds": "" if seconds is None else f"{seconds:.3g}",
        }


def in_batches(denoiser: diffusion.Denoiser, size: int) -> diffusion.Denoiser:
    """The same denoiser, called with a few images at a time."""

    @torch.no_grad()
    def call(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([denoiser(part, sigma) for part in z.split(size)])

    return call


@cache
def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        said = ""
    return said or "unknown"
