r"""Collections whose estimators also see the source's images translated.

In the general form, every estimator has a source of its own,
:math:`S_k = \{T x : x \in S, T \in \mathcal{T}_k\}`, the images translated by the set that the
symmetry of a convolution allows it.

Source: Kamb and Ganguli (2025); Niedoba et al. (2026), appendix A.2.2.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc import engine
from fpmc.checks import as_whole_number
from fpmc.denoiser import DropIn, question_of_one_level
from fpmc.engine.memory import resolve
from fpmc.engine.problem import Problem
from fpmc.engine.streaming.places import Places, heaviest, per_image
from fpmc.engine.streaming.regions import boundary_classes
from fpmc.modes import not_differentiable
from fpmc.operators import Box, Identity, Ones, Operator
from fpmc.source import Source, as_source

__all__ = ["Equivariant", "TranslatedPosterior", "boundary_classes"]


class Equivariant(DropIn):
    """A collection over the translations of its source, called as ``denoiser(z, sigma)``.

    Answers lie in [-1, 1] but for rounding. They are differentiable in z (in reverse mode:
    ``backward``, ``torch.autograd.grad``).

    The translated images are never made. Of patches, all pairs at one displacement share squared
    differences, with running sums over them (:mod:`fpmc.engine.cpu.displacements`; where nothing is
    compiled they are matrix products, :mod:`fpmc.engine.streaming.translations`, on CUDA in one
    kernel with the softmax, :mod:`fpmc.engine.cuda.patches`). Of whole images,
    Fourier transforms give all translations at once (:mod:`fpmc.engine.streaming.orbit`).

    Args:
        patch_sizes: A function from sigma to the side p of the squares that the estimators see,
            clipped at the border, with a one-hot response each: a square that fits is compared with
            the source's squares at every place where it fits, one that a border cuts with those
            that this border cuts alike. None for whole images that are translated cyclically.
        source: S.
        budget: Bytes of working memory that a call may take (inputs and result not counted); 1 GiB
            if left out.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the budget is not positive; on a call, if it is too small.

    Source: Niedoba et al. (2026), equations (60) to (68).
    """

    def __init__(
        self,
        patch_sizes: Callable[[float], int] | None,
        source: Source,
        *,
        budget: int | None = None,
    ):
        self.source = as_source(source)
        self.budget = resolve(budget)
        if patch_sizes is not None and not callable(patch_sizes):
            raise TypeError(
                f"patch_sizes: got {patch_sizes!r}, wanted a function of sigma, or None"
            )
        self._patch_sizes = patch_sizes

    def __repr__(self) -> str:
        return f"Equivariant({self.source!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self.source.shape

    def _move(self, device: torch.device) -> None:
        self.source = self.source.to(device)

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        settings = (sigma, *self._operators(sigma), self.source, self.budget)
        return engine.denoise(z, *settings, translated=True)

    def posterior(self, z: Float[Tensor, "b c h w"], sigma: float) -> "TranslatedPosterior":
        """Which source pixels an answer is made of, of one noise level for all images.

        Arguments and errors as in a call.
        """
        z, sigma = question_of_one_level(z, sigma, self.shape)
        settings = (*self._operators(sigma), self.source, sigma, self.budget)
        return TranslatedPosterior(z, Problem(*settings, translated=True))

    def _operators(self, sigma: float) -> tuple[Operator, Operator]:
        shape = self.source.shape[1:]
        if self._patch_sizes is None:
            return Ones(shape), Ones(shape)
        p = as_whole_number(self._patch_sizes(sigma), "patch_sizes", 1, min(shape))
        return Box(shape, p, "clip"), Identity(shape)


class TranslatedPosterior:
    """The posteriors of output pixels over the source's pixels, for each of b noisy images.

    Made by :meth:`Equivariant.posterior`. A posterior runs over all images and all places of a
    pixel's boundary class, too many to list for all pixels: so a pixel is asked for.
    """

    def __init__(self, z: Float[Tensor, "b c h w"], problem: Problem):
        self._z, self._problem = z, problem

    def top(self, n: int, pixel: tuple[int, int]) -> Places:
        """The n source pixels that weigh most in an output pixel.

        Args:
            n: How many.
            pixel: The output pixel's row and column.

        Returns:
            Weights in falling order, and the images, rows and columns of the source pixels, each
            of shape (b, n); the answer at this pixel is the mean of all of them so weighted. Not
            differentiable.

        Raises:
            TypeError: If n, the row or the column is not a whole number.
            ValueError: If n is more than there are, or there is no such pixel.
        """
        if not isinstance(pixel, tuple) or len(pixel) != 2:
            raise TypeError(f"pixel: got {pixel!r}, wanted a row and a column")
        h, w = self._z.shape[2:]
        row, column = (
            as_whole_number(at, f"pixel's {name}", 0, side - 1)
            for at, name, side in zip(pixel, ("row", "column"), (h, w), strict=True)
        )
        most = len(self._problem.source) * per_image(self._problem, (row, column))
        found = heaviest(self._z, self._problem, (row, column), as_whole_number(n, "n", 1, most))
        weights = not_differentiable(found.weights, "a posterior", self._z)
        return found._replace(weights=weights)
