"""What filtered posteriors are: weights, means, entropies, draws, the heaviest, modes."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fpmc.engine.problem import Problem, log_weights
from fpmc.engine.softmax import OnlineSoftmax
from fpmc.engine.sparsity import ready
from fpmc.engine.streaming.arithmetic import pixels_first, tiles
from fpmc.engine.streaming.sizes import Tile, tile
from fpmc.modes import without_autograd
from fpmc.operators import Ones, Operator
from fpmc.source import Source

__all__ = [
    "Knowledge",
    "draws",
    "effective_number",
    "heaviest",
    "knowledge",
    "largest",
    "nearest",
    "posterior_means",
    "posterior_weights",
]


@without_autograd
def posterior_weights(z: Float[Tensor, "b c h w"], problem: Problem) -> Float[Tensor, "b k n"]:
    """The filtered posteriors w of (9), all of them."""
    result = z.new_empty(len(z), problem.queries.k, len(problem.source))
    for part, walk in _parts(z, problem):
        log_norm = _log_norm(walk()).unsqueeze(-1)
        start = 0
        for x, ell in walk():
            stop = start + x.shape[-1]
            result[part, :, start:stop] = ell.sub_(log_norm).exp_().movedim(1, 0)
            start = stop
    return result


@without_autograd
def posterior_means(z: Float[Tensor, "b c h w"], problem: Problem) -> Float[Tensor, "b k c h w"]:
    """The filtered posterior means of (7), one whole image per estimator, before R mixes them."""
    k, shape = problem.queries.k, problem.source.shape
    result = z.new_empty(len(z), k, *shape)
    for part, walk in _parts(z, problem, whole_images=True):
        log_norm = _log_norm(walk()).unsqueeze(-1)
        total = 0
        for x, ell in walk():
            weights = ell.sub_(log_norm).exp_().flatten(0, 1)  # (k·b, n)
            total += weights @ x.flatten(0, 2).T
        result[part] = total.view(k, -1, *shape).movedim(1, 0)
    return result


@without_autograd
def effective_number(z: Float[Tensor, "b c h w"], problem: Problem) -> Float[Tensor, "b k"]:
    r"""How many images a posterior spreads over: :math:`1 / \sum_n w_{kn}^2`, from 1 to N.

    At least float32.
    """
    result = z.new_empty(len(z), problem.queries.k, dtype=_at_least_float32(z))
    for part, walk in _parts(z, problem):
        log_norm = _log_norm(walk()).unsqueeze(-1)
        squares = sum(ell.sub_(log_norm).mul_(2).exp_().sum(-1) for _, ell in walk())
        result[part] = (1 / squares).T
    return result


class Knowledge(NamedTuple):
    r"""What posteriors know, shapes (b, k), float64, in nats.

    Attributes:
        entropy: :math:`-\sum_n w_n \log w_n`.
        information: :math:`\sum_n w_n \log (w_n / S(x_n))`, from 0.
        evidence: :math:`\log \sum_n S(x_n) \exp(-(Q \delta_n)_k / 2\sigma^2)`.
    """

    entropy: Float[Tensor, "b k"]
    information: Float[Tensor, "b k"]
    evidence: Float[Tensor, "b k"]


@without_autograd
def knowledge(z: Float[Tensor, "b c h w"], problem: Problem) -> Knowledge:
    r"""Entropies, information over the prior S, and evidences, in one walk over the source.

    With :math:`t_n = \ell_n - m` off the peak m, :math:`M = \sum_n e^{t_n}` and
    :math:`A = -\sum_n e^{t_n} t_n` the entropy is :math:`\log M + A / M`. When the peak rises by a,
    A becomes :math:`e^{-a} (A + a M)`.
    """
    result = Knowledge(*(z.new_empty(3, len(z), problem.queries.k, dtype=torch.float64)))
    prior = log_weights(problem.source, z.new_empty(0, dtype=torch.float64))
    uniform = -math.log(len(problem.source))
    for part, walk in _parts(z, problem, rows=4):
        softmax, spread, cross, start = OnlineSoftmax(), 0, 0, 0
        for x, ell in walk():
            peak, mass, stop = softmax.peak, softmax.mass, start + x.shape[-1]
            weights = softmax.weigh(softmax.take(ell))
            if peak is not None:
                spread = softmax.shrink * (spread + (softmax.peak - peak) * mass)
                cross = softmax.shrink * cross
            spread = spread + torch.stack([torch.special.entr(w).sum(-1) for w in weights])
            if prior is not None:
                cross = cross + weights @ prior[start:stop]
            start = stop
        spread, log_norm = spread / softmax.mass, softmax.log_norm()
        entropy = (softmax.mass.log() + spread).clamp_(min=0)
        expected = uniform if prior is None else cross / softmax.mass  # of log S
        result.entropy[part] = entropy.T
        result.information[part] = (-entropy - expected).clamp_(min=0).T
        result.evidence[part] = (log_norm + (uniform if prior is None else 0)).T
    return result


@without_autograd
def draws(
    z: Float[Tensor, "b c h w"], problem: Problem, n: int, generator: torch.Generator
) -> Int[Tensor, "m b k"]:
    r"""Independent draws from each posterior, n of them: positions in the source, shape (n, b, k).

    The inverse of the distribution function, in the source's order: a draw is how many of the
    cumulative sums :math:`w_{k1} + … + w_{kn}` a uniform number u has reached. All u are drawn
    first, so that tiles decide nothing: only a u within rounding of a sum, some 1e-13, could fall
    on its other side. An image without weight is never drawn.

    Args:
        z: Noisy images, shape (b, c, h, w).
        problem: What is asked.
        n: Draws of each posterior.
        generator: Where they come from.
    """
    shape = (n, len(z), problem.queries.k)
    u = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    u = u.to(z.device)
    result = u.view(torch.int64)  # in the memory of u, of which a part is taken before it is filled
    for part, walk in _parts(z, problem, rows=4 * n):
        log_norm = _log_norm(walk()).unsqueeze(-1)
        wanted = u[:, part].movedim(0, -1).movedim(0, 1).contiguous()  # (k, b, n)
        reached, position, last, start = 0, 0, 0, 0
        for x, ell in walk():
            below = ell.contiguous().sub_(log_norm).exp_().cumsum_(-1).add_(reached)
            position += torch.searchsorted(below, wanted, right=True)
            top = below[..., -1:].clone()
            # Where the sums end, lest rounding leaves them below 1 and a u is above all of them.
            last = torch.where(top > reached, start + torch.searchsorted(below, top), last)
            reached, start = top, start + x.shape[-1]
        result[:, part] = torch.minimum(position, last).movedim(-1, 0).transpose(1, 2)
    return result


@without_autograd
def heaviest(
    z: Float[Tensor, "b c h w"], problem: Problem, n: int
) -> tuple[Float[Tensor, "b k n"], Int[Tensor, "b k n"]]:
    """Each posterior's n largest weights, falling, and whose they are; n up to the source's size.

    Returns:
        The weights, with z's type, and the images' positions in the source, both (b, k, n).
    """
    weights = z.new_empty(len(z), problem.queries.k, n)
    positions = torch.empty(weights.shape, dtype=torch.long, device=z.device)
    for part, walk in _parts(z, problem, rows=10 * n):
        value, index = largest((ell for _, ell in walk()), n)
        weights[part], positions[part] = value.movedim(1, 0), index.movedim(1, 0)
    return weights, positions


def largest(
    parts: Iterable[Float[Tensor, "*rows m"]], n: int
) -> tuple[Float[Tensor, "*rows n"], Int[Tensor, "*rows n"]]:
    """The n largest weights, falling, and their positions, from log-weights a part at a time."""
    softmax, best, start = OnlineSoftmax(), None, 0
    for ell in parts:
        value, index = ell.topk(min(n, ell.shape[-1]))
        index += start
        start += ell.shape[-1]
        if best is not None:
            value, order = torch.cat([best[0], value], -1).topk(min(n, start))
            index = torch.cat([best[1], index], -1).gather(-1, order)
        best = value, index
        softmax.weigh(softmax.take(ell))
    value, index = best
    return value.sub_(softmax.log_norm().unsqueeze(-1)).exp_(), index


@without_autograd
def nearest(
    z: Float[Tensor, "b c h w"], queries: Operator, source: Source, budget: int | None = None
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Each estimator's nearest source image: where its posterior goes as σ → 0.

    Returns:
        The squared distance (Q δ)_k, shape (b, k), at least float32, and the image's position in
        the source.
    """
    distances = z.new_empty(len(z), queries.k, dtype=_at_least_float32(z))
    positions = torch.empty(len(z), queries.k, dtype=torch.long, device=z.device)
    problem = Problem(queries, queries, source.unweighted(), 2**-0.5, budget)  # ℓ = −Q δ
    for part, walk in _parts(z, problem):
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


def _log_norm(walk) -> Float[Tensor, "k b"]:
    """The log-normalisers, from tiles of log-weights."""
    softmax = OnlineSoftmax()
    for _, ell in walk:
        softmax.weigh(softmax.take(ell))
    return softmax.log_norm()


def _at_least_float32(z: Tensor) -> torch.dtype:
    """A type that holds numbers of images, and distances."""
    return torch.promote_types(z.dtype, torch.float32)


def _parts(z, problem, **options):
    """The batch in parts that fit the budget, each with a function that runs over its tiles."""
    size = _size(z, problem, **options)
    problem = replace(problem, queries=ready(problem.queries, z.new_empty(0, dtype=torch.float64)))
    for start in range(0, len(z), size.b):
        part = slice(start, start + size.b)
        yield part, partial(tiles, pixels_first(z[part]), problem, size.n)


def _size(z, problem, **options) -> Tile:
    """How much at a time, of what applies Q."""
    source = problem.source
    arguments = (len(z), len(source), source.shape, (problem.queries,), problem.budget, z.device)
    return tile(*arguments, held=problem.held, **options)
