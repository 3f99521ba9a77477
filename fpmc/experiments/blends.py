"""The combination at all levels of the sampler: its weights, its error to the network, its folder.

As in :mod:`fpmc.experiments.axes`, weights are found on one part of the held-out images, and the
rows are of another. Mixtures are used as they are kept, with the directions of most variance. The
blend is left in the job's folder of runs, in the form that :func:`fpmc.blends.load` reads.
"""

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from fpmc import blends
from fpmc.blends import parts
from fpmc.blends.parts import Fitted
from fpmc.experiments import axes
from fpmc.experiments.clock import Clock
from fpmc.experiments.forms import MIXTURES, STEPS, Found, Level, combined
from fpmc.experiments.job import Job
from fpmc.experiments.tables import numbers
from fpmc.experiments.tuning import HeldOut, schedule_of
from fpmc.metrics import Estimate

__all__ = ["run"]

KEY = ("data", "network", "z", "sigma", "n_source")
LEAST = 0.02
"""A share of the largest weight: what has less is left out of a level."""
RANKS = {"photos": {5: 36, 8: 64, 16: 128}}
"""{side: directions} that are kept of each covariance; all where none are named."""


def run(job: Job, clock: Clock) -> None:
    """Compute the rows that are missing, and keep the blend once all of them are there.

    Raises:
        ValueError: If the data have no tuned collection.
    """
    axes.refuse_untuned(job)
    held, made = HeldOut(job), cache(partial(kept, job))
    told = axes.settings(job, held)
    with job.table("blends", KEY).collected() as table:
        for i in tqdm(list(job.chosen), desc="blends"):
            head = axes.head(job, i, KEY)
            if table.has(head, told):
                continue
            with clock.unit("blend"):
                level = Level(job, held, i, made)
                row, used = _row(level), combined(level)
                seconds = sum(level.seconds.values())
                shares = {"share": used["source width"].chosen.removeprefix("t = ")}
                table.add({**head, **told, **row, **shares, **job.provenance("pspc_flex", seconds)})
        heads = [axes.head(job, i, KEY) for i in range(len(job.levels))]
        if all(table.has(head, told) for head in heads):
            _keep(job, [table[head] for head in heads])


def folder_of(job: Job) -> Path:
    """Where the blend is left."""
    return job.runs / "blends" / job.label / "ddpmpp"


def kept(job: Job) -> dict[int, Fitted]:
    """The mixtures of the job's source, as they are kept."""
    made = (parts.make(one, job.source, job.runs, job.bytes) for one in _mixtures(job).values())
    return dict(zip(MIXTURES.get(job.data, {job.side: 12}), made, strict=True))


def _mixtures(job: Job) -> dict[str, parts.Recipe]:
    """{name: recipe} of the mixtures."""
    sides, ranks = MIXTURES.get(job.data, {job.side: 12}), RANKS.get(job.data, {})
    same = {"kind": "fitted", "steps": STEPS, "seed": job.seed}
    return {
        f"mixture p = {p}": {**same, "p": p, "m": m, "rank": ranks.get(p)} for p, m in sides.items()
    }


def _row(level: Level) -> dict[str, object]:
    """Weights, the error, and what it is below PSPC-Flex's and the tuned one's."""
    each = combined(level)
    weights = level.weights(each, LEAST)
    answers = {p: _sum(each, weights, p) for p in ("validation", "test")}
    used = {name: a for name, a in zip(each, weights.tolist(), strict=True) if a}
    blend = Found(json.dumps(used), answers)
    error, flex, tuned = (level.errors(one) for one in (blend, each["flex"], each["tuned"]))
    return {
        "chosen": blend.chosen,
        "validation": f"{level.errors(blend, 'validation').mean().item():.6g}",
        **numbers(Estimate.of_samples(error)),
        **numbers(Estimate.of_samples(flex - error), "gain"),
        **numbers(Estimate.of_samples(tuned - error), "gain_tuned"),
    }


def _sum(each: Mapping[str, Found], weights: Tensor, part: str) -> Tensor:
    pairs = zip(weights.tolist(), each.values(), strict=True)
    return sum(a * one.answers[part] for a, one in pairs if a)


def _keep(job: Job, rows: list[dict[str, str]]) -> None:
    """Keep the blend that the rows tell of."""
    weights = dict(zip(job.levels, (json.loads(row["chosen"]) for row in rows), strict=True))
    shares = dict(zip(job.levels, (float(row["share"]) for row in rows), strict=True))
    network = job.reference_file
    recipes = {
        "flex": {
            "kind": "pspc_flex",
            "maps": job.maps or network,
            "schedule": schedule_of(job, "pspc_flex"),
        },
        "tuned": {"kind": "tuned", "collection": f"{network}/pspc_flex"},
        "wiener": {"kind": "wiener"},
        "source width": {"kind": "wide", "shares": {repr(s): t for s, t in shares.items()}},
        **_mixtures(job),
    }
    folder = folder_of(job)
    made = {name: parts.make(one, job.source, folder, job.bytes) for name, one in recipes.items()}
    same = ("data", "network", "n", "seed", "precision", "data_hash", "network_hash", "maps_hash")
    same += ("validation_n", "version", "torch", "code", "date")
    card = {name: rows[0][name] for name in same} | {
        "command": f"python -m fpmc.experiments --data {job.data} --stage blends "
        f"--points {job.points}",
        "least": LEAST,
    }
    blends.save(blends.Blend(made, weights), folder, recipes, card)
