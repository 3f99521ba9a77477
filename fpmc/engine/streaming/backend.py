r"""The sum over the source, a tile at a time: any N, any device, bounded memory, differentiable.

With :math:`\delta_n = (z - x_n)^2` per pixel (summed over channels) or per dimension,

.. math::
    \ell_{kn} = -\frac{(Q \delta_n)_k}{2\sigma^2} + \log S(x_n), \qquad
    w_{kn} = \operatorname{softmax}_n \ell_{kn}, \qquad
    \hat{x} = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1 .

Distances and log-weights are float64 whatever z's type, which is what float32 answers within 1e-5
take: a log-weight of 1,500 (half the number of dimensions of a 32 × 32 colour image) has a spacing
of 1.2e-4 in float32. What is rounded to float32 is a log-weight less the running maximum, which is
small where it matters, and the weights, which the responses mix in float32; every sum over tiles is
float64. :mod:`fpmc.engine.streaming.passes` says how the tiles are gone through, and back.

In float64 the distance under q = 1 may be expanded,
:math:`\|z\|^2 - 2 z^\top x + \|x\|^2`, into one matrix product: at σ = 0.002 what the expansion
cancels leaves an error in ℓ below :math:`2 D \varepsilon (\|z\|^2 + \|x\|^2) / 2\sigma^2` at worst,
5e-4 for 32 × 32 colour images with values in [-1, 1] and the unit roundoff ε = 1.1e-16.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.engine.autograd import Path
from fpmc.engine.memory import Tile, tile
from fpmc.engine.streaming.passes import backward, forward
from fpmc.engine.streaming.tiles import (
    EXACT,
    FLOAT32,
    FLOAT64,
    Numbers,
    log_normaliser,
    pixels_first,
    tiles,
)
from fpmc.modes import without_autograd
from fpmc.operators import Dense, Ones, Operator
from fpmc.source import Source

__all__ = [
    "Streaming",
    "effective_number",
    "mean_and_evidence",
    "nearest",
    "posterior_means",
    "posterior_weights",
]


class Streaming(Path):
    """The sum over the source by tiles, and back, for any Q and R on any device.

    Args:
        sigma: The noise level σ > 0 of what will be asked.
        queries: Q, with K estimators.
        responses: R, with the same K; every pixel needs a positive sum.
        source: S.
        budget: Bytes of working memory, inputs and results not counted.
        fast: Whether answers may be computed in float32 throughout; gradients never are.
    """

    def __init__(
        self,
        sigma: float,
        queries: Operator,
        responses: Operator,
        source: Source,
        budget: int | None = None,
        *,
        fast: bool = False,
    ):
        self.sigma, self.source, self.budget, self.fast = sigma, source, budget, fast
        self.queries, self.responses = queries, responses

    def size(self, batch: int, device: torch.device, numbers: Numbers, *, back: bool) -> Tile:
        """How much at a time, and whether what Q is applied to is kept for the second pass.

        Raises:
            ValueError: If the budget is too small for a single pair of images.
        """
        again = isinstance(self.queries, Dense) and (back or not self.responses.partition)
        arguments = (batch, len(self.source), self.source.shape, (self.queries, self.responses))
        keep = again * (1 + back) * numbers.weights.itemsize
        return tile(*arguments, self.budget, device, keep=keep)

    @without_autograd
    def answer(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        numbers = self.numbers(z)
        size = self.size(len(z), z.device, numbers, back=False)
        q, r = self.ready(z, numbers)
        x_hat = torch.empty_like(z)
        for part in _split(len(z), size.b):
            z_t = pixels_first(z[part])
            total, _ = forward(z_t, self.sigma, q, r, self.source, size, numbers)
            x_hat[part] = total.movedim(-1, 0)
        return x_hat

    @without_autograd
    def vjp(
        self,
        z: Float[Tensor, "b c h w"],
        x_hat: Float[Tensor, "b c h w"],
        gradient: Float[Tensor, "b c h w"],
        to_q: Tensor | None = None,
        to_r: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        numbers = _exact(z)
        size = self.size(len(z), z.device, numbers, back=True)
        q, r = self.ready(z, numbers)
        to_z = torch.empty_like(z)
        for part in _split(len(z), size.b):
            arrays = [pixels_first(a[part]) for a in (z, gradient, x_hat)]
            total = backward(*arrays, to_q, to_r, self.sigma, q, r, self.source, size, numbers)
            to_z[part] = total.movedim(-1, 0)
        return to_z

    def numbers(self, z: Tensor) -> Numbers:
        """The types to compute in."""
        return FLOAT32 if self.fast else _exact(z)

    def ready(self, z: Tensor, numbers: Numbers) -> tuple[Operator, Operator]:
        """Q and R, ready to act on these types where z lies."""
        like = z.new_empty(0)
        queries = self.queries.to(like.to(numbers.log_weights))
        return queries, self.responses.to(like.to(numbers.weights))


@without_autograd
def mean_and_evidence(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
    held: int = 0,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    r"""The answer, and each estimator's log-evidence :math:`\log\sum_n \exp\ell_{kn}`, in float64.

    Arguments as in :class:`Streaming`, and ``held``, the bytes of the budget that the caller's own
    arrays take.
    """
    operators = (queries, responses)
    size = tile(len(z), len(source), source.shape, operators, budget, z.device, held=held)
    answer = torch.empty_like(z, dtype=torch.float64)
    evidence = answer.new_empty(len(z), queries.k)
    q, r = (op.to(answer) for op in (queries, responses))
    for part in _split(len(z), size.b):
        total, log_norm = forward(pixels_first(z[part]), sigma, q, r, source, size, FLOAT64)
        answer[part], evidence[part] = total.movedim(-1, 0), log_norm.T
    return answer, evidence


@without_autograd
def posterior_weights(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k n"]:
    """The filtered posteriors w of (9), all of them. Arguments as in :class:`Streaming`."""
    result = z.new_empty(len(z), queries.k, len(source))
    for part, walk in _parts(z, sigma, queries, source, budget):
        log_norm = log_normaliser(walk()).unsqueeze(-1)
        start = 0
        for x, ell in walk():
            stop = start + x.shape[-1]
            result[part, :, start:stop] = ell.sub_(log_norm).exp_().movedim(1, 0)
            start = stop
    return result


@without_autograd
def posterior_means(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k c h w"]:
    """The filtered posterior means of (7), one whole image per estimator, before R mixes them."""
    result = z.new_empty(len(z), queries.k, *source.shape)
    for part, walk in _parts(z, sigma, queries, source, budget, whole_images=True):
        log_norm = log_normaliser(walk()).unsqueeze(-1)
        total = 0
        for x, ell in walk():
            weights = ell.sub_(log_norm).exp_().flatten(0, 1)  # (k·b, n)
            total += weights @ x.flatten(0, 2).T
        result[part] = total.view(queries.k, -1, *source.shape).movedim(1, 0)
    return result


@without_autograd
def effective_number(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k"]:
    r"""How many images a posterior spreads over: :math:`1 / \sum_n w_{kn}^2`, from 1 to N.

    At least float32.
    """
    result = z.new_empty(len(z), queries.k, dtype=_wide(z))
    for part, walk in _parts(z, sigma, queries, source, budget):
        log_norm = log_normaliser(walk()).unsqueeze(-1)
        squares = sum(ell.sub_(log_norm).mul_(2).exp_().sum(-1) for _, ell in walk())
        result[part] = (1 / squares).T
    return result


@without_autograd
def nearest(
    z: Float[Tensor, "b c h w"], queries: Operator, source: Source, budget: int | None = None
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Each estimator's nearest source image: where its posterior goes as σ → 0.

    Returns:
        The squared distance (Q δ)_k, shape (b, k), at least float32, and the image's position in
        the source.
    """
    distances = z.new_empty(len(z), queries.k, dtype=_wide(z))
    positions = torch.empty(len(z), queries.k, dtype=torch.long, device=z.device)
    for part, walk in _parts(z, 2**-0.5, queries, source, budget, weighted=False):
        best, position, start = None, None, 0
        for x, ell in walk():
            value, index = ell.max(-1)
            if best is None:
                best, position = value, index
            else:
                position = torch.where(value > best, index + start, position)
                best = torch.maximum(value, best)
            start += x.shape[-1]
        if isinstance(queries, Ones):  # what the expanded square left of a distance of zero
            found = source.read(position[0], torch.float64, z.device)
            best = -(z[part].double() - found).square().flatten(1).sum(1).unsqueeze(0)
        distances[part], positions[part] = -best.T, position.T
    return distances, positions


def _exact(z: Tensor) -> Numbers:
    """The types that keep the digits of z's."""
    return FLOAT64 if z.dtype == torch.float64 else EXACT


def _wide(z: Tensor) -> torch.dtype:
    """A type that holds numbers of images, and distances: z's, or float32 if that is less."""
    return torch.promote_types(z.dtype, torch.float32)


def _split(batch: int, b: int) -> list[slice]:
    return [slice(start, start + b) for start in range(0, batch, b)]


def _parts(z, sigma, queries, source, budget, *, weighted=True, whole_images=False):
    """The batch in parts that fit the budget, each with a function that runs over its tiles."""
    size = tile(
        len(z), len(source), source.shape, (queries,), budget, z.device, whole_images=whole_images
    )
    queries = queries.to(z.new_empty(0, dtype=torch.float64))
    for part in _split(len(z), size.b):
        z_t = pixels_first(z[part])
        yield part, partial(tiles, z_t, sigma, queries, source, size.n, weighted)
