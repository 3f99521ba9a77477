"""The open axes' forms at one noise level: each a few lines that change one thing of a collection.

A form's candidates are compared on validation images, and what it answers to others is kept.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

import fpmc
from fpmc import diffusion, kernels, mixtures
from fpmc.blends.blend import nonnegative
from fpmc.collection import FPMC
from fpmc.experiments.job import Job, in_batches
from fpmc.experiments.tuning import HeldOut, base
from fpmc.levels import Constant
from fpmc.mixtures import Mixture
from fpmc.operators import Box, Dense, Ones, Operator
from fpmc.source import to_float
from fpmc.widths import Wide

__all__ = ["AXES", "MIXTURES", "PARTS", "STEPS", "Found", "Level", "combined", "fitted"]

FIRST_SEED = 800
"""Of the noise, counted from a thousand times the job's seed; validation has the next hundred."""
PARTS = ("validation", "test")
MIXTURES = {"digits": {4: 40, 6: 40, 8: 30}, "photos": {5: 60, 8: 40, 16: 8}}
"""{side: components} that are fitted."""
STEPS, DRAWS = 4, 8
"""Of a fit, and perturbations that a smoothed denoiser is the mean over."""
SHARES = (0.02, 0.07, 0.2, 0.5)
"""Of the source's covariance, that are tried as a point's."""

Answer = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]


class Found(NamedTuple):
    """An axis' answers.

    Attributes:
        chosen: What was chosen on validation images.
        answers: {"validation": answers, "test": answers}.
    """

    chosen: str
    answers: Mapping[str, Float[Tensor, "b c h w"]]


class Level:
    """Noisy images of a level, the network's answers, and each axis' answers."""

    def __init__(self, job: Job, held: HeldOut, i: int, fitted: Callable[[], Mapping[int, Any]]):
        self.job, self.source, self.sigma, self._fitted = job, job.source, job.levels[i], fitted
        self.z, self.target, self._found, self.seconds = {}, {}, {}, {}
        for j, part in enumerate(PARTS):
            x = to_float(getattr(held, part)).to(job.device)
            seed = job.seed * 1000 + FIRST_SEED + 100 * (1 - j) + i
            self.z[part] = diffusion.add_noise(x, self.sigma, seed)
            self.target[part] = held.network(self.z[part], self.sigma)

    def found(self, axis: str) -> Found:
        """The axis' answers; computed once."""
        if axis not in self._found:
            start = time.perf_counter()
            self._found[axis] = AXES[axis](self)
            self.seconds[axis] = time.perf_counter() - start
        return self._found[axis]

    def errors(self, found: Found, part: str = "test") -> Float[Tensor, " b"]:
        """Each image's squared error to the network, per dimension."""
        away = found.answers[part] - self.target[part]
        return away.double().square().flatten(1).mean(1)

    @torch.no_grad()
    def choose(self, candidates: Mapping[str, Answer]) -> Found:
        """The candidate with the lowest error on validation images."""
        given = {name: answer(self.z["validation"]) for name, answer in candidates.items()}
        each = {name: Found(name, {"validation": value}) for name, value in given.items()}
        best = self.best(each).chosen
        test = candidates[best](self.z["test"])
        return Found(best, {"validation": given[best], "test": test})

    def blend(self, axes: Mapping[str, Found]) -> Found:
        """The sum with the weights ≥ 0 that are nearest the network on validation images."""
        each = {p: torch.stack([one.answers[p] for one in axes.values()], -1) for p in PARTS}
        weights = self.weights(axes)
        answers = {p: value @ weights.to(value) for p, value in each.items()}
        told = zip(weights.tolist(), axes, strict=True)
        return Found(" + ".join(f"{w:.2f} {a}" for w, a in told if w >= 0.005), answers)

    def weights(self, axes: Mapping[str, Found], least: float = 0.0) -> Float[Tensor, " m"]:
        """Those of :func:`fpmc.blends.blend.nonnegative` on validation images, float64."""
        answers = [one.answers["validation"].flatten() for one in axes.values()]
        return nonnegative(torch.stack(answers, 1), self.target["validation"].flatten(), least)

    def collection(self, queries, responses, **options) -> Answer:
        """A collection at this level."""
        made = FPMC(queries, responses, self.source, budget=self.job.bytes, **options)
        return self.at(made.with_precision(self.job.precision))

    def at(self, denoiser: diffusion.Denoiser) -> Answer:
        """A denoiser at this level, asked a batch at a time."""
        call = in_batches(denoiser, self.job.batch)
        return lambda z: call(z, self.sigma)

    @cached_property
    def masks(self) -> tuple[Operator, Operator]:
        """Q and R of PSPC-Flex at this level."""
        return base(self.job, "pspc_flex").operators(self.sigma)

    @cached_property
    def mixtures(self) -> dict[str, Found]:
        """What the mixture on patches of each side answers."""
        return self.each({f"p = {p}": self.at(one) for p, one in self._fitted().items()})

    @cached_property
    def squares(self) -> dict[str, Found]:
        """What PSPC-Square answers, at four sides around the schedule's."""
        shape = self.source.shape[1:]
        p = base(self.job, "pspc_square").operators(self.sigma)[0].p
        sides = [q for q in (p - 2, p, p + 2, p + 4) if 1 <= q <= min(shape)]
        return self.each({f"p = {q}": self.collection(*2 * [Box(shape, q)]) for q in sides})

    @property
    def whole(self) -> Ones:
        return Ones(self.source.shape[1:])

    def each(self, candidates: Mapping[str, Answer]) -> dict[str, Found]:
        """What each of them answers."""
        return {name: self.choose({name: answer}) for name, answer in candidates.items()}

    def best(self, candidates: Mapping[str, Found]) -> Found:
        """The one with the lowest error on validation images."""
        return min(candidates.values(), key=lambda one: self.errors(one, "validation").mean())


def _only(name: str, make: Callable[[Level], Answer]) -> Callable[[Level], Found]:
    return lambda level: level.choose({name: make(level)})


def _tuned(level: Level) -> Answer:
    name = f"{level.job.data}/ddpmpp/pspc_flex"
    found = fpmc.finetuning.load(name, level.source, budget=level.job.bytes)
    return level.at(found.with_precision(level.job.precision))


def _whitened(level: Level) -> Found:
    gaussian = level.job.gaussian(level.source)
    return level.choose(
        {
            f"t = {t:g}": level.collection(level.whole, level.whole, features=gaussian.whitening(t))
            for t in (0.01, 0.05, 0.2)
        }
    )


def _principal(level: Level) -> Found:
    gaussian = level.job.gaussian(level.source)
    sizes = [r for r in (8, 32, 128) if r < len(gaussian.eigenvalues)]
    return level.choose(
        {
            f"r = {r}": level.collection(Ones((1, r)), level.whole, features=gaussian.principal(r))
            for r in sizes
        }
    )


def _isotropic(level: Level) -> Found:
    """Weights at a larger σ, and a part of z."""
    optimal = in_batches(fpmc.methods.optimal(level.source, budget=level.job.bytes), 64)

    def wide(share: float) -> Answer:
        tau = share * level.sigma
        gain = share**2 / (1 + share**2)
        return lambda z: gain * z + (1 - gain) * optimal(z, (level.sigma**2 + tau**2) ** 0.5)

    return level.choose({f"tau = {share:g} sigma": wide(share) for share in (0.1, 0.25, 0.5, 1)})


def _shaped(level: Level) -> Found:
    """Weights by whitened distances, and the Wiener filter of what they leave."""
    job, gaussian = level.job, level.job.gaussian(level.source)

    def wide(t: float) -> Answer:
        one = Wide(level.source, t, gaussian=gaussian, budget=job.bytes)
        return level.at(one.with_precision(job.precision))

    return level.choose({f"t = {t:g}": wide(t) for t in SHARES})


def _smoothed(level: Level) -> Found:
    """The mean of the optimal denoiser over perturbed z, the same perturbations for all."""
    optimal = level.at(fpmc.methods.optimal(level.source, budget=level.job.bytes))

    def smooth(share: float) -> Answer:
        def answer(z: Tensor) -> Tensor:
            moved = (diffusion.add_noise(z, share * level.sigma, seed) for seed in range(DRAWS))
            return sum(optimal(one) for one in moved) / DRAWS

        return answer

    return level.choose({f"s = {share:g} sigma": smooth(share) for share in (0.25, 0.5, 1)})


def _kernel(bend: Callable, values: tuple[float, ...], name: str) -> Callable[[Level], Found]:
    def form(level: Level) -> Found:
        queries, responses = level.masks
        return level.choose(
            {
                f"{name} = {value:g}": level.collection(bend(Constant(queries), value), responses)
                for value in values
            }
        )

    return form


def _cells(side: int) -> Callable[[Level], Found]:
    """PSPC-Flex's masks of one pixel in a cell, which answers for all pixels of the cell."""

    def form(level: Level) -> Found:
        h, w = level.source.shape[1:]
        rows, columns = (torch.arange(n) // side for n in (h, w))
        cells = rows[:, None] * -(-w // side) + columns
        k = int(cells.max()) + 1
        members = torch.stack([cells == cell for cell in range(k)])
        middle = [int(one.flatten().nonzero().median()) for one in members]
        queries = level.masks[0].dense()
        chosen = queries[middle] if len(queries) > 1 else queries.repeat(k, 1, 1)
        return level.choose({f"K = {k}": level.collection(Dense(chosen), Dense(members.double()))})

    return form


def _gated(level: Level) -> Found:
    """Of two sides the small one where z varies more than so many σ², the large one elsewhere."""
    local = {part: _variance(z) / level.sigma**2 for part, z in level.z.items()}
    cuts = local["validation"].quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])).tolist()
    pairs = itertools.combinations(level.squares.items(), 2)

    def gated(small: Found, large: Found, cut: float) -> dict[str, Tensor]:
        pairs = ((part, small.answers[part], large.answers[part]) for part in PARTS)
        return {part: torch.where(local[part] > cut, a, b) for part, a, b in pairs}

    candidates = {}
    for ((small, a), (large, b)), cut in itertools.product(pairs, cuts):
        name = f"{small} above {cut:.2f}, {large} below"
        candidates[name] = Found(name, gated(a, b, cut))
    return level.best(candidates)


def _variance(z: Float[Tensor, "b c h w"], p: int = 3) -> Float[Tensor, "b 1 h w"]:
    """Z's variance in squares of side p, mean over channels."""
    mean, square = (avg_pool2d(a, p, 1, p // 2, count_include_pad=False) for a in (z, z.square()))
    return (square - mean.square()).mean(1, keepdim=True)


def combined(level: Level) -> dict[str, Found]:
    """What the combination is a sum of."""
    names = ("flex", "tuned", "wiener", "source width")
    each = {f"mixture {name}": one for name, one in level.mixtures.items()}
    return {name: level.found(name) for name in names} | each


def fitted(job: Job) -> dict[int, Mixture]:
    """The mixtures of a job's source, {side: mixture}."""
    sides = MIXTURES.get(job.data, {job.side: 12})
    return {p: mixtures.fit(job.source, p, m, steps=STEPS, seed=job.seed) for p, m in sides.items()}


AXES: dict[str, Callable[[Level], Found]] = {
    "flex": _only("", lambda level: level.collection(*level.masks)),
    "tuned": _only("", _tuned),
    "optimal": _only("", lambda level: level.collection(level.whole, level.whole)),
    "wiener": _only("", lambda level: level.at(level.job.gaussian(level.source))),
    "whitened keys": _whitened,
    "principal keys": _principal,
    "isotropic width": _isotropic,
    "source width": _shaped,
    "smoothed": _smoothed,
    "mixture": lambda level: level.best(level.mixtures),
    "mixtures": lambda level: level.blend(level.mixtures),
    "student": _kernel(kernels.student, (8, 64), "nu"),
    "laplace": _kernel(kernels.laplace, (4, 16), "s"),
    "cells of 2": _cells(2),
    "cells of 4": _cells(4),
    "scales": lambda level: level.blend(level.squares),
    "gate": _gated,
    "combination": lambda level: level.blend(combined(level)),
}
"""{axis: its form}, in the order of the tables."""
