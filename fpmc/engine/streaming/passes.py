r"""What runs over the tiles of a source: the answer, and its gradients by recomputation.

The softmax runs with a running maximum over tiles of source images. If every pixel belongs to one
estimator (R is all ones or the identity) a single pass does: when the maximum rises, the sums made
so far shrink with it. Otherwise a first pass finds each estimator's normaliser and a second one
mixes. Where the budget has room for the log-weights of a few noisy images against the whole source,
the first pass keeps them: Q, which is what takes the time, is applied once.

Going back, with :math:`\tilde g = g \oslash R^\top 1` and
:math:`s_{kn} = (R\,(\tilde g \odot x_n))_k`, the softmax gives
:math:`\partial \ell_{kn} = w_{kn} (s_{kn} - \sum_m w_{km} s_{km})`. These sum to zero over n, so z
drops out of the difference in its own gradient
:math:`\frac{1}{\sigma^2} \sum_n (Q^\top \partial\ell_{\cdot n}) \odot x_n`, and any constant may be
subtracted from the x_n, there and in s. The answer x̂ is the one that keeps digits.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.memory import CUTOFF, Tile
from fpmc.engine.streaming.tiles import Numbers, coverage, differences, mix, outer, project, tiles
from fpmc.operators import Ones, Operator
from fpmc.source import Source

__all__ = ["backward", "forward"]

LOG2_E = 1 / math.log(2)


def forward(
    z_t: Float[Tensor, "c h w b"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    size: Tile,
    numbers: Numbers,
) -> tuple[Float[Tensor, "c h w b"], Float[Tensor, "k b"]]:
    """x̂ and the estimators' log-normalisers, float64.

    Args:
        z_t: Noisy images, pixels first, float64.
        sigma: Their noise level.
        queries: Q, ready to act on log-weights' type.
        responses: R, ready to act on weights' type.
        source: S.
        size: How much of the source at a time, and whether log-weights are kept.
        numbers: The types to compute in.
    """
    softmax = _Softmax(numbers)
    total = torch.zeros_like(z_t)
    kept = _Kept(z_t, queries, source, size, numbers)
    walk = tiles(z_t, sigma, queries, source, size.n, dtype=numbers.log_weights)
    for i, (x, ell) in enumerate(walk):
        t = softmax.take(ell)
        if responses.partition:
            if softmax.shrink is not None:
                total *= responses.transpose(softmax.shrink)
            total += mix(softmax.weigh(_exp(t)), x.to(t), responses)
        else:
            kept.put(i, softmax.peak, t)
            softmax.weigh(_exp(t))
    log_norm = softmax.log_norm()
    if responses.partition:
        return total / responses.transpose(softmax.mass), log_norm

    for x, t, _ in kept.again(z_t, sigma, queries, source, log_norm):
        use = _significant(t)
        total += mix(_exp(t[..., use]), x[..., use].to(t), responses)
    return total / coverage(responses, z_t), log_norm


def backward(
    z_t: Float[Tensor, "c h w b"],
    gradient: Float[Tensor, "c h w b"],
    centre: Float[Tensor, "c h w b"],
    to_q: Tensor | None,
    to_r: Tensor | None,
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    size: Tile,
    numbers: Numbers,
) -> Float[Tensor, "c h w b"]:
    r"""The gradient with respect to z, float64; those of Q and R are added to to_q and to_r.

    What R gains from its numerator alone is :math:`\sum_n w_{kn} (\tilde g \odot x_n)_p`; what is
    added to to_r is that with x_n − x̂ for x_n, which makes the quotient's share zero.

    Args:
        z_t: Noisy images, pixels first, float64.
        gradient: g, the gradient with respect to the answer.
        centre: x̂, the answer.
        to_q: Where Q's gradient is added, float64, if it is wanted.
        to_r: Where R's is.
        sigma: The noise level.
        queries: Q, ready to act on log-weights' type.
        responses: R, ready to act on weights' type.
        source: S.
        size: How much of the source at a time, and whether log-weights and s are kept.
        numbers: The types to compute in.
    """
    scaled = gradient / coverage(responses, z_t)
    spread_q, softmax = queries.to(z_t.to(numbers.weights)), _Softmax(numbers)
    kept, sums = _Kept(z_t, queries, source, size, numbers, slopes=True), 0
    walk = tiles(z_t, sigma, queries, source, size.n, dtype=numbers.log_weights)
    for i, (x, ell) in enumerate(walk):
        t = softmax.take(ell)
        s = _slopes(scaled, centre, x, responses, numbers)[1]
        kept.put(i, softmax.peak, t, s)
        weights = softmax.weigh(_exp(t))
        if softmax.shrink is not None:
            sums *= softmax.shrink
        sums = sums + (weights * s).sum(-1, dtype=torch.float64)
    average, log_norm = (sums / softmax.mass).unsqueeze(-1), softmax.log_norm()

    to_z = torch.zeros_like(z_t)
    for x, t, s in kept.again(z_t, sigma, queries, source, log_norm):
        use = _significant(t)
        x, weights = x[..., use], _exp(t[..., use])
        products, s = None, None if s is None else s[..., use]
        if to_r is not None or s is None:
            products, s = _slopes(scaled, centre, x, responses, numbers)
        if to_r is not None:
            to_r += outer(weights, products).view_as(to_r)
        to_ell = (s - average.to(s)).mul_(weights)
        to_z += _pull(to_ell, x, centre, spread_q).div_(sigma**2)
        if to_q is not None:
            delta = differences(z_t.to(x), x, queries).to(to_ell)
            to_q -= outer(to_ell, delta).view_as(to_q).div_(2 * sigma**2)
    return to_z


class _Softmax:
    """A running maximum over tiles, and the sum of weights relative to it.

    Attributes:
        peak: The largest log-weight so far, shape (k, b).
        mass: The sum of weights over that of the peak, shape (k, b), float64.
        shrink: What the last tile's rise of the peak made of earlier weights; None at the first.
    """

    def __init__(self, numbers: Numbers):
        self.numbers = numbers
        self.peak = self.mass = self.shrink = None

    def take(self, ell: Float[Tensor, "k b n"]) -> Float[Tensor, "k b n"]:
        """Raise the peak, and take it off the log-weights, which are overwritten."""
        top = ell.amax(-1)
        if self.peak is not None:
            top = torch.maximum(top, self.peak)
            self.shrink = (self.peak - top).double().exp_()
        self.peak = top
        return ell.sub_(top.unsqueeze(-1)).to(self.numbers.weights)

    def weigh(self, weights: Float[Tensor, "k b n"]) -> Float[Tensor, "k b n"]:
        """Add weights to the mass, and return them."""
        part = weights.sum(-1, dtype=torch.float64)
        self.mass = part if self.mass is None else part.addcmul_(self.mass, self.shrink)
        return weights

    def log_norm(self) -> Float[Tensor, "k b"]:
        """The logarithm of the sum of all weights, float64."""
        return self.peak.double() + self.mass.log()


class _Kept:
    """What a first pass found, if there is room for it, and the source's tiles once more.

    Args:
        z_t: Noisy images, pixels first, float64.
        queries: Q.
        source: S.
        size: How much of the source at a time, and whether anything is kept.
        numbers: The types to compute in.
        slopes: Whether s is kept beside the log-weights.
    """

    def __init__(self, z_t, queries, source, size, numbers, *, slopes=False):
        self.size, self.numbers = size, numbers
        self.peaks = self.t = self.s = None
        if size.kept:
            shape = (-(-len(source) // size.n), queries.k, z_t.shape[-1])
            self.peaks = z_t.new_empty(shape)
            self.t = z_t.new_empty(*shape, size.n, dtype=numbers.weights)
            self.s = torch.empty_like(self.t) if slopes else None

    def put(self, i: int, peak: Tensor, t: Tensor, s: Tensor | None = None) -> None:
        """Keep log-weights less their running maximum, and s, of the i-th tile."""
        if self.size.kept:
            self.peaks[i] = peak
            self.t[i, ..., : t.shape[-1]] = t
            if s is not None:
                self.s[i, ..., : s.shape[-1]] = s

    def again(
        self, z_t, sigma, queries, source, log_norm
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images, logarithms of weights and s of every tile, as they were kept or anew."""
        n, dtype = self.size.n, self.numbers.log_weights
        if not self.size.kept:
            norm = log_norm.to(dtype).unsqueeze(-1)
            for x, ell in tiles(z_t, sigma, queries, source, n, dtype=dtype):
                yield x, ell.sub_(norm).to(self.numbers.weights), None
            return
        for i, (peak, t) in enumerate(zip(self.peaks, self.t, strict=True)):
            index = slice(i * n, min((i + 1) * n, len(source)))
            x = source.read(index, dtype, z_t.device).permute(1, 2, 3, 0).contiguous()
            t = t[..., : x.shape[-1]].add_((peak - log_norm).to(t).unsqueeze(-1))
            yield x, t, None if self.s is None else self.s[i, ..., : x.shape[-1]]


def _significant(t: Float[Tensor, "k b n"]) -> Tensor | slice:
    """The images of a tile of which some weight counts; all, if that is most of them."""
    use = t.flatten(0, 1).amax(0) > -CUTOFF
    return slice(None) if 2 * int(use.sum()) > len(use) else use


def _exp(t: Tensor) -> Tensor:
    """The exponential, in place: as a power of 2, which does not slow down where it underflows."""
    return t.mul_(LOG2_E).exp2_()


def _slopes(scaled, centre, x, responses, numbers) -> tuple[Tensor | None, Tensor]:
    """g̃ ⊙ (x_n − x̂) per pixel or per dimension (*pixels, b, n), and s of them, R's."""
    dtype, share = numbers.weights, scaled * centre
    if isinstance(responses, Ones):
        s = (scaled.to(x).flatten(0, 2).T @ x.flatten(0, 2)).unsqueeze(0)
        return None, s.sub_(share.sum((0, 1, 2)).unsqueeze(-1)).to(dtype)
    products = project(scaled.to(x), x, responses)
    share = share if len(responses.shape) == 3 else share.sum(0)
    products = products.sub_(share.unsqueeze(-1)).to(dtype)
    return products, responses.apply(products)


def _pull(
    to_ell: Float[Tensor, "k b n"], x: Tensor, centre: Tensor, queries: Operator
) -> Float[Tensor, "c h w b"]:
    """Σ_n (Qᵀ ∂ℓ_n) ⊙ (x_n − x̂), float64."""
    if isinstance(queries, Ones):
        to_ell = to_ell[0].to(x)
        total = (x.flatten(0, 2) @ to_ell.T).view(*x.shape[:3], -1)
        return total - centre * to_ell.sum(-1)
    mixed = queries.transpose(to_ell).to(x)
    pixels = "chw" if mixed.ndim == 5 else "hw"
    total = torch.einsum(f"{pixels}bn,chwn->chwb", mixed, x)
    return total - centre * mixed.sum(-1)
