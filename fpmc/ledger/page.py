"""The ledger as tables: the claims of a paper, the counts of verdicts, the commands."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fpmc.ledger.claims import PAPERS, VERDICTS, Claim, again
from fpmc.ledger.rules import Point, counted, points, shown

__all__ = ["anchor", "commands", "counts", "rows", "told"]

CALLED = {"cifar10-jpeg": "CIFAR-10 (JPEG)", "afhq-cats": "AFHQ cats"}


def rows(
    claims: Sequence[Claim], paper: str, root: str | os.PathLike | None = None
) -> list[dict[str, object]]:
    """What a table of a paper's claims shows, a row per claim, numbered as in the whole list.

    Args:
        claims: All claims.
        paper: A key of :data:`fpmc.ledger.PAPERS`.
        root: The folder ``results``, if it is not beside the package.

    Raises:
        ValueError: If no claim is of that paper.
    """
    numbered = [(i, claim) for i, claim in enumerate(claims, 1) if claim.paper == paper]
    if not numbered:
        raise ValueError(f"paper: got {paper!r}, wanted one of {', '.join(PAPERS)}")
    return [
        {
            "no.": f"{i}.",
            "claim": f"{claim.says} *{claim.where}*",
            "the number here": _evidence(claim, root),
            "verdict": " ".join(filter(None, (f"**{claim.verdict}.**", claim.but, _link(claim)))),
        }
        for i, claim in numbered
    ]


def counts(claims: Sequence[Claim]) -> dict[str, dict[str, int]]:
    """How many claims of each paper have each verdict: {paper: {verdict: number}}."""
    each = [(claim.paper, claim.verdict) for claim in claims]
    return {
        paper: {verdict: each.count((paper, verdict)) for verdict in VERDICTS} for paper in PAPERS
    }


def commands(claims: Sequence[Claim]) -> list[dict[str, str]]:
    """The commands that compute the numbers again, each with the claims that rest on it."""
    found: dict[str, list[int]] = {}
    for i, claim in enumerate(claims, 1):
        for command in again(claim):
            found.setdefault(command, []).append(i)
    return [
        {"command": f"`{command}`", "claims": ", ".join(f"{i}." for i in numbers)}
        for command, numbers in sorted(found.items())
    ]


def told(value: float) -> str:
    """A number with its standard error if it has one, or with three digits."""
    return str(value) if getattr(value, "standard_error", 0) > 0 else f"{value:.3g}"


def anchor(heading: str) -> str:
    """The anchor that a page has at a heading in plain words, whose apostrophes leave no trace."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['’]", "", heading.lower())).strip("-")


def _evidence(claim: Claim, root: str | os.PathLike | None) -> str:
    if claim.live:
        return f"{claim.what}: **{claim.number}**. Computed by the chapter."
    if not claim.tests:
        return "–"
    found = points(claim, root=root)
    point, (yes, n) = shown(claim, found), counted(claim, found)
    return f"**{told(point.number)}** {claim.what}, {_place(point)}. As claimed in {yes} of {n}."


def _place(point: Point) -> str:
    """Where a point was measured, in words."""
    at: Mapping[str, Any] = point.at
    parts = [CALLED.get(at["data"], at["data"])]
    parts += [f"{at['z']} z"] if "z" in at else []
    parts += [f"σ = {at['sigma']:.2g}"] if "sigma" in at and at["sigma"] != point.number else []
    return ", ".join(parts)


def _link(claim: Claim) -> str:
    if not claim.chapter:
        return ""
    return f'→ <a href="{claim.chapter}.html#{anchor(claim.section)}">{claim.section}</a>'
