"""The ledger: each claim of the papers, the numbers that test it, and the verdict that follows.

The claims are data, ``results/claims.toml``. A claim that stored tables test names them, the rows
that are compared and a rule of :mod:`fpmc.ledger.rules`; its verdict is what :func:`judge` says.
"""

from fpmc.ledger import page
from fpmc.ledger.claims import PAPERS, VERDICTS, Claim, again, read
from fpmc.ledger.rules import RULES, Point, counted, judge, points, shown

__all__ = [
    "PAPERS",
    "RULES",
    "VERDICTS",
    "Claim",
    "Point",
    "again",
    "counted",
    "judge",
    "page",
    "points",
    "read",
    "shown",
]
