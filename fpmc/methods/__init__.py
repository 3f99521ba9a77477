"""The papers' denoisers, each a choice of Q, R and source."""

from fpmc.methods.lukoianov import lukoianov
from fpmc.methods.optimal import optimal
from fpmc.methods.pspc import pspc_flex, pspc_square
from fpmc.methods.registry import METHODS
from fpmc.methods.score_machines import els, es, ls
from fpmc.methods.search import search_patch_sizes, search_thresholds
from fpmc.methods.wiener import wiener

__all__ = [
    "METHODS",
    "els",
    "es",
    "ls",
    "lukoianov",
    "optimal",
    "pspc_flex",
    "pspc_square",
    "search_patch_sizes",
    "search_thresholds",
    "wiener",
]
