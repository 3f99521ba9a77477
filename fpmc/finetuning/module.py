"""A collection with soft queries and responses, as a module to be tuned at one noise level."""

from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fpmc.checks import as_answer, as_images, as_noise_level
from fpmc.collection import FPMC
from fpmc.finetuning import step
from fpmc.finetuning.parametrisation import ZEROS, as_map, expanded, start
from fpmc.operators import LARGEST, Dense, Operator, as_pair
from fpmc.source import Source, as_source

__all__ = ["LEARN", "SoftFPMC"]

LEARN = ("qr", "q", "r")
"""What may be learned: queries and responses, or one of them."""


class SoftFPMC(nn.Module):
    r"""Queries :math:`Q = f(\theta_Q)`, responses :math:`R = f(\theta_R)`, and a source.

    It starts at the given operators where these are positive, and near them where they are zero
    (see :mod:`fpmc.finetuning.parametrisation`). What is not learned stays the given operator. A
    collection of one estimator, as the optimal denoiser is, becomes one of an estimator per pixel
    first, which answers the same.

    Args:
        queries: Q, of any structure, with K estimators.
        responses: R, with the same K.
        source: S.
        learn: "qr", "q" or "r".
        mapping: f: "exponential" or "softplus".
        zeros: ζ, where zeros start: at this share of a row's peak, or at less where a row has many
            of them; above 0 and up to 1.
        budget: Bytes of working memory; 1 GiB if left out.

    Attributes:
        theta_q: θ_Q, float32, shape (k, *); None if it is not learned.
        theta_r: θ_R, likewise.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If learn or mapping is none of these, ζ lies outside its range, the operators do
            not fit the source or each other, or what is learned is all zeros.

    Source: Niedoba et al. (2026), sections 4.1, 4.2 and C.3.
    """

    def __init__(
        self,
        queries: Operator,
        responses: Operator,
        source: Source,
        learn: str = "qr",
        *,
        mapping: str = "exponential",
        zeros: float = ZEROS,
        budget: int | None = None,
    ):
        super().__init__()
        if learn not in LEARN:
            raise ValueError(f"learn: got {learn!r}, wanted one of {', '.join(LEARN)}")
        self.source, self.budget, self.mapping = as_source(source), budget, as_map(mapping)
        given = expanded(*as_pair(queries, responses, self.source.shape))
        self._given = dict(zip("qr", map(_frozen, given), strict=True))
        for name, op in self._given.items():
            theta = nn.Parameter(start(op.dense(), self.mapping, zeros)) if name in learn else None
            self.register_parameter(f"theta_{name}", theta)
        self._fixed: dict[str, Tensor] = {}

    def operators(self) -> tuple[Operator, Operator]:
        """Q and R as they are now, differentiable in θ; what is not learned, as it was given."""
        return tuple(
            op if theta is None else Dense(self.mapping.value(theta))
            for op, theta in zip(self._given.values(), self._thetas(), strict=True)
        )

    def forward(
        self,
        z: Float[Tensor, "b c h w"],
        sigma: float,
        without: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The collection's exact answer, differentiable in z and θ.

        Args:
            z: Noisy images, shape (b, c, h, w).
            sigma: The noise level σ > 0.
            without: Positions of source images that are left out; none if left out.

        Raises:
            TypeError, ValueError: As :class:`fpmc.FPMC` does.
        """
        source = self.source if without is None else self.source.without(without)
        return FPMC(*self.operators(), source, budget=self.budget)(z, sigma)

    def loss(
        self,
        z: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        sigma: float,
        without: Int[Tensor, " m"] | None = None,
        *,
        only: Int[Tensor, " n"] | None = None,
        cut: float = step.CUT,
    ) -> Float[Tensor, ""]:
        r"""The mean of :math:`\tfrac1D \|D(z, \sigma) - y\|^2` over a batch, for training.

        The value and the gradient to θ are found in one go, in float32, from the source images that
        carry weight: see :mod:`fpmc.finetuning.step`.

        Args:
            z: Noisy images, shape (b, c, h, w).
            target: y, a network's answers.
            sigma: The noise level σ > 0.
            without: Positions of source images that are left out.
            only: Rising positions of those that are summed over; all if left out.
            cut: What may be left out of an estimator's weight, from 0 to 1.

        Raises:
            TypeError, ValueError: If z and the target are no images of the source's shape, or as
                :func:`fpmc.finetuning.step.gradients` does.
        """
        as_answer(target, as_images(z, "z", self.source.shape), "target")
        matrices = [
            self._dense(name) if theta is None else self.mapping.value(theta)
            for name, theta in zip("qr", self._thetas(), strict=True)
        ]
        options = {"without": without, "only": only, "cut": cut, "budget": self.budget}
        return step.loss(z, target, *matrices, self.source, as_noise_level(sigma), **options)

    def collection(self) -> FPMC:
        """The collection as it is now, which later training leaves as it is."""
        return FPMC(*self.frozen(), self.source, budget=self.budget)

    def frozen(self) -> tuple[Operator, Operator]:
        """Q and R as they are now, which later training leaves as they are."""
        return tuple(map(_frozen, self.operators()))

    def sound(self) -> bool:
        """Whether all entries, and all sums of response weights, are ones that an FPMC takes."""
        values = [self.mapping.value(theta.detach()) for theta in self.parameters()]
        if self.theta_r is not None:
            values.append(values[-1].sum(0))
            values.append(1 / values[-1])
        return all(value.isfinite().all() and value.max() <= LARGEST for value in values)

    def _thetas(self) -> tuple[Tensor | None, Tensor | None]:
        return self.theta_q, self.theta_r

    def _dense(self, name: str) -> Tensor:
        """The matrix of a part that is not learned, float32."""
        if name not in self._fixed:
            self._fixed[name] = self._given[name].dense(torch.float32)
        return self._fixed[name]


def _frozen(op: Operator) -> Operator:
    """The operator, whose matrix nothing changes later."""
    if not isinstance(op, Dense):
        return op
    frozen = copy(op)
    frozen.matrix = op.matrix.detach().clone()
    return frozen
