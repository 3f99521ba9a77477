"""How much each output pixel of a denoiser depends on each input pixel.

Source: Niedoba et al. (2025), section 4; Niedoba et al. (2026), equation (39).
"""

from fpmc.sensitivity.files import averaged_over, load, read, write
from fpmc.sensitivity.gradients import maps, maps_over, square_sides

__all__ = ["averaged_over", "load", "maps", "maps_over", "read", "square_sides", "write"]
