r"""What is asked of the engine: Q, R, S and σ, and how much it may take.

.. math::
    \ell_{kn} = -\frac{(Q \delta_n)_k}{2\sigma^2} + \log S(x_n), \qquad
    w_{kn} = \operatorname{softmax}_n \ell_{kn}, \qquad
    \hat{x} = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1 .
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.memory import FLOAT64, resolve
from fpmc.engine.ranks import Ranks
from fpmc.features import Features
from fpmc.operators import Box, Identity, Ones, Operator
from fpmc.source import Source

__all__ = ["Problem", "log_weights", "parts"]


@dataclass(frozen=True)
class Problem:
    r"""A collection at one noise level.

    Attributes:
        queries: Q, with K estimators.
        responses: R, with the same K; every pixel needs a positive sum.
        source: S.
        sigma: The noise level σ > 0.
        budget: Bytes of working memory, inputs and results not counted; 1 GiB for None.
        precision: What is computed in, see :mod:`fpmc.engine.precision`.
        translated: Whether an estimator also sees the source's images translated: clipped squares
            with one-hot responses, those translations that bring a square which the border cuts
            alike to its own place; whole images, all cyclic ones.
        ranks: The processes that sum over the other parts of the source, if this is one of several;
            None if it is all there is.
        features: Φ, if Q acts on :math:`(\Phi z - \Phi x_n)^2`; None for pixels.

    Raises:
        ValueError: If other operators are to be translated, or any of a part; or if the source has
            no images and is all there is.
    """

    queries: Operator
    responses: Operator
    source: Source
    sigma: float
    budget: int | None = None
    precision: str = "exact"
    translated: bool = False
    ranks: Ranks | None = None
    features: Features | None = None

    def __post_init__(self):
        object.__setattr__(self, "budget", resolve(self.budget))
        if self.ranks is None and not len(self.source):
            raise ValueError(
                "source: got no images, wanted some: an empty part of a source is for "
                "fpmc.distributed alone"
            )
        if self.translated and self.ranks is not None:
            raise ValueError("translated: got True for a part of a source, wanted False")
        if self.translated and self.features is not None:
            raise ValueError("translated: got True for features, wanted False")
        if self.translated and not _translatable(*self.operators):
            raise ValueError(
                f"translated: got True for {self.queries} and {self.responses}, wanted clipped "
                "squares with one-hot responses, or whole images"
            )

    def keys(self, a: Float[Tensor, "c h w *rest"]) -> Float[Tensor, "c2 h2 w2 *rest"]:
        """What Q's differences are of: Φ a, or a itself."""
        return a if self.features is None else self.features.apply(a)

    @property
    def held(self) -> int:
        """Bytes that the features take, as they are and in float64."""
        return 0 if self.features is None else 2 * FLOAT64 * self.features.matrix.numel()

    @property
    def operators(self) -> tuple[Operator, Operator]:
        """Q and R."""
        return self.queries, self.responses

    @property
    def exact(self) -> bool:
        """Whether answers keep the digits of z's type."""
        return self.precision == "exact"


def parts(
    source: Source, log_weights: Float[Tensor, " n"] | None
) -> list[tuple[Tensor, Float[Tensor, " m"] | None]]:
    """Each part's images as they are stored, and its log-weights of those of all images."""
    images = [part.detach() for part in source.parts]
    if log_weights is None:
        return [(part, None) for part in images]
    return list(zip(images, log_weights.split([len(part) for part in images]), strict=True))


def log_weights(source: Source, like: Tensor) -> Float[Tensor, " n"] | None:
    """Log S(x_n) with the type of ``like``, where it lies; None if all are equal.

    An image that was left out has a log-weight of −∞. It is the half of the lowest number of the
    type here: low enough that its weight is 0 beside any other, and finite, so that no difference
    of two of them is NaN.
    """
    if source.log_weights is None:
        return None
    return source.log_weights.to(like).clamp(min=torch.finfo(like.dtype).min / 2)


def _translatable(queries: Operator, responses: Operator) -> bool:
    if isinstance(queries, Box) and queries.border == "clip":
        return isinstance(responses, Identity) and responses.shape == queries.grid
    return isinstance(queries, Ones) and isinstance(responses, Ones)
