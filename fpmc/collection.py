r"""Filtered posterior mean collections: two operators and a source.

A collection answers a noisy image z at noise level σ with

.. math::
    D(z, \sigma) = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1, \qquad
    w_{kn} = \operatorname{softmax}_n
        \Big[-\frac{(Q \delta_n)_k}{2\sigma^2} + \log S(x_n)\Big] .

Source: Niedoba et al. (2026), equations (7) to (10).
"""

from collections.abc import Callable, Mapping
from copy import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpmc import engine
from fpmc.checks import EXTREME, as_noise_level, as_whole_number
from fpmc.denoiser import DropIn, question_of_one_level
from fpmc.engine.memory import resolve
from fpmc.engine.problem import Problem
from fpmc.engine.ranks import Ranks
from fpmc.engine.streaming import posterior
from fpmc.features import Features, as_features
from fpmc.levels import Constant, nearest_level
from fpmc.modes import not_differentiable
from fpmc.operators import LARGEST, Dense, Operator, as_pair
from fpmc.seeds import own_stream
from fpmc.source import Source, as_source

__all__ = ["FPMC", "Posterior"]

LARGEST_RATIO = 1e130
"""Noise levels that a noisy pixel may lie from 0: squares of more, with weights, overflow."""

Operators = Operator | Mapping[float, Operator] | Callable[[float], Operator]


class FPMC(DropIn):
    r"""A filtered posterior mean collection, called as ``denoiser(z, sigma)``.

    Answers lie in [-1, 1] but for rounding. They are differentiable in z and in the matrices of
    dense operators that require gradients (in reverse mode: ``backward``, ``torch.autograd.grad``).

    Args:
        queries: Q, whose rows are the query precisions q_k: an operator, a {sigma: operator}
            mapping (the nearest sigma on a logarithmic scale wins), or a function from sigma to an
            operator.
        responses: R, whose rows are the response weights r_k, likewise.
        source: S.
        features: Φ, if Q acts on :math:`(\Phi z - \Phi x_n)^2` in the place of δ: a linear map, or
            a function from sigma to one. See :mod:`fpmc.features`.
        budget: Bytes of working memory that a call may take (inputs and result not counted);
            1 GiB if left out.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: On a call, if Q and R differ in their number of estimators, do not fit the
            source's images, or leave a pixel without response weight, or with a sum of weights
            that float32 hardly holds; if z lies too far out for sigma, or the budget is too small.

    Source: Niedoba et al. (2026), equation (10).
    """

    def __init__(
        self,
        queries: Operators,
        responses: Operators,
        source: Source,
        *,
        features: Features | Callable[[float], Features] | None = None,
        budget: int | None = None,
    ):
        self.source = as_source(source)
        self.budget = resolve(budget)
        self.precision = "exact"
        self._queries = _by_level(queries, "queries")
        self._responses = _by_level(responses, "responses")
        self._features = features if callable(features) else Constant(features)

    def __repr__(self) -> str:
        return f"FPMC({self.source!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        return self.source.shape

    def with_precision(self, precision: str) -> "FPMC":
        """The same collection, whose calls are computed with this precision.

        Args:
            precision: "exact", as collections are made; or a faster, less exact one: see
                :func:`fpmc.engine.denoise`. Gradients and posteriors stay exact.

        Raises:
            ValueError: If there is none of that name.
        """
        collection = copy(self)
        collection.precision = engine.as_precision(precision)
        return collection

    def operators(self, sigma: float) -> tuple[Operator, Operator]:
        """Q and R at a noise level σ > 0."""
        sigma = as_noise_level(sigma)
        given = self._queries(sigma), self._responses(sigma), self.source.shape
        pair = as_pair(*given, self.features(sigma))
        for name, op in zip(("queries", "responses"), pair, strict=True):
            if isinstance(op, Dense):
                op.check(name)
        return pair

    def features(self, sigma: float) -> Features | None:
        """Φ at a noise level σ > 0; None if Q acts on pixels."""
        features = self._features(as_noise_level(sigma))
        return None if features is None else as_features(features, self.source.shape)

    def _answer(
        self, z: Float[Tensor, "b c h w"], sigma: float, ranks: Ranks | None = None
    ) -> Float[Tensor, "b c h w"]:
        queries, responses = self._operators(z, sigma)
        check_coverage(responses)
        how = {"precision": self.precision, "ranks": ranks, "features": self.features(sigma)}
        return engine.denoise(z, sigma, queries, responses, self.source, self.budget, **how)

    def _move(self, device: torch.device) -> None:
        self.source = self.source.to(device)

    def posterior(self, z: Float[Tensor, "b c h w"], sigma: float) -> "Posterior":
        """The filtered posteriors of (9) behind an answer, of one noise level for all images.

        Arguments and errors as in a call.
        """
        z, sigma = question_of_one_level(z, sigma, self.shape)
        operators = self._operators(z, sigma)
        how = {"features": self.features(sigma)}
        return Posterior(z, Problem(*operators, self.source, sigma, self.budget, **how))

    def _operators(self, z: Tensor, sigma: float) -> tuple[Operator, Operator]:
        """Q and R at σ, if z lies within what can be squared there."""
        largest = LARGEST_RATIO * sigma
        if largest < EXTREME and (far := z.detach().abs().max().item()) > largest:
            raise ValueError(
                f"z: got values up to {far:.3g} at sigma = {sigma:.3g}, wanted them up to "
                f"{LARGEST_RATIO:g} times sigma: squares of larger ratios overflow"
            )
        return self.operators(sigma)


class Posterior:
    """K filtered posteriors over a source, for each of b noisy images.

    Made by :meth:`FPMC.posterior`. What is asked for is computed then; ``weights()`` and ``mean()``
    are as large as their shapes say, so ask for few noisy images at a time. Not differentiable:
    a call for a gradient is an error.
    """

    def __init__(self, z: Float[Tensor, "b c h w"], problem: Problem):
        self._arguments = (z, problem)

    def weights(self) -> Float[Tensor, "b k n"]:
        """w_kn = p(x_n | z; q_k, S), equation (9): shape (b, k, n), each row sums to 1."""
        return self._constant(posterior.posterior_weights(*self._arguments))

    def mean(self) -> Float[Tensor, "b k c h w"]:
        """The filtered posterior means :math:`D_{q_k,S}(z)` of (7): shape (b, k, c, h, w)."""
        return self._constant(posterior.posterior_means(*self._arguments))

    def effective_number(self) -> Float[Tensor, "b k"]:
        r"""How many source images each posterior spreads over, :math:`1/\sum_n w_{kn}^2`.

        Shape (b, k), from 1 (one image has all the weight) to N (all have the same): the effective
        sample size of importance sampling (Kish, 1965).
        """
        return self._constant(posterior.effective_number(*self._arguments))

    def entropy(self) -> Float[Tensor, "b k"]:
        r"""How much each posterior leaves open, :math:`-\sum_n w_{kn} \log w_{kn}` in nats.

        Shape (b, k), float64, from 0 to log N. Its exponential counts images, too, from 1 to N; it
        is at least :meth:`effective_number`.
        """
        return self._constant(posterior.knowledge(*self._arguments).entropy)

    def information(self) -> Float[Tensor, "b k"]:
        r"""What each posterior knows over S, :math:`\sum_n w_{kn} \log (w_{kn} / S(x_n))`.

        Shape (b, k), float64, in nats, from 0. Where all images weigh the same it is log N less
        :meth:`entropy`. See :mod:`fpmc.memorisation`.
        """
        return self._constant(posterior.knowledge(*self._arguments).information)

    def sample(
        self,
        n: int = 1,
        seed: int | torch.Generator | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, "m b k"]:
        r"""Draw source images from the posteriors: n independent positions :math:`n \sim w_k` each.

        Estimators are drawn from independently of each other. For K = 1 a draw is a whole image,
        and ``source[draws[:, i, 0]]``, shape (n, c, h, w), are draws from p(x | z_i).

        Args:
            n: Draws of each posterior, at least 1.
            seed: A seed, 0 if left out, or a generator. A seed gives the same draws each time,
                whatever the budget; z may have been made of it, too.
            generator: A generator, in the seed's place.

        Returns:
            Positions in the source, shape (n, b, k).

        Raises:
            TypeError: If n is not a whole number, or the seed neither seed nor generator.
            ValueError: If n or the seed is out of range, the budget too small for n, or seed and
                generator are both given.
        """
        n, noise = as_whole_number(n, "n", 1), own_stream("posterior", seed, generator)
        return posterior.draws(*self._arguments, n, noise)

    def top(self, n: int) -> tuple[Float[Tensor, "b k n"], Int64[Tensor, "b k n"]]:
        """The n source images with the largest weights of each posterior, heaviest first.

        The source is gone through once, a chunk at a time: all weights, (b, k, N), never exist.
        Images with equal weights come in any order.

        Args:
            n: How many, from 1 to the size N of the source.

        Returns:
            Their weights, of z's type, and their positions in the source, both (b, k, n).

        Raises:
            TypeError: If n is not a whole number.
            ValueError: If n is out of range, or the budget too small for it.
        """
        n = as_whole_number(n, "n", 1, len(self._arguments[1].source))
        weights, positions = posterior.heaviest(*self._arguments, n)
        return self._constant(weights), positions

    def _constant(self, value: Tensor) -> Tensor:
        z, problem = self._arguments
        matrices = [problem.queries.matrix] if isinstance(problem.queries, Dense) else []
        return not_differentiable(value, "a posterior", z, *matrices)


def check_coverage(responses: Operator) -> None:
    """See that every pixel has a sum of response weights to divide by."""
    coverage = responses.coverage()
    uncovered = int((coverage <= 0).sum())
    if uncovered:
        raise ValueError(
            f"responses: {uncovered} positions have no response weight, wanted a positive sum "
            "over the estimators everywhere"
        )
    least, most = (value.item() for value in coverage.aminmax())
    if least < 1 / LARGEST or most > LARGEST:
        raise ValueError(
            f"responses: got sums over the estimators from {least:.3g} to {most:.3g}, wanted "
            f"them between {1 / LARGEST:g} and {LARGEST:g}: scale them, which changes no answer"
        )


def _by_level(operators: Operators, name: str) -> Callable[[float], Operator]:
    if isinstance(operators, Operator):
        return Constant(operators)
    if isinstance(operators, Mapping):
        return nearest_level(operators, name)
    if callable(operators):
        return operators
    raise TypeError(
        f"{name}: got {type(operators).__name__}, wanted an operator, a mapping from sigma to "
        "operators, or a function from sigma to an operator"
    )
