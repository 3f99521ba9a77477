"""The claims of the papers, as the file ``claims.toml`` beside the tables states them."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fpmc.results import FOLDER

__all__ = ["PAPERS", "VERDICTS", "Claim", "again", "read"]

PAPERS = {
    "niedoba2024": "PSPC, workshop version",
    "niedoba2025": "PSPC",
    "kamb2025": "Kamb and Ganguli",
    "debortoli2025": "De Bortoli et al.",
    "lukoianov2025": "Lukoianov et al.",
    "niedoba2026": "FPMC",
    "hunt2026": "Hunt et al.",
}
"""What the papers are called, by their keys in the bibliography, oldest first."""
VERDICTS = ("holds", "holds in part", "does not hold", "not tested")
STAGES = {"each": "samples", "copies": "worth", "engine/paths": "engine"}
"""The stage that fills a table, where it is not called as the table is."""


LABELS = {"cifar10-jpeg": "cifar10", "afhq-cats": "afhqv2-64"}
"""The datasets in whose place others stand, by their names in the tables."""


@dataclass(frozen=True)
class Claim:
    """A claim, where it stands, and what became of it.

    Attributes:
        id: A name, unique in the file.
        paper: A key of :data:`PAPERS`.
        where: The section, figure or table of the paper.
        says: The claim, in our words.
        verdict: One of :data:`VERDICTS`.
        but: A remark: in which part it holds, or why it is not tested.
        chapter: The chapter that shows it, without ``.md``; "" if none does.
        section: The heading in that chapter.
        tests: What the verdict follows from: a table each, its datasets, a rule and its options.
            ``options`` are those of the command that fills the table, where it takes any.
        holds: The least share of points as claimed at which the claim holds.
        fails: The largest share at which it does not; in between it holds in part.
        level: Whether a point too near to tell counts as claimed.
        what: What the number that is shown is.
        show: What picks the point whose number is shown, {"data": …, "sigma": …}.
        number: The number in words, for a claim that its chapter computes live.
        quotes: What the chapter prints, from which the verdict was read, for such a claim.
    """

    id: str
    paper: str
    where: str
    says: str
    verdict: str
    but: str = ""
    chapter: str = ""
    section: str = ""
    tests: tuple[Mapping[str, Any], ...] = ()
    holds: float = 1.0
    fails: float = 0.0
    level: bool = False
    what: str = ""
    show: Mapping[str, Any] = field(default_factory=dict)
    number: str = ""
    quotes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.paper not in PAPERS:
            raise _wrong(self.id, "paper", self.paper, PAPERS)
        if self.verdict not in VERDICTS:
            raise _wrong(self.id, "verdict", self.verdict, VERDICTS)
        untested = self.verdict == VERDICTS[-1]
        if untested == bool(self.tests or self.quotes) or untested > bool(self.but):
            raise ValueError(
                f"{self.id}: a verdict takes tests or quotes, and {VERDICTS[-1]!r} only a reason"
            )
        if not 0 <= self.fails < self.holds <= 1:
            raise ValueError(
                f"{self.id}: got fails {self.fails} and holds {self.holds}, wanted shares in order"
            )

    @property
    def live(self) -> bool:
        """Whether the chapter computes what the verdict rests on, and no stored table has it."""
        return bool(self.quotes)


def read(path: str | os.PathLike | None = None) -> list[Claim]:
    """The claims of a file, in its order.

    Args:
        path: The file; ``claims.toml`` beside the stored tables if left out.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read, a claim lacks something or has what no claim has, or two
            have one name.
    """
    path = Path(path or FOLDER / "claims.toml")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path}: not a file of claims ({error})") from error
    claims = [_claim(entry) for entry in entries]
    names = [claim.id for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: got {', '.join(twice)} more than once, wanted one name a claim")
    return claims


def again(claim: Claim) -> list[str]:
    """The commands that compute what a claim's verdict rests on; none if it is not tested."""
    if claim.live:
        return [f".venv/bin/python -m fpmc.run book/{claim.chapter}.md -o {claim.chapter}.ipynb"]
    found = (
        _command(data, test["table"], test.get("options", ""))
        for test in claim.tests
        for data in test["data"]
    )
    return list(dict.fromkeys(found))


def _command(data: str, table: str, options: str) -> str:
    if table == "looks":
        other = f"{data}/ncsnpp=runs/ncsnpp.npz"
        return f".venv/bin/python -m fpmc.experiments.looks {data}/ddpmpp {other}"
    stage = f"--stage {STAGES.get(table, table)} {options}".rstrip()
    if data in LABELS:
        return f'make results DATA={LABELS[data]} DEVICE=cuda ARGS="--label {data} {stage}"'
    return f'make results DATA={data} ARGS="{stage}"'


def _claim(entry: Mapping[str, Any]) -> Claim:
    entry = dict(entry) | {"tests": tuple(entry.get("tests", ()))}
    entry["quotes"] = tuple(entry.get("quotes", ()))
    known = {f.name: f for f in fields(Claim)}
    plain = [f.default is MISSING and f.default_factory is MISSING for f in known.values()]
    needed = {name for name, needs in zip(known, plain, strict=True) if needs}
    name = entry.get("id", entry.get("says", "a claim"))
    if lacking := sorted(needed - set(entry)):
        raise ValueError(f"{name}: got no {', '.join(lacking)}, wanted {', '.join(needed)}")
    if unknown := sorted(set(entry) - set(known)):
        raise _wrong(name, "a field", ", ".join(unknown), known)
    return Claim(**entry)


def _wrong(name: str, what: str, value: Any, wanted) -> ValueError:
    return ValueError(f"{name}: {what}: got {value!r}, wanted one of {', '.join(wanted)}")
