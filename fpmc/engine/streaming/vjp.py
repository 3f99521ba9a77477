r"""The gradients with respect to z, Q and R, by going through the tiles of the source again.

With :math:`\tilde g = g \oslash R^\top 1` and the slopes
:math:`s_{kn} = (R\,(\tilde g \odot x_n))_k`, the softmax gives
:math:`\partial \ell_{kn} = w_{kn} (s_{kn} - \sum_m w_{km} s_{km})`. These sum to zero over n, so z
drops out of the difference in its own gradient
:math:`\frac{1}{\sigma^2} \sum_n (Q^\top \partial\ell_{\cdot n}) \odot x_n`, and any constant may be
subtracted from the x_n, there and in s. The answer x̂ is the one that keeps digits.

Q's gradient is :math:`-\frac{1}{2\sigma^2} \sum_n \partial\ell_{kn} \delta_{np}`. What R gains from
its numerator alone is :math:`\sum_n w_{kn} (\tilde g \odot x_n)_p`; with x_n − x̂ in the place of
x_n it is all of its gradient, as its denominator takes off as much of x̂.

Ranks that have a part of the source each share normalisers and mean slopes after the first pass;
the gradients are sums over their parts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.problem import Problem
from fpmc.engine.softmax import exp
from fpmc.engine.streaming.arithmetic import Dtypes, coverage, differences, start
from fpmc.engine.streaming.kept import Kept, significant
from fpmc.engine.streaming.sizes import Tile
from fpmc.operators import Ones, Operator

__all__ = ["backward"]


def backward(
    z_t: Float[Tensor, "c h w b"],
    gradient: Float[Tensor, "c h w b"],
    x_hat: Float[Tensor, "c h w b"],
    to_q: Tensor | None,
    to_r: Tensor | None,
    problem: Problem,
    size: Tile,
    types: Dtypes,
) -> Float[Tensor, "c h w b"]:
    r"""The gradient with respect to z, float64; those of Q and R are added to to_q and to_r.

    Of several ranks each adds its own part to to_q and to_r.

    Args:
        z_t: Noisy images, pixels first, float64.
        gradient: g, the gradient with respect to the answer.
        x_hat: The answer.
        to_q: Where Q's gradient is added, float64, if it is wanted.
        to_r: Where R's is.
        problem: What is asked, Q and R ready to act on the types of log-weights and of weights.
        size: How much of the source at a time, and whether log-weights and s are kept.
        types: The types to compute in.
    """
    (queries, responses), sigma = problem.operators, problem.sigma
    scaled = gradient / coverage(responses, z_t)
    kept = Kept(z_t, problem, size, types, slopes=True)
    log_norm, average = _average_slopes(kept, scaled, x_hat, responses)
    spread_q, keys = queries.to(z_t.to(types.weights)), problem.keys
    z_keys, answer_keys = keys(z_t), keys(x_hat)
    to_z = torch.zeros_like(z_keys)
    for x, t, s in kept.again(log_norm):
        use = significant(t)
        x, weights = x[..., use], exp(t[..., use])
        products, s = None, None if s is None else s[..., use]
        if to_r is not None or s is None:
            products, s = _slopes(scaled, x_hat, x, responses, types)
        if to_r is not None:
            to_r += _outer(weights, products).view_as(to_r)
        to_ell = (s - average.to(s)).mul_(weights)
        x_keys = keys(x)
        to_z += _to_z(to_ell, x_keys, answer_keys, spread_q).div_(sigma**2)
        if to_q is not None:
            delta = differences(z_keys.to(x), x_keys, queries).to(to_ell)
            to_q -= _outer(to_ell, delta).view_as(to_q).div_(2 * sigma**2)
    if problem.features is not None:
        to_z = problem.features.transpose(to_z)
    return to_z if problem.ranks is None else problem.ranks.sum(to_z)


def _average_slopes(kept, scaled, x_hat, responses) -> tuple[Tensor, Tensor]:
    """The first pass: log-normalisers (k, b), and the mean of s under each posterior (k, b, 1)."""
    softmax, ranks = start(kept.z_t, kept.problem, values=True), kept.problem.ranks
    for i, (x, ell) in enumerate(kept.first()):
        t = softmax.take(ell, kept.types.weights)
        s = _slopes(scaled, x_hat, x, responses, kept.types)[1]
        kept.put(i, softmax.peak, t, s)
        softmax.add((softmax.weigh(t) * s).sum(-1, dtype=torch.float64))
    if ranks is not None:
        softmax.join(ranks)
    return softmax.log_norm(), softmax.mean().unsqueeze(-1)


def _slopes(scaled, x_hat, x, responses, types) -> tuple[Tensor | None, Tensor]:
    """g̃ ⊙ (x_n − x̂) per pixel or per dimension (*pixels, b, n), and s of them, R's."""
    dtype, at_answer = types.weights, scaled * x_hat
    if isinstance(responses, Ones):
        s = (scaled.to(x).flatten(0, 2).T @ x.flatten(0, 2)).unsqueeze(0)
        return None, s.sub_(at_answer.sum((0, 1, 2)).unsqueeze(-1)).to(dtype)
    products = _project(scaled.to(x), x, responses)
    at_answer = at_answer if len(responses.shape) == 3 else at_answer.sum(0)
    products = products.sub_(at_answer.unsqueeze(-1)).to(dtype)
    return products, responses.apply(products)


def _project(
    scaled: Float[Tensor, "c h w b"], x: Float[Tensor, "c h w n"], op: Operator
) -> Float[Tensor, "*pixels b n"]:
    """g̃ ⊙ x_n, per pixel or per dimension, as the operator wants it."""
    if len(op.shape) == 3:
        return scaled.unsqueeze(-1) * x.unsqueeze(-2)
    return torch.einsum("chwb,chwn->hwbn", scaled, x)


def _to_z(
    to_ell: Float[Tensor, "k b n"], x: Tensor, x_hat: Tensor, queries: Operator
) -> Float[Tensor, "c h w b"]:
    """Σ_n (Qᵀ ∂ℓ_n) ⊙ (x_n − x̂), float64."""
    if isinstance(queries, Ones):
        to_ell = to_ell[0].to(x)
        total = (x.flatten(0, 2) @ to_ell.T).view(*x.shape[:3], -1)
        return total - x_hat * to_ell.sum(-1)
    mixed = queries.transpose(to_ell).to(x)
    pixels = "chw" if mixed.ndim == 5 else "hw"
    total = torch.einsum(f"{pixels}bn,chwn->chwb", mixed, x)
    return total - x_hat * mixed.sum(-1)


def _outer(left: Float[Tensor, "k b n"], right: Tensor) -> Float[Tensor, "k p"]:
    """Sum over pairs (b, n) of left ⊗ right."""
    k, b, n = left.shape
    return left.reshape(k, b * n) @ right.reshape(right.shape[:-2].numel(), b * n).T
