"""Every method's samples against those of a network that somebody else trained and ran.

Only its images are needed, and the seeds they started from: see :mod:`fpmc.experiments.generated`.
A network that was told a class is compared with methods whose source is that class.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

import fpmc
from fpmc import diffusion, metrics
from fpmc.data import fingerprint
from fpmc.experiments import contest, generated
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.experiments.samples import COPY, apart, settle
from fpmc.experiments.tables import arrays, keep_arrays, numbers
from fpmc.results import PUBLISHED, SETTINGS, title
from fpmc.source import to_float, to_uint8
from fpmc.storage import whole

__all__ = ["run"]

KEY = ("data", "reference", "method", "schedule", "by")
FILE = "published.npz"
SHOWN = 8
"""Columns of a picture."""


class Group(NamedTuple):
    """Images that have one source.

    Attributes:
        name: Their class, or "all".
        at: Their positions among the network's images, shape (m,).
        source: The training images that methods have for them.
    """

    name: str
    at: Int64[Tensor, " m"]
    source: fpmc.Source


class Asked(NamedTuple):
    """What is compared.

    Attributes:
        target: A network's images.
        other: For each of them another one of its class, the next; none if it is the only one.
        by: Whether methods have the class as their source, or all of the data.
        groups: The images by their source.
    """

    target: generated.Generated
    other: dict[int, int]
    by: str
    groups: list[Group]

    @property
    def n(self) -> int:
        """How many images are asked about: the first of the network's."""
        return sum(len(group.at) for group in self.groups)

    def first(self, n: int) -> "Asked":
        """The same about the first n images alone."""
        few = (Group(name, at[at < n], source) for name, at, source in self.groups)
        return self._replace(groups=[group for group in few if len(group.at)])

    def entry(self, who: contest.Contestant) -> str:
        """Where a contestant's measures are kept."""
        return f"{self.target.name}/{self.by}/{who.name}"


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing, a class at a time, and draw the picture if asked for.

    Raises:
        ValueError: If no images were named, they are of another shape than the data's, or there is
            no training image of one's class.
    """
    if job.published is None:
        raise ValueError("published: got none, wanted a folder or .npz of images and their seeds")
    labels = job.dataset.train_labels
    classes = None if labels is None else int(labels.max()) + 1
    target = generated.read(job.published, classes).first(job.samples)
    got, wanted = (tuple(a.shape[1:]) for a in (target.images, job.dataset.train))
    if got != wanted:
        raise ValueError(f"published: got images of shape {got}, wanted {wanted}, as {job.data}'s")
    usual = ("all",) if target.labels is None or labels is None else ("class",)
    for by in job.by or usual:
        asked = Asked(target, _others(target), by, _groups(job, target, by))
        with job.table("published", KEY).collected() as table:
            for who in tqdm(list(contest.contestants(job, {})), desc=f"published, by {by}"):
                head = (job.label, target.name, who.method, who.schedule, by)
                head = dict(zip(KEY, head, strict=True))
                part = _asked(job, asked, who)
                settings = _settings(job, part, who)
                if not table.has(head, settings):
                    each = _each(job, clock, part, who)
                    made = job.provenance(who.method) | {"n_source": settings["n_source"]}
                    table.add({**head, **settings, **_summary(each), **made})
        if job.picture:
            _draw(job, asked)


def _others(target: generated.Generated) -> dict[int, int]:
    given = target.classes
    alike = torch.zeros(len(target.images)) if given is None else given
    pairs = {}
    for label in alike.unique():
        at = torch.nonzero(alike == label).flatten()
        pairs |= dict(zip(at.tolist(), at.roll(-1).tolist(), strict=True)) if len(at) > 1 else {}
    return pairs


def _groups(job: Job, target: generated.Generated, by: str) -> list[Group]:
    if by == "all":
        return [Group("all", torch.arange(len(target.images)), job.source)]
    given, labels = target.classes, job.dataset.train_labels
    if given is None or labels is None:
        raise ValueError(f"by: got 'class', but {job.data} has no classes, wanted 'all'")
    source = fpmc.Source(job.source.images, labels=labels)
    return [
        Group(str(label), torch.nonzero(given == label).flatten(), source.of_class(label))
        for label in given.unique().tolist()
    ]


def _asked(job: Job, asked: Asked, who: contest.Contestant) -> Asked:
    """What is asked of a method: about fewer images where that was said."""
    return asked.first(job.fewer.get(who.method, asked.n))


def _settings(job: Job, asked: Asked, who: contest.Contestant) -> dict[str, object]:
    return job.settings(who.method, asked.n) | {
        "n_source": min(len(group.source) for group in asked.groups),
        "steps": len(job.levels),
        "network_hash": fingerprint(asked.target.images)[:8],
    }


def _each(
    job: Job, clock: Clock, asked: Asked, who: contest.Contestant
) -> Float[Tensor, "n measures"]:
    """What :data:`PUBLISHED` names, of every sample; what is in the file is taken from it."""
    settings, n = _settings(job, asked, who), asked.n
    decided = {name: settings[name] for name in ("network_hash", "steps")}
    settle(job, FILE, f"{asked.target.name}/{SETTINGS}", decided)
    each = job.held(FILE).get(asked.entry(who))
    if each is None or len(each) != n:
        each = np.full((n, len(PUBLISHED)), np.nan)
    for group in asked.groups:
        where = group.at.numpy()
        if np.isfinite(each[where, 0]).all():
            continue
        with clock.unit(who.name):
            start = job.levels[0] * asked.target.noise[group.at].to(job.device)
            denoiser = job.make(who.method, who.knob, group.source)
            drawn = diffusion.sample(denoiser, start, job.levels)
            each[where] = _measures(job, asked, group, drawn)
            _keep_images(job, asked, who, group, drawn, each[where, -1])
            job.keep(FILE, {asked.entry(who): each})
    return torch.from_numpy(each)


def _measures(
    job: Job, asked: Asked, group: Group, drawn: Float[Tensor, "m c h w"]
) -> Float[np.ndarray, "m measures"]:
    """Of each sample: to its image, to another of its class, to the nearest of the source."""
    images = to_float(asked.target.images).to(drawn)
    measures = (metrics.mse, metrics.r2)
    distance = metrics.nearest(drawn.clamp(-1, 1), group.source, budget=job.bytes)[0][:, 0]
    own = [apart(measure, drawn, images[group.at]) for measure in measures]
    other = np.full((len(measures), len(drawn)), np.nan)
    for i, at in enumerate(group.at.tolist()):
        if at in asked.other:
            image = images[asked.other[at]][None]
            other[:, i] = [measure(drawn[i : i + 1], image) for measure in measures]
    return np.array([*own, *other, distance.tolist()]).T


def _summary(each: Float[Tensor, "n measures"]) -> dict[str, object]:
    row = {}
    for name, values in zip(PUBLISHED, each.unbind(1), strict=True):
        known = metrics.Estimate.of_samples(values[values.isfinite()])
        row |= numbers(known, name) | {"n": len(each)}
    return row | {"n_other": int(each[:, 2].isfinite().sum())}


def _keep_images(
    job: Job,
    asked: Asked,
    who: contest.Contestant,
    group: Group,
    drawn: Float[Tensor, "m c h w"],
    distance: Float[np.ndarray, " m"],
) -> None:
    """The samples as pixels, for pictures: grey where they are copies that nobody may pass on."""
    pixels = to_uint8(drawn).cpu()
    if job.papers:
        pixels[torch.from_numpy(distance < COPY)] = 128
    keep_arrays(_pictures(job), {f"{asked.entry(who)}/{group.name}": pixels.numpy()})


def _pictures(job: Job):
    return job.runs / "published" / f"{job.label}.npz"


def _draw(job: Job, asked: Asked) -> None:
    """A picture: the network's first images, and each method's samples from the same noise."""
    import matplotlib.pyplot as plt  # here, since they make every job begin later

    from fpmc import plotting

    held, target = arrays(_pictures(job)), asked.target
    rows = {"network": to_float(target.images[:SHOWN])}
    for who in contest.contestants(job, {}):
        pixels = torch.zeros_like(target.images)
        groups = _asked(job, asked, who).groups
        parts = [held.get(f"{asked.entry(who)}/{group.name}", ()) for group in groups]
        if all(len(part) == len(group.at) for group, part in zip(groups, parts, strict=True)):
            for group, part in zip(groups, parts, strict=True):
                pixels[group.at] = torch.from_numpy(part)
            rows[title(who.method)] = to_float(pixels[:SHOWN])
    job.picture.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(), whole(job.picture) as beside:
        plotting.use_style()
        figure = plotting.image_grid(rows, width=6.4)
        figure.savefig(beside, format="png", dpi=150, bbox_inches="tight")
        plt.close(figure)
