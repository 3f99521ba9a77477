"""Error to a network against the time of a call, for every method and what makes it cheaper.

    python benchmarks/pareto.py [--data photos32] [--n 10000] [--out pareto.csv]
    python benchmarks/pareto.py --data cifar10 --root FOLDER --network NETWORK --maps MAPS

Every method answers the same noisy images, a few a call, in turn: one call of each, then the next
of each. The time is the median over calls, for an image, and its ratio is to the optimal denoiser's
in the same run. Beside the methods as they are stand

- the same with fewer estimators, with keys of few numbers, in float32, or on a random part of the
  source;
- truncations to each noisy image's nearest source images: exact ones and approximate ones of
  FAISS, and GoldDiff's rule (neighbours.py). What they find is asked by the same engine. What is
  built once (indices, means over blocks, statistics) is not in their times;
- mixtures of Gaussians, and the network itself.

The claim to test: no truncation is on the front, the points that no other beats in both error and
time. On one thread, times are the processor's (see common.py).
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from common import add_data, fastest, named, parse, show, write
from estimators import cells, clusters, strided
from neighbours import Golden, Nearest, RandomPart, Truncated, certificate

import fpmc
from fpmc import FPMC, Source, diffusion, methods, mixtures, networks, sensitivity
from fpmc.methods.schedules import SIDES
from fpmc.metrics import Estimate
from fpmc.operators import Box, Ones
from fpmc.source import to_float
from fpmc.storage import home

BASES = ("optimal", "PSPC-Square", "PSPC-Flex")
"""The methods that are truncated."""


class Entrant(NamedTuple):
    """Who answers.

    Attributes:
        method: The method.
        way: "as it is", or what makes it cheaper.
        answer: From noisy images to answers, at the noise level at hand.
        n: Source images in a sum, at most; NaN if there is no such sum.
        k: Estimators; NaN if there are none.
    """

    method: str
    way: str
    answer: Callable
    n: float = math.nan
    k: float = math.nan


class Field:
    """All who answer, made once for all noise levels where that is possible."""

    def __init__(self, options, train, held_out):
        self.options, self.source = options, Source(train)
        self.few = Source(train[: options.few])
        self.collection = partial(FPMC, budget=options.budget)
        self.gaussian = methods.wiener(self.source)
        self.network = networks.load(options.network, shape=train.shape[1:])
        self.maps = self._maps(held_out)
        n = len(self.source)
        self.parts = {k: RandomPart(self.source, k).source for k in (n // 10, n // 3)}
        self.exact = Nearest(self.source, 1)
        self.lists = Nearest(self.source, 1, round(n**0.5), options.probes)
        self.golden = Golden(self.source, n // 20, n // 10)
        sides = [p for p in options.patches if p <= min(train.shape[2:])]
        self.mixtures = {p: mixtures.fit(self.source, p, 40, steps=4) for p in sides}

    def _maps(self, held_out):
        options = self.options
        if options.maps:
            return sensitivity.load(options.maps)
        kept = {"seed": 0, "cache": home() / "maps", "progress": True}
        return sensitivity.maps_over(self.network, options.sigma, held_out, **kept)

    def operators(self, sigma):
        """Q and R of those that are truncated, and of LS."""
        schedule, source = self.options.schedule, self.source
        made = {
            "optimal": methods.optimal(source),
            "PSPC-Square": methods.pspc_square(source, schedule),
            "PSPC-Flex": methods.pspc_flex(source, self.maps, schedule),
            "LS": methods.ls(source, schedule),
        }
        return {name: one.operators(sigma) for name, one in made.items()}

    def at(self, sigma):
        """All who answer at a noise level, the optimal denoiser first."""
        pairs = self.operators(sigma)
        return [
            *self._as_they_are(sigma, pairs),
            *self._fewer_estimators(pairs),
            *self._other_keys(pairs),
            *self._parts(pairs),
            *(one for name in BASES for one in self._truncated(name, pairs[name])),
            *self._golden(sigma, pairs),
        ]

    def _as_they_are(self, sigma, pairs):
        few, schedule, n = self.few, self.options.schedule, len(self.source)
        for name, pair in pairs.items():
            yield Entrant(name, "as it is", self.collection(*pair, self.source), n, pair[0].k)
        yield Entrant("Wiener", "as it is", self.gaussian)
        options = {"gaussian": self.gaussian, "budget": self.options.budget}
        lukoianov = methods.lukoianov(few, schedule, **options)
        k = math.prod(few.shape)
        yield Entrant("Lukoianov", "fewer source images", lukoianov, len(few), k)
        els = methods.els(few, schedule, budget=self.options.budget)
        yield Entrant("ELS", "fewer source images", els, len(few))
        for p, mixture in self.mixtures.items():
            yield Entrant("mixture", f"p = {p}", mixture)
        yield Entrant("network", "as it is", self.network)

    def _fewer_estimators(self, pairs):
        masks = pairs["PSPC-Flex"][0].dense()
        if len(masks) == 1:
            return
        thinned = {f"cells of {side}": cells(masks, side) for side in (2, 4, 8)}
        thinned |= {f"stride {step}": strided(masks, step) for step in (2, 4)}
        thinned["clusters"] = clusters(masks, thinned["cells of 4"][0].k)
        for way, pair in thinned.items():
            yield self._entrant("PSPC-Flex", way, pair)
        shape, p = self.source.shape[1:], pairs["PSPC-Square"][0].p
        sides = [q for q in (p - 2, p, p + 2) if 1 <= q <= min(shape)]
        each = [self.collection(Box(shape, q), Box(shape, q), self.source) for q in sides]
        k = sum(Box(shape, q).k for q in sides)
        yield Entrant("PSPC-Square", "three sides", partial(_mean, each), len(self.source), k)

    def _other_keys(self, pairs):
        whole = pairs["optimal"][0]
        for r in (8, 128):
            if r < len(self.gaussian.eigenvalues):
                keys = {"features": self.gaussian.principal(r)}
                yield self._entrant("optimal", f"keys of {r}", (Ones((1, r)), whole), **keys)
        flex = self.collection(*pairs["PSPC-Flex"], self.source).with_precision("float32")
        yield self._entrant("PSPC-Flex", "float32", pairs["PSPC-Flex"])._replace(answer=flex)

    def _entrant(self, method, way, pair, **options):
        collection = self.collection(*pair, self.source, **options)
        return Entrant(method, way, collection, len(self.source), pair[0].k)

    def _parts(self, pairs):
        for name in BASES:
            for k, part in self.parts.items():
                answer = self.collection(*pairs[name], part)
                yield Entrant(name, "random part", answer, k, pairs[name][0].k)

    def _truncated(self, name, pair):
        n = len(self.source)
        sizes = (10, n // 100, n // 10) if name == "optimal" else (n // 100, n // 10, n // 3)
        wanted = [("nearest, exact", self.exact, k) for k in sizes]
        wanted += [("nearest, lists", self.lists, n // 10)]
        for way, index, k in wanted:
            yield self._cut(name, way, pair, index.of(min(max(k, 1), n)), k)

    def _golden(self, sigma, pairs):
        n, few = len(self.source), self.few
        rule, larger = self.golden, self.golden.of(n // 6, n // 3)
        drawn = self.golden.of(n // 20, n // 10, drawn=True)
        masked = methods.lukoianov(few, self.options.schedule, gaussian=self.gaussian)
        pairs = {**pairs, "Lukoianov": masked.operators(sigma)}
        asked = [(name, "GoldDiff's rule", rule) for name in (*BASES, "Lukoianov")]
        asked += [(name, "GoldDiff's rule, larger", larger) for name in BASES[1:]]
        asked += [("PSPC-Flex", "GoldDiff's rule, drawn", drawn)]
        for name, way, choose in asked:
            yield self._cut(name, way, pairs[name], choose, choose.sizes(sigma)[1])

    def _cut(self, name, way, pair, choose, kept):
        answer = Truncated(partial(self.collection, *pair), self.source, choose)
        return Entrant(name, way, answer, kept, pair[0].k)


def _mean(denoisers, z, sigma):
    return sum(one(z, sigma) for one in denoisers) / len(denoisers)


@torch.no_grad()
def measure(field, x, sigma, b):
    """A row for each who answers at a noise level."""
    z = diffusion.add_noise(x, sigma, 0)
    entrants = field.at(sigma)
    answers, seconds = [[] for _ in entrants], [[] for _ in entrants]
    for one in entrants:
        one.answer(z[:1], sigma)  # compiles, and makes what a level needs
    for part in z.split(b):
        for one, given, taken in zip(entrants, answers, seconds, strict=True):
            call = partial(_kept, given, one.answer, part, sigma)
            taken.append(fastest(call, 1, warm=False) / len(part))
    answers = [torch.cat(given).double() for given in answers]
    return _rows(field, entrants, answers, seconds, z, sigma)


def _kept(answers, answer, z, sigma):
    answers.append(answer(z, sigma))


def _rows(field, entrants, answers, seconds, z, sigma):
    place = {(one.method, one.way): i for i, one in enumerate(entrants)}
    target = answers[place["network", "as it is"]]
    errors = [(a - target).square().flatten(1).mean(1) for a in answers]
    times = [torch.tensor(taken).median().item() for taken in seconds]
    rows = []
    for i, one in enumerate(entrants):
        row = {"method": one.method, "way": one.way, "sigma": sigma, "images": one.n, "k": one.k}
        row |= {"seconds": times[i], "ratio": times[i] / times[0], **_numbers("mse", errors[i])}
        full = place.get((one.method, "as it is"), i)
        if full != i:
            moved = (answers[i] - answers[full]).abs().max().item()
            row |= {**_numbers("excess", errors[i] - errors[full]), "moved": moved}
        if one.method == "optimal" and one.way == "nearest, exact":
            chosen = one.answer.choose(z, sigma)
            row["bound"] = certificate(z, sigma, field.source, chosen)
        rows.append(row)
    return rows


def _numbers(name, values):
    found = Estimate.of_samples(values)
    return {name: float(found), f"{name}_error": found.standard_error}


def front(rows):
    """The rows that no other beats in both time and error, the network left out."""
    best, found = math.inf, []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        if row["method"] != "network" and row["mse"] < best:
            best = row["mse"]
            found.append(row)
    return found


def main(arguments=None):
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    parser.add_argument("--network", help="name or file (default: the data's shipped DDPM++)")
    parser.add_argument("--maps", help="file of its sensitivity maps (default: computed)")
    parser.add_argument("--schedule", help="of sides and thresholds (default: the data's, or else "
                        "cifar10)")  # fmt: skip
    levels = [diffusion.edm_sigmas(18).tolist()[i] for i in (13, 9, 7)]
    parser.add_argument("--sigma", type=float, nargs="+", default=levels)
    parser.add_argument("--n", type=int, default=10_000, help="source images")
    parser.add_argument("--few", type=int, default=1_000, help="the same for Lukoianov and ELS")
    parser.add_argument("--b", type=int, default=4, help="noisy images a call")
    parser.add_argument("--calls", type=int, default=4, help="calls, each of other noisy images")
    parser.add_argument("--budget", type=int, help="bytes of working memory")
    parser.add_argument("--map-images", type=int, default=4, help="whose maps are computed")
    parser.add_argument("--patches", type=int, nargs="+", default=[5, 8], help="of the mixtures")
    parser.add_argument("--probes", type=int, default=8, help="inverted lists that are looked at")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parse(parser, arguments)
    options.network = options.network or f"{options.data}/ddpmpp"
    options.schedule = options.schedule or (options.data if options.data in SIDES else "cifar10")

    count = options.b * options.calls
    data = fpmc.data.load(options.data, options.root, n_train=options.n)
    field = Field(options, data.train, data.test[: options.map_images])
    rows, told = [], {"dataset": options.label, "seed": 0, "N": len(field.source), "b": options.b}
    for sigma in options.sigma:
        rows += measure(field, to_float(data.test[-count:]), sigma, options.b)
        level = [row for row in rows if row["sigma"] == sigma]
        keys = ("method", "way", "seconds", "ratio", "mse", "mse_error")
        show([{key: row[key] for key in keys} for row in level])
        truncated = [
            f"{row['method']}, {row['way']}"
            for row in front(level)
            if row["way"].startswith(("nearest", "GoldDiff"))
        ]
        print(f"σ = {sigma:.3g}, truncations on the front: {'; '.join(truncated) or 'none'}\n")
        if options.out:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            full = [{name: row.get(name, math.nan) for name in columns} for row in rows]
            write(options.out, [{**told, **row, "n": count} for row in full])


if __name__ == "__main__":
    with named():
        main()
