"""The online softmax: however log-weights come, its sums are those of one softmax."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fpmc.engine.softmax import OnlineSoftmax
from tests.helpers import images, relative


def drawn(seed, spread, n=60):
    """Log-weights (3, 2, n) and values (n, 4), float64."""
    ell = spread * images(3, (2, n), seed, torch.float64)
    return ell, images(n, (4,), seed + 1, torch.float64)


@given(
    seed=st.integers(0, 1000), spread=st.sampled_from([1.0, 50.0, 1e6]),
    cuts=st.lists(st.integers(1, 59), max_size=5),
)  # fmt: skip
def test_tiles_are_one_softmax(seed, spread, cuts):
    ell, values = drawn(seed, spread)
    softmax, edges = OnlineSoftmax(), sorted({0, *cuts, 60})
    for begin, end in itertools.pairwise(edges):
        weights = softmax.weigh(softmax.take(ell[..., begin:end].clone()))
        softmax.add(torch.einsum("kbn,nv->kvb", weights, values[begin:end]))
    expected = torch.einsum("kbn,nv->kvb", ell.softmax(-1), values)
    assert relative(softmax.mean(), expected) < 1e-12
    torch.testing.assert_close(softmax.log_norm(), ell.logsumexp(-1))


@given(seed=st.integers(0, 1000), spread=st.sampled_from([1.0, 50.0, 1e6]))
def test_parts_merge_and_splits_are_put_together(seed, spread):
    ell, values = drawn(seed, spread)

    def part(n):
        top = ell[..., n].amax(-1)
        weights = (ell[..., n] - top.unsqueeze(-1)).exp()
        return top, weights.sum(-1), torch.einsum("kbn,nv->kvb", weights, values[n])

    parts = [part(slice(0, 7)), part(slice(7, 40)), part(slice(40, 60))]
    splits = OnlineSoftmax.of_splits(*(torch.stack(sums) for sums in zip(*parts, strict=True)))
    first, *others = (OnlineSoftmax(*sums) for sums in parts)
    for other in others:
        first.merge(other)
    expected = torch.einsum("kbn,nv->kvb", ell.softmax(-1), values)
    for softmax in (first, splits):
        torch.testing.assert_close(softmax.log_norm(), ell.logsumexp(-1))
        assert relative(softmax.mean(), expected) < 1e-12
