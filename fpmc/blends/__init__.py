"""Blends: denoisers summed with weights that bring them nearest to a network, level by level.

Source: their parts are PSPC-Flex as it is and as it is tuned (Niedoba et al., 2026), the Wiener
filter, and mixtures of Gaussians on patches (Zoran and Weiss, 2011).
"""

from fpmc.blends.blend import Blend, fit
from fpmc.blends.files import SHIPPED, card, load, save

__all__ = ["SHIPPED", "Blend", "card", "fit", "load", "save"]
