r"""The sum over the source, a tile at a time: any N, any device, bounded memory, differentiable.

With :math:`\delta_n = (z - x_n)^2` per pixel (summed over channels) or per dimension,

.. math::
    \ell_{kn} = -\frac{(Q \delta_n)_k}{2\sigma^2} + \log S(x_n), \qquad
    w_{kn} = \operatorname{softmax}_n \ell_{kn}, \qquad
    \hat{x} = \Big[\sum_n (R^\top w_{\cdot n}) \odot x_n\Big] \oslash R^\top 1 .

The softmax runs with a running maximum over tiles of source images. If every pixel belongs to one
estimator (R is all ones or the identity) a single pass does: when the maximum rises, the sums made
so far shrink with it. Otherwise a first pass finds each estimator's normaliser and a second one
mixes. The backward pass recomputes the log-weights and keeps the same bound on memory.

All of it is float64 whatever z's type, which is what float32 answers within 1e-5 take: a
log-weight of 1,500 (half the number of dimensions of a 32 × 32 colour image) has a spacing of
1.2e-4 in float32. In float64 the distance under q = 1 may be expanded,
:math:`\|z\|^2 - 2 z^\top x + \|x\|^2`, into one matrix product: at σ = 0.002 what the expansion
cancels leaves an error in ℓ below :math:`2 D \varepsilon (\|z\|^2 + \|x\|^2) / 2\sigma^2` at worst,
5e-4 for 32 × 32 colour images with values in [-1, 1] and the unit roundoff ε = 1.1e-16.

Arrays have the pixels first and the source last, (*pixels, b, n): operators act on the first
axes, and every elementwise step runs along n, contiguously.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fpmc.engine.tiling import tile
from fpmc.operators import Dense, Ones, Operator
from fpmc.source import Source

__all__ = [
    "denoise",
    "effective_number",
    "mean_and_evidence",
    "nearest",
    "posterior_means",
    "posterior_weights",
]


def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "b c h w"]:
    """The collection's answer x̂ of (10), differentiable in z and in the matrices of dense Q and R.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q, with K estimators.
        responses: R, with the same K; every pixel needs a positive sum.
        source: S.
        budget: Bytes of working memory, inputs and result not counted.
        forward: What computes x̂ from z instead, within the budget; the way back is the same.

    Returns:
        x̂ with z's shape, type and device. Differentiable in reverse mode, not by ``torch.func``.

    Raises:
        ValueError: If the budget is too small for a single pair of images.
    """
    size = tile(len(z), len(source), source.shape, (queries, responses), budget, z.device)
    matrices = (op.matrix if isinstance(op, Dense) else None for op in (queries, responses))
    return _Collection.apply(z, *matrices, sigma, queries, responses, source, size, forward)


@torch.no_grad()
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

    Arguments as in :func:`denoise`, and ``held``, the bytes of the budget that the caller's own
    arrays take.
    """
    operators = (queries, responses)
    size = tile(len(z), len(source), source.shape, operators, budget, z.device, held=held)
    answer = torch.empty_like(z, dtype=torch.float64)
    evidence = answer.new_empty(len(z), queries.k)
    q, r = (op.to(answer) for op in (queries, responses))
    for part in _split(len(z), size.b):
        total, log_norm = _forward(_pixels_first(z[part]), sigma, q, r, source, size.n)
        answer[part], evidence[part] = total.movedim(-1, 0), log_norm.T
    return answer, evidence


@torch.no_grad()
def posterior_weights(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k n"]:
    """The filtered posteriors w of (9), all of them. Arguments as in :func:`denoise`."""
    result = z.new_empty(len(z), queries.k, len(source))
    for part, tiles in _parts(z, sigma, queries, source, budget):
        log_norm = _log_normaliser(tiles()).unsqueeze(-1)
        start = 0
        for x, ell in tiles():
            stop = start + x.shape[-1]
            result[part, :, start:stop] = ell.sub_(log_norm).exp_().movedim(1, 0)
            start = stop
    return result


@torch.no_grad()
def posterior_means(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k c h w"]:
    """The filtered posterior means of (7), one whole image per estimator, before R mixes them."""
    result = z.new_empty(len(z), queries.k, *source.shape)
    for part, tiles in _parts(z, sigma, queries, source, budget, whole_images=True):
        log_norm = _log_normaliser(tiles()).unsqueeze(-1)
        total = 0
        for x, ell in tiles():
            weights = ell.sub_(log_norm).exp_().flatten(0, 1)  # (k·b, n)
            total += weights @ x.flatten(0, 2).T
        result[part] = total.view(queries.k, -1, *source.shape).movedim(1, 0)
    return result


@torch.no_grad()
def effective_number(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    source: Source,
    budget: int | None = None,
) -> Float[Tensor, "b k"]:
    r"""How many images a posterior spreads over: :math:`1 / \sum_n w_{kn}^2`, from 1 to N."""
    result = z.new_empty(len(z), queries.k)
    for part, tiles in _parts(z, sigma, queries, source, budget):
        log_norm = _log_normaliser(tiles()).unsqueeze(-1)
        squares = sum(ell.sub_(log_norm).mul_(2).exp_().sum(-1) for _, ell in tiles())
        result[part] = (1 / squares).T
    return result


@torch.no_grad()
def nearest(
    z: Float[Tensor, "b c h w"], queries: Operator, source: Source, budget: int | None = None
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Each estimator's nearest source image: where its posterior goes as σ → 0.

    Returns:
        The squared distance (Q δ)_k, shape (b, k), and the image's position in the source.
    """
    distances = z.new_empty(len(z), queries.k)
    positions = torch.empty(len(z), queries.k, dtype=torch.long, device=z.device)
    for part, tiles in _parts(z, 2**-0.5, queries, source, budget, weighted=False):
        best, position, start = None, None, 0
        for x, ell in tiles():
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


class _Collection(torch.autograd.Function):
    """x̂ from z, Q and R, and back, by recomputation, a part of the batch at a time."""

    @staticmethod
    def forward(ctx, z, q_matrix, r_matrix, sigma, queries, responses, source, size, forward):
        log_norm = None
        if forward is None:
            answer = torch.empty_like(z)
            q, r = (op.to(z.new_empty(0, dtype=torch.float64)) for op in (queries, responses))
            for part in _split(len(z), size.b):
                total, log_norm = _forward(_pixels_first(z[part]), sigma, q, r, source, size.n)
                answer[part] = total.movedim(-1, 0)
        else:
            answer = forward(z)
        ctx.save_for_backward(z, q_matrix, r_matrix, log_norm if size.b >= len(z) else None)
        ctx.collection = (sigma, queries, responses, source, size)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        z, q_matrix, r_matrix, log_norm = ctx.saved_tensors
        sigma, queries, responses, source, size = ctx.collection
        q, r = (op.to(z.new_empty(0, dtype=torch.float64)) for op in (queries, responses))
        wanted = ctx.needs_input_grad[:3]
        to_z = torch.empty_like(z) if wanted[0] else None
        to_q = torch.zeros_like(q.matrix) if wanted[1] else None
        to_r = torch.zeros_like(r.matrix) if wanted[2] else None
        for part in _split(len(z), size.b):
            z_t, gradient_t = _pixels_first(z[part]), _pixels_first(gradient[part])
            total = _backward(z_t, gradient_t, log_norm, to_q, to_r, sigma, q, r, source, size.n)
            if wanted[0]:
                to_z[part] = total.movedim(-1, 0)
        to_q = None if to_q is None else to_q.to(q_matrix)
        if to_r is not None:
            # The quotient's share: x̂ falls where Rᵀ1 grows.
            to_r -= (r.matrix * to_r).sum(0) / r.coverage()
            to_r = to_r.to(r_matrix)
        return to_z, to_q, to_r, None, None, None, None, None, None


def _forward(z_t, sigma, queries, responses, source, n):
    """x̂ (c, h, w, b) and the estimators' log-normalisers (k, b)."""
    if not responses.partition:
        log_norm = _log_normaliser(_tiles(z_t, sigma, queries, source, n))
        total = torch.zeros_like(z_t)
        for x, ell in _tiles(z_t, sigma, queries, source, n):
            total += _mix(ell.sub_(log_norm.unsqueeze(-1)).exp_(), x, responses)
        return total / _coverage(responses, z_t), log_norm

    peak = total = mass = None
    for x, ell in _tiles(z_t, sigma, queries, source, n):
        top = ell.amax(-1) if peak is None else torch.maximum(peak, ell.amax(-1))
        weights = ell.sub_(top.unsqueeze(-1)).exp_()
        if peak is None:
            mass, total = weights.sum(-1), _mix(weights, x, responses)
        else:
            shrink = (peak - top).exp_()
            mass = mass * shrink + weights.sum(-1)
            total = total * responses.transpose(shrink) + _mix(weights, x, responses)
        peak = top
    return total / responses.transpose(mass), peak + mass.log()


def _backward(z_t, gradient, log_norm, to_q, to_r, sigma, queries, responses, source, n):
    r"""The gradient with respect to z (c, h, w, b); those of Q and R are added to to_q and to_r.

    With :math:`\tilde g = g \oslash R^\top 1` and :math:`s_{kn} = (R\,(\tilde g \odot x_n))_k`, the
    softmax gives :math:`\partial \ell_{kn} = w_{kn} (s_{kn} - \sum_m w_{km} s_{km})`. These sum to
    zero over n, so z drops out of the difference in its own gradient
    :math:`\frac{1}{\sigma^2} \sum_n (Q^\top \partial\ell_{\cdot n}) \odot x_n`.
    What R gains from its numerator alone is :math:`\sum_n w_{kn} (\tilde g \odot x_n)_p`.
    """
    if log_norm is None:
        log_norm = _log_normaliser(_tiles(z_t, sigma, queries, source, n))
    scaled = gradient / _coverage(responses, z_t)

    def tiles():
        for x, ell in _tiles(z_t, sigma, queries, source, n):
            weights = ell.sub_(log_norm.unsqueeze(-1)).exp_()
            yield x, weights, *_project(scaled, x, responses)

    average = sum((w * s).sum(-1) for _, w, _, s in tiles()).unsqueeze(-1)
    to_z = torch.zeros_like(z_t)
    for x, w, products, s in tiles():
        if to_r is not None:
            to_r += _outer(w, products).view_as(to_r)
        to_ell = s.sub_(average).mul_(w)
        to_z += _mix(to_ell, x, queries).div_(sigma**2)
        if to_q is not None:
            delta = _differences(z_t, x, queries)
            to_q -= _outer(to_ell, delta).view_as(to_q).div_(2 * sigma**2)
    return to_z


def _split(batch: int, b: int) -> list[slice]:
    return [slice(start, start + b) for start in range(0, batch, b)]


def _parts(z, sigma, queries, source, budget, *, weighted=True, whole_images=False):
    """The batch in parts that fit the budget, each with a function that runs over its tiles."""
    size = tile(
        len(z), len(source), source.shape, (queries,), budget, z.device, whole_images=whole_images
    )
    queries = queries.to(z.new_empty(0, dtype=torch.float64))
    for part in _split(len(z), size.b):
        z_t = _pixels_first(z[part])
        yield part, partial(_tiles, z_t, sigma, queries, source, size.n, weighted)


def _tiles(z_t, sigma, queries, source, n, weighted=True) -> Iterator[tuple[Tensor, Tensor]]:
    """For each tile of the source: its images x (c, h, w, n) and log-weights ℓ (k, b, n)."""
    for start in range(0, len(source), n):
        index = slice(start, min(start + n, len(source)))
        x = source.read(index, torch.float64, z_t.device).permute(1, 2, 3, 0).contiguous()
        ell = _distances(z_t, x, queries).mul_(-1 / (2 * sigma**2))
        if weighted and source.log_weights is not None:
            ell += source.log_weights[index].to(ell)
        yield x, ell


def _log_normaliser(tiles: Iterator[tuple[Tensor, Tensor]]) -> Float[Tensor, "k b"]:
    total = None
    for _, ell in tiles:
        top = ell.amax(-1)
        part = ell.sub_(top.unsqueeze(-1)).exp_().sum(-1).log_().add_(top)
        total = part if total is None else torch.logaddexp(total, part)
    return total


def _distances(z_t: Tensor, x: Tensor, queries: Operator) -> Float[Tensor, "k b n"]:
    """Q δ."""
    if isinstance(queries, Ones):
        z, x = z_t.flatten(0, 2), x.flatten(0, 2)
        expanded = z.square().sum(0).unsqueeze(-1) + x.square().sum(0)
        return expanded.addmm_(z.T, x, alpha=-2).unsqueeze(0)
    return queries.apply(_differences(z_t, x, queries))


def _differences(z_t: Tensor, x: Tensor, queries: Operator) -> Float[Tensor, "*pixels b n"]:
    """δ, per pixel or per dimension, as Q wants it."""
    z, x = z_t.unsqueeze(-1), x.unsqueeze(-2)
    if len(queries.shape) == 3:
        return (z - x).square_()
    total = None
    for z_c, x_c in zip(z, x, strict=True):
        difference = z_c - x_c
        if total is None:
            total = difference.square_()
        else:
            total.addcmul_(difference, difference)
    return total


def _mix(weights: Float[Tensor, "k b n"], x: Tensor, op: Operator) -> Float[Tensor, "c h w b"]:
    """Σ_n (Aᵀ w_n) ⊙ x_n."""
    if isinstance(op, Ones):
        return (x.flatten(0, 2) @ weights[0].T).view(*x.shape[:3], -1)
    mixed = op.transpose(weights)
    if len(op.shape) == 3:
        return torch.einsum("chwbn,chwn->chwb", mixed, x)
    return torch.einsum("hwbn,chwn->chwb", mixed, x)


def _project(scaled: Tensor, x: Tensor, responses: Operator) -> tuple[Tensor | None, Tensor]:
    """g̃ ⊙ x_n per pixel or per dimension (*pixels, b, n), and R of it (k, b, n)."""
    if isinstance(responses, Ones):
        return None, (scaled.flatten(0, 2).T @ x.flatten(0, 2)).unsqueeze(0)
    if len(responses.shape) == 3:
        products = scaled.unsqueeze(-1) * x.unsqueeze(-2)
    else:
        products = torch.einsum("chwb,chwn->hwbn", scaled, x)
    return products, responses.apply(products)


def _outer(left: Float[Tensor, "k b n"], right: Tensor) -> Float[Tensor, "k p"]:
    """Sum over pairs (b, n) of left ⊗ right."""
    k, b, n = left.shape
    return left.reshape(k, b * n) @ right.reshape(-1, b * n).T


def _coverage(responses: Operator, z_t: Tensor) -> Float[Tensor, "..."]:
    """Rᵀ1, ready to divide (c, h, w, b)."""
    return responses.transpose(z_t.new_ones(responses.k)).unsqueeze(-1)


def _pixels_first(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "c h w b"]:
    return z.detach().double().movedim(0, -1).contiguous()
