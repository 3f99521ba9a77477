"""From stored tables to verdicts: which rows are compared, and what follows.

A rule reads one table of one dataset and returns points. A point is one comparison: it is as
claimed, against the claim, or too near to tell. The share of points as claimed decides the verdict.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fpmc import results
from fpmc.ledger.claims import VERDICTS, Claim
from fpmc.methods.schedules import published
from fpmc.metrics import Estimate

__all__ = ["ERRORS", "RULES", "Point", "counted", "judge", "points", "rows", "shown"]

ERRORS = 2.0
"""How many standard errors apart two numbers are to count as different."""
SAME = 1e-4
"""The share up to which two numbers are the same, whatever their errors: rounding makes as much."""
KEYS = ("z", "sigma", "network", "method", "schedule", "n_source", "learn", "trial")
KEYS += ("strategy", "size", "mask_level", "reference", "by", "step", "sampler", "calls")
"""What tells the rows of a table apart. Rows are compared that agree in all of them but those that
a test sets."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One comparison.

    Attributes:
        at: Where it was made: the number of the test, the data, and what the row says of itself.
        number: What was found, with its standard error where the table has one.
        holds: Whether it is as claimed; None if it is too near to tell.
    """

    at: Mapping[str, Any]
    number: float
    holds: bool | None


def rows(data: str, table: str, root: str | os.PathLike | None = None) -> list[Row]:
    """A stored table; "each" are the samples' measures as tensors, "engine/…" benchmarks.

    Of "published" they are tensors, too, those of the samples beside published networks.

    Rows of "places" have every image's error as a tensor, ``each``, so that they are paired too.

    Rows of "tuning" also have ``left``, the share of the error that tuning leaves.
    """
    if table == "each":
        named = results.per_sample(data, root)
        split = ((*name.partition(", ")[::2], values) for name, values in named.items())
        return [{"method": m, "schedule": s, **values} for m, s, values in split]
    if table == "published":
        found = results.published(data, root).items()
        named = ((dict(zip(("reference", "by"), at, strict=False)), at[2], v) for at, v in found)
        split = ((at, *name.partition(", ")[::2], values) for at, name, values in named)
        return [{**at, "method": m, "schedule": s, **values} for at, m, s, values in split]
    if table.startswith("engine/"):
        return results.measurements(table.removeprefix("engine/"), root, data)
    found = results.read(data, table, root)
    if table == "places":
        return [row | {"each": results.singly(row)} for row in found]
    if table != "tuning":
        return found
    return [row | {"left": _left(row["mse"], row["given"], row["gain"])} for row in found]


def less(table: Sequence[Row], errors: float, *, first, second, times=1.0) -> list[Point]:
    """The first is less than the second, at each level that both have.

    Args:
        table: The rows.
        errors: The standard errors by which they must differ.
        first: What the rows of the first have, {column: value}, and ``column``, the one compared
            ("mse" if left out).
        second: The same, or a number.
        times: What the second is multiplied with.
    """
    left = _chosen(table, first)
    if not isinstance(second, Mapping):
        bound = second * times
        return [Point(at, x, _less(x, bound, _error(x), errors)) for at, x in left]
    right = {_key(at, first, second): value for at, value in _chosen(table, second)}
    pairs = ((at, a, right.get(_key(at, first, second))) for at, a in left)
    return [_compared(at, a, b, times, errors) for at, a, b in pairs if b is not None]


def more(table: Sequence[Row], errors: float, **options) -> list[Point]:
    """The first is more than the second: :func:`less` the other way round."""
    turned = {True: False, False: True, None: None}
    found = less(table, errors, **options)
    return [Point(point.at, point.number, turned[point.holds]) for point in found]


def rises(table: Sequence[Row], errors: float, *, first) -> list[Point]:
    """A column grows from each noise level to the next; equal is too near to tell.

    Args:
        table: The rows.
        errors: Not used: for columns without standard errors.
        first: As in :func:`less`; ``column = "best"`` is the value with the least error.
    """
    found = []
    for group in _by(_chosen(table, first), lambda at: _key(at, {"sigma": 0}, {})):
        ordered = sorted(group, key=lambda pair: pair[0]["sigma"])
        for (_, before), (at, value) in itertools.pairwise(ordered):
            found.append(Point(at, value, None if value == before else value > before))
    return found


def peaks(table: Sequence[Row], errors: float, *, first, within) -> list[Point]:
    """A column is largest at a noise level within these two. The number is that level."""
    groups = _by(_chosen(table, first), lambda at: _key(at, {"sigma": 0}, {}))
    tops = [max(group, key=lambda pair: pair[1])[0] for group in groups]
    return [Point(at, at["sigma"], within[0] <= at["sigma"] <= within[1]) for at in tops]


def as_published(table: Sequence[Row], errors: float, *, first, schedule) -> list[Point]:
    """The best value of a searched knob is the published one, at each level that was searched."""
    wanted = published(schedule, first["method"])
    found = []
    for at, value in _chosen(table, first | {"column": "best"}):
        near = min(wanted, key=lambda sigma: abs(math.log(sigma / at["sigma"])))
        found.append(Point(at, value, value == wanted[near]))
    return found


RULES: dict[str, Callable[..., list[Point]]] = {
    rule.__name__: rule for rule in (less, more, rises, peaks, as_published)
}
"""The rules by name."""


def points(
    claim: Claim, errors: float = ERRORS, root: str | os.PathLike | None = None
) -> list[Point]:
    """All comparisons on which a claim's verdict rests; none if it rests on no stored table.

    Args:
        claim: The claim.
        errors: The standard errors by which two numbers must differ to count as different.
        root: The folder ``results``, if it is not beside the package.

    Raises:
        FileNotFoundError: If a table is not there.
        ValueError: If a test has an unknown rule, or no row is as it asks.
    """
    found = []
    for i, test in enumerate(claim.tests):
        if test.get("rule") not in RULES:
            wanted = ", ".join(RULES)
            raise ValueError(f"{claim.id}: rule: got {test.get('rule')!r}, wanted one of {wanted}")
        for data in test["data"]:
            low, high = test.get("levels", (0, math.inf))
            table = rows(data, test["table"], root)
            table = [row for row in table if low <= row.get("sigma", low) <= high]
            try:
                here = RULES[test["rule"]](table, errors, **_options(test))
            except (TypeError, KeyError) as error:
                raise ValueError(f"{claim.id}: test {i}: {error}") from error
            if not here:
                raise ValueError(f"{claim.id}: no rows of {data}/{test['table']} are as test {i}")
            found += [Point({"test": i, "data": data, **p.at}, p.number, p.holds) for p in here]
    return found


def counted(claim: Claim, found: Sequence[Point]) -> tuple[int, int]:
    """How many points are as claimed, and how many there are."""
    return sum(point.holds or (point.holds is None and claim.level) for point in found), len(found)


def judge(claim: Claim, found: Sequence[Point]) -> str:
    """The verdict that follows from a claim's points.

    It holds if the share of points as claimed is at least ``claim.holds``, does not hold if that
    share is at most ``claim.fails``, and in between holds in part.

    Raises:
        ValueError: If there are no points.
    """
    if not found:
        raise ValueError(f"{claim.id}: got no points, wanted those of a claim that tables test")
    yes, n = counted(claim, found)
    return VERDICTS[0 if yes / n >= claim.holds else 2 if yes / n <= claim.fails else 1]


def shown(claim: Claim, found: Sequence[Point]) -> Point:
    """The one point whose number stands for a claim: the one that ``claim.show`` picks.

    Raises:
        ValueError: If it picks none, or several.
    """
    picked = [point for point in found if all(_is(point.at, *pair) for pair in claim.show.items())]
    if len(picked) != 1:
        raise ValueError(f"{claim.id}: show: got {len(picked)} points, wanted one")
    return picked[0]


def _options(test: Mapping[str, Any]) -> dict[str, Any]:
    ours = ("rule", "data", "table", "levels", "options")
    return {key: test[key] for key in test if key not in ours}


def _chosen(table: Sequence[Row], wanted: Mapping[str, Any]) -> list[tuple[dict, Any]]:
    """Where the wanted rows stand, and their values."""
    column = wanted.get("column", "mse")
    filters = [pair for pair in wanted.items() if pair[0] != "column"]
    picked = [row for row in table if all(_is(row, *pair) for pair in filters)]
    pairs = [({key: row[key] for key in KEYS if key in row}, row) for row in picked]
    if column == "best":
        groups = _by(pairs, lambda at: _key(at, {}, {}))
        least = (min(group, key=lambda pair: pair[1]["mse"]) for group in groups)
        return [(at, row["value"]) for at, row in least]
    return [(at, row[column]) for at, row in pairs]


def _by(pairs: Sequence[tuple[dict, Any]], key: Callable) -> list[list[tuple[dict, Any]]]:
    """The pairs in groups whose places have the same key."""
    ordered = sorted(pairs, key=lambda pair: key(pair[0]))
    return [list(group) for _, group in itertools.groupby(ordered, lambda pair: key(pair[0]))]


def _key(at: Mapping[str, Any], first: Mapping, second: Mapping) -> tuple:
    """What a row must share with the one it is compared with."""
    return tuple(value for key, value in at.items() if key not in first and key not in second)


def _is(row: Mapping[str, Any], key: str, wanted: Any) -> bool:
    value = row.get(key)
    if isinstance(wanted, list):
        return value in wanted
    if isinstance(wanted, float) and isinstance(value, float):
        return math.isclose(value, wanted, rel_tol=0.01)
    return value == wanted


def _compared(at: dict, a: Any, b: Any, times: float, errors: float) -> Point:
    """The ratio of the two, and whether the first is less than so many times the second."""
    if isinstance(a, Tensor):  # sample by sample
        n = min(len(a), len(b))
        a, b = a[:n].double(), b[:n].double()
        apart, ratio = Estimate.of_samples(a - times * b), (a.mean() / b.mean()).item()
        spread = Estimate.of_samples((a - ratio * b) / b.mean()).standard_error
        means = a.mean().item(), times * b.mean().item()
        sign = _less(*means, apart.standard_error, errors)
        return Point(at, Estimate(ratio, spread, n), sign)
    sign = _less(a, times * b, math.hypot(_error(a), times * _error(b)), errors)
    ratio, relative = a / b, math.hypot(_error(a) / a, _error(b) / b)
    return Point(at, Estimate(ratio, ratio * relative, 0) if relative else ratio, sign)


def _less(a: float, b: float, error: float, errors: float) -> bool | None:
    near = abs(a - b) <= max(errors * error, SAME * max(abs(a), abs(b)))
    return None if near else bool(a < b)


def _error(value: Any) -> float:
    return getattr(value, "standard_error", 0.0)


def _left(after: float, before: float, gain: Estimate) -> Estimate:
    """The share of the error that is left, with the paired difference's standard error."""
    return Estimate(after / before, gain.standard_error / before, gain.n)
