"""What is compared with what, on which data, how much of it, and where."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fpmc
from fpmc import data, diffusion, methods, networks, sensitivity
from fpmc.checks import as_whole_number
from fpmc.data import fingerprint
from fpmc.experiments.options import Options
from fpmc.experiments.packed import hash_for_rows
from fpmc.experiments.provenance import provenance
from fpmc.experiments.tables import Table, arrays, keep_arrays
from fpmc.methods.registry import METHODS
from fpmc.methods.schedules import published, published_for
from fpmc.networks.recipes import Recipe, recipe
from fpmc.source import to_float

__all__ = ["Job", "in_batches"]


class Job(Options):
    """A comparison: its options, and the data, networks and methods that they stand for."""

    @cached_property
    def dataset(self) -> data.Dataset:
        return data.load(self.data, self.root)

    @cached_property
    def images_hash(self) -> str:
        """Of the training images, as cards have it."""
        return fingerprint(self.dataset.train)

    @cached_property
    def data_hash(self) -> str:
        """Of the training and the held-out images."""
        return f"{self.images_hash[:8]}-{fingerprint(self.dataset.test)[:8]}"

    @cached_property
    def source(self) -> fpmc.Source:
        return fpmc.Source(self.dataset.train.to(self.device))

    @cached_property
    def parts(self) -> dict[str, fpmc.Source]:
        """The part of the source that a method sees."""
        made = {size: self.first(size) for size in set(self.sources.values())}
        return {name: made[size] for name, size in self.sources.items()}

    def first(self, size: int) -> fpmc.Source:
        """So many images of the source, or all, chosen by the seed: each part is in the larger."""
        n = len(self.source)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        return fpmc.Source(self.source.images[order[: min(size, n)].to(self.device)])

    def seen_by(self, method: str) -> fpmc.Source:
        """The part of the source that a method sees."""
        return self.parts.get(method, self.source)

    def gaussian(self, seen: fpmc.Source) -> Any:
        """The Wiener filter of a part of the source."""
        if seen not in self._gaussians:
            self._gaussians[seen] = methods.wiener(seen)
        return self._gaussians[seen]

    @cached_property
    def _gaussians(self) -> dict[fpmc.Source, Any]:
        return {}

    @property
    def bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.budget is None else int(self.budget * 2**30)

    @property
    def folder(self) -> Path:
        """Where networks trained here are, and maps computed here."""
        return self.out / "networks"

    def file(self, arch: str) -> str:
        """The data's own network of this architecture: a shipped one, or the one trained here.

        A shipped one stands for the shipped data alone, not for a folder of that name.
        """
        name = f"{self.data}/{arch}"
        return name if name in networks.SHIPPED else f"{self.folder / arch}.safetensors"

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
        """A network for the job's images, on its device.

        Raises:
            ValueError: If its card says that it was trained on other images, or does not say on
                which, and nobody named it.
        """
        network = networks.load(file, shape=self.dataset.train.shape[1:])
        official = file in networks.OFFICIAL or Path(file).suffix == ".pkl"  # they have no card
        trained_on = None if official else networks.card(file).get("images_hash")
        if trained_on not in (None, self.images_hash):
            raise ValueError(
                f"network: {file} was trained on other images than those of {self.data} now"
            )
        if trained_on is None and file not in (*networks.SHIPPED, self.network, self.other):
            raise ValueError(
                f"network: {file} does not say on which images it was trained: name it as "
                f"--network or --other if on those of {self.data}, or give another --label"
            )
        return network.to(self.device)

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
    def maps_hash(self) -> str:
        """Of the maps, the first 8 digits; "" if they are not there."""
        try:
            maps = self.sensitivity
        except FileNotFoundError:
            return ""
        levels = torch.tensor(list(maps), dtype=torch.float64)
        return fingerprint(torch.cat([levels, *(value.flatten() for value in maps.values())]))[:8]

    @cached_property
    def levels(self) -> list[float]:
        """The sampler's: as many as asked for, or as the published schedules have."""
        table = published(published_for(self.data), "pspc_square")
        return diffusion.edm_sigmas(self.steps or len(table)).tolist()

    @property
    def side(self) -> int:
        return min(self.dataset.train.shape[2:])

    @property
    def archs(self) -> tuple[str, ...]:
        """The networks to train: those that are not named."""
        own = (
            arch for arch, named in (("ddpmpp", self.network), ("ncsnpp", self.other)) if not named
        )
        return self.arch or tuple(own)

    def recipe_of(self, arch: str) -> Recipe:
        """How a network is trained; lists are taken for the tuples that a recipe has."""
        changes = {} if self.train_minutes is None else {"minutes": self.train_minutes}
        changes |= {k: tuple(v) if isinstance(v, list) else v for k, v in self.recipe.items()}
        try:
            return recipe(self.data, arch, **{"seed": self.seed, **changes})
        except TypeError as error:
            raise ValueError(f"recipe: got {changes} ({error})") from error

    def test(self, n: int) -> torch.Tensor:
        """The first held-out images, in [-1, 1]."""
        return to_float(self.dataset.test[:n]).to(self.device)

    def make(self, name: str, knob: Any, seen: fpmc.Source | None = None) -> diffusion.Denoiser:
        """A method with its patch size, threshold or schedule, called with a batch at a time.

        Args:
            name: Which method.
            knob: The patch size, threshold or schedule; None if it has none.
            seen: Its source; the part that it sees if left out.
        """
        seen = self.seen_by(name) if seen is None else seen
        if name == "wiener":
            return in_batches(self.gaussian(seen), self.batch)
        method, options = METHODS[name], {"budget": self.bytes}
        arguments = [self.sensitivity] if method.needs == "sensitivity" else []
        arguments += [knob] if method.knob else []
        if method.needs == "gaussian":
            options["gaussian"] = self.gaussian(seen)
        denoiser = method.maker(seen, *arguments, **options)
        if method.precision:
            denoiser = denoiser.with_precision(self.precision)
        return in_batches(denoiser, self.batch)

    def table(self, name: str, key: tuple[str, ...]) -> Table:
        """A table of the job's folder.

        Rows that say nothing of their networks and images are taken for this job's where these are
        the shipped ones under their own names, and cannot have been others.
        """
        theirs = {self.reference_file, self.other_file} <= set(networks.SHIPPED)
        trusted = theirs and self.label == self.data in data.NAMES
        return Table(self.out / f"{name}.csv", key, trusted=trusted, shards=self.shards)

    def held(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a file of the job's folder, and those that wait to be merged into it."""
        mine = arrays(self.shards / name) if self.shards else {}
        return arrays(self.out / name) | mine

    def keep(self, name: str, new: Mapping[str, np.ndarray]) -> None:
        """Put arrays into a file of the job's folder, or leave them to be merged into it."""
        keep_arrays((self.shards or self.out) / name, new)

    @property
    def chosen(self) -> list[int]:
        """The levels that are asked for, by number.

        Raises:
            ValueError: If there is no such level.
        """
        last = len(self.levels) - 1
        return [as_whole_number(i, "--level", 0, last) for i in self.level or range(last + 1)]

    def settings(self, method: str, n: int, *networks: str, **more: object) -> dict[str, object]:
        """What decides a row's numbers, beside its key.

        Args:
            method: Who answers; "" for a network.
            n: How many images are asked about.
            networks: Files of the networks that have a part in it.
            more: What else decides them, of :data:`fpmc.experiments.tables.SETTINGS`.
        """
        known = METHODS.get(method)
        return {
            "n": n,
            "n_source": len(self.seen_by(method)),
            "seed": self.seed,
            "precision": self.precision if known and known.precision else "exact",
            "data_hash": self.data_hash,
            "network_hash": "-".join(self.network_hash(file) for file in networks),
            "maps_hash": self.maps_hash if known and known.needs == "sensitivity" else "",
            **more,
        }

    def network_hash(self, file: str) -> str:
        """Of a network's weights; of those before it was packed, where its card tells them."""
        if file not in self._hashes:
            self._hashes[file] = hash_for_rows(self.load(file), file)
        return self._hashes[file]

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {}

    def provenance(self, method: str = "", seconds: float | None = None) -> dict[str, object]:
        """The columns that say how a row came about."""
        taken = "" if seconds is None else f"{seconds:.3g}"
        told = {"n_source": len(self.seen_by(method)), **provenance(self.device, self.code)}
        return {**told, "seconds": taken}


def in_batches(denoiser: diffusion.Denoiser, size: int) -> diffusion.Denoiser:
    """The same denoiser, called with a few images at a time."""

    @torch.no_grad()
    def call(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([denoiser(part, sigma) for part in z.split(size)])

    return call
