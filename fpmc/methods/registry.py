"""All methods in one place: who has to know a new one reads it here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fpmc.methods.lukoianov import lukoianov
from fpmc.methods.optimal import optimal
from fpmc.methods.pspc import pspc_flex, pspc_square
from fpmc.methods.score_machines import els, es, ls
from fpmc.methods.wiener import wiener

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    """A method, and what experiments and readers need to know of it.

    Attributes:
        maker: The function from a source (and a value of the knob) to a denoiser.
        title: What readers are told.
        colour: The same in every figure.
        knob: The argument that a schedule gives, "patch_sizes" or "thresholds"; None if none does.
        needs: What else the maker takes: "sensitivity" or "gaussian"; None if nothing.
        precision: Whether its answers can be asked for in another precision than exact.
        compared: Whether comparisons with a network have it.
        tried: What a search of thresholds tries.
        inside: Whether patches stay inside the image, so that one may be the whole image.
        tuned: Whether its published schedule was found by nearness to a network, so that a search
            around it is due on any data.
        used: Thresholds that the papers use at all noise levels, in place of a schedule.
    """

    maker: Callable[..., Any]
    title: str
    colour: str
    knob: str | None = None
    needs: str | None = None
    precision: bool = True
    compared: bool = True
    tried: tuple[float, ...] = ()
    inside: bool = False
    tuned: bool = False
    used: tuple[float, ...] = ()

    @property
    def has_sides(self) -> bool:
        """Whether the knob is the side of a patch."""
        return self.knob == "patch_sizes"


METHODS = {
    "optimal": Method(optimal, "optimal", "#c8502c"),
    "wiener": Method(wiener, "Wiener", "#8a5a3f", precision=False),
    "pspc_square": Method(pspc_square, "PSPC-Square", "#2868b0", "patch_sizes", inside=True),
    "ls": Method(ls, "LS", "#c2559d", "patch_sizes", tuned=True),
    "els": Method(els, "ELS", "#6c7d2c", "patch_sizes", precision=False, tuned=True),
    "es": Method(es, "ES", "#8f8020", precision=False, compared=False),
    "pspc_flex": Method(
        pspc_flex,
        "PSPC-Flex",
        "#2a92cd",
        "thresholds",
        "sensitivity",
        tried=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
    "lukoianov": Method(
        lukoianov,
        "Lukoianov",
        "#4f49b8",
        "thresholds",
        "gaussian",
        tried=(0.02, 0.05, 0.1, 0.2),
        used=(0.05, 0.02),
    ),
}
"""{name: method}, in the order of the tables."""
