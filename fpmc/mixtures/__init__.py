r"""Gaussians in place of points: the posterior mean of a mixture, on patches that overlap.

A source puts a point on every image. With a covariance around each point, or around the mean of
many, a patch :math:`x \sim \sum_m \pi_m N(\mu_m, \Sigma_m)` seen as
:math:`z = x + \sigma\varepsilon` has a posterior mean in closed form:

.. math::
    D(z, \sigma)
    &= \sum_m w_m \big[\mu_m + \Sigma_m (\Sigma_m + \sigma^2 I)^{-1} (z - \mu_m)\big], \\
    w_m &\propto \pi_m\, N(z; \mu_m, \Sigma_m + \sigma^2 I) .

Every patch is answered so, and overlapping patches are averaged as PSPC-Square does. With patches
as large as the image, points (Σ = 0) are the optimal denoiser, and one component is the Wiener
filter.
"""

from fpmc.mixtures.files import read, write
from fpmc.mixtures.fitting import fit
from fpmc.mixtures.mixture import Mixture, all_patches

__all__ = ["Mixture", "all_patches", "fit", "read", "write"]
