"""From means to distributions: scoring rules of draws, and the sampler that takes draws.

A denoiser answers with the mean of p(x | z). A network that draws from it, trained by a strictly
proper scoring rule, can take far longer steps. Source: De Bortoli et al. (2025), "Distributional
Diffusion Models with Scoring Rules".
"""

from fpmc.distributional.bridge import sample
from fpmc.distributional.composite import composite
from fpmc.distributional.scoring import energy_score, kernel_score

__all__ = ["composite", "energy_score", "kernel_score", "sample"]
