"""The network's sensitivity maps at the sampler's noise levels, stored compactly.

Of every map the largest values are kept until they hold a share, and of the rest the sum: no set of
pixels for a threshold up to that share changes. The share is the schedule's threshold and
:data:`MORE`. Where the threshold is 1, so that PSPC-Flex looks at no map, it is
:data:`COARSE_SHARE`, and values have :data:`COARSE` binary digits. Where a schedule is yet
to be searched for it is what the largest threshold below 1 takes, and values have :data:`FINE`
digits; once it is found and stored in the package, maps made again are cut by it
(with as many digits, which may exchange a pixel for one that is as good but for rounding).
"""

from collections.abc import Callable

from torch import Tensor

from fpmc import sensitivity
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.experiments.tables import Table
from fpmc.methods.registry import METHODS
from fpmc.methods.schedules import FOUND, published_for, stored, threshold_schedule
from fpmc.sensitivity.gradients import maps_in_turn

__all__ = ["run"]

MORE = 0.05
COARSE_SHARE = 0.5
COARSE = 4
FINE = 5
SHARES = (0.5, 0.75, 0.95)
"""Shares of a map for which the table has the side of the square that holds them."""


def run(job: Job, clock: Clock) -> None:
    """Compute the levels that are missing, then write all of them.

    Args:
        job: What is compared with what.
        clock: The time there is.
    """
    x = job.dataset.test[: job.map_images].to(job.device)
    settings = job.settings("", len(x), job.reference_file)
    with job.table("maps", ("data", "network", "sigma")).collected() as table:
        _fill(job, clock, table, x, settings)


def _fill(job: Job, clock: Clock, table: Table, x: Tensor, settings: dict[str, object]) -> None:
    heads = {
        sigma: {
            "data": job.label,
            "network": job.called(job.reference_file),
            "sigma": f"{sigma:.6g}",
        }
        for sigma in job.levels
    }
    if job.maps_file.exists() and all(table.has(head, settings) for head in heads.values()):
        return
    options = {"seed": job.seed, "cache": job.runs / f"{job.label}-maps"}
    if job.bytes:
        options["budget"] = job.bytes
    maps, turns = {}, maps_in_turn(job.reference, job.levels, x, progress=True, **options)
    for sigma in job.levels:
        with clock.unit("maps"):
            maps[sigma] = next(turns)[1].cpu()
    share, digits = _kept(job)
    job.maps_file.parent.mkdir(parents=True, exist_ok=True)
    sensitivity.write(job.maps_file, maps, keep=share, digits=digits, images=len(x))
    for sigma, value in sensitivity.read(job.maps_file).items():
        sides = {
            f"side_{share:g}": f"{sensitivity.square_sides(maps[sigma], share).double().mean():.4g}"
            for share in SHARES
        }
        moved = (value - maps[sigma]).clamp(min=0).sum((1, 2)).max().item()
        row = {**sides, "kept": f"{share(sigma):.3g}", "moved": f"{moved:.3g}"}
        table.add({**heads[sigma], **settings, **row, **job.provenance()})


def _kept(job: Job) -> tuple[Callable[[float], float], Callable[[float], int | None]]:
    """The share of a map that is kept at a noise level, and the values' binary digits."""
    name = published_for(job.data) if job.papers else job.data
    if not job.papers and not (name in FOUND and stored(name)):
        largest = max(tau for tau in METHODS["pspc_flex"].tried if tau < 1)
        return lambda sigma: largest + MORE, lambda sigma: FINE
    tau = threshold_schedule(name, "pspc_flex", "thresholds")
    return (
        lambda sigma: COARSE_SHARE if tau(sigma) == 1 else tau(sigma) + MORE,
        lambda sigma: COARSE if tau(sigma) == 1 else None if job.papers else FINE,
    )
