"""The online softmax: however log-weights come, its sums are those of one softmax."""

import itertools

import pytest
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


@pytest.mark.parametrize("none", [slice(0, 20), slice(0, 40), slice(20, 60), slice(40, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_without_weight_add_nothing(none, dtype):
    """Also where a tile holds no others, or all tiles so far."""
    ell, values = drawn(0, 3.0)
    ell[..., none] = -torch.inf
    ell, expected = ell.to(dtype), torch.einsum("kbn,nv->kvb", ell.softmax(-1), values)
    tiled, parts = OnlineSoftmax(), []
    for begin in (0, 20, 40):
        part = OnlineSoftmax()
        for softmax in (tiled, part):
            weights = softmax.weigh(softmax.take(ell[..., begin : begin + 20].clone())).double()
            softmax.add(torch.einsum("kbn,nv->kvb", weights, values[begin : begin + 20]))
        parts.append((part.peak, part.mass, part.total))
    splits = OnlineSoftmax.of_splits(*(torch.stack(sums) for sums in zip(*parts, strict=True)))
    merged = OnlineSoftmax.empty((3, 2), (3, 4, 2))
    for sums in parts:
        merged.merge(OnlineSoftmax(*sums))
    for softmax in (tiled, splits, merged):
        torch.testing.assert_close(
            softmax.log_norm(), ell.double().logsumexp(-1), rtol=1e-6, atol=1e-6
        )
        assert relative(softmax.mean(), expected) < (1e-6 if dtype == torch.float32 else 1e-12)
