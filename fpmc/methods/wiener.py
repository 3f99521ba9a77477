"""The Wiener filter: the linear denoiser that knows the data's mean and covariance alone."""

from fpmc.gaussian import Gaussian
from fpmc.source import Source

__all__ = ["wiener"]


def wiener(source: Source, *, budget: int | None = None) -> Gaussian:
    r"""The best linear denoiser of the source, a baseline that takes the data for Gaussian.

    .. math:: D(z, \sigma) = \mu + \Sigma (\Sigma + \sigma^2 I)^{-1} (z - \mu)

    with the source's mean μ and covariance Σ. With M the lesser of N and D: N D M multiplications,
    and an eigendecomposition of the order of M³, of the covariance or of the images' Gram matrix; a
    call then takes 2 D M multiplications an image.

    Args:
        source: S.
        budget: Bytes of working memory for the sums over the source; 1 GiB if left out.

    Returns:
        The denoiser; its ``sample`` solves its probability-flow ODE in closed form.

    Raises:
        TypeError: If the source is not an :class:`fpmc.Source`.
        ValueError: If the budget is too small for the matrix that is decomposed.

    Source: Wiener (1949); Niedoba et al. (2026), table 2.
    """
    return Gaussian.of_source(source, budget)
