"""A source without some of its images answers as one that was made without them."""

import numpy as np
import pytest
import torch

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.engine.precision import tolerance
from fpmc.metrics import nearest
from fpmc.operators import Box
from tests.helpers import collections, images, relative

SHAPE = (3, 6, 7)
N = 300
LEFT_OUT = {
    "some": [0, 5, 17, 299],
    "whole tiles": [*range(64, 192), 250],
    "all but the last": list(range(299)),
    "the first tiles": list(range(200)),
}
"""Tiles of 64 images, threads' ranges and streamed tiles hold nothing but left-out images."""


def sources(left_out, dtype=torch.float32, weighted=False):
    """A source without some images, and the one made of the others."""
    x = images(N, SHAPE, 0)
    x = fpmc.source.to_uint8(x) if dtype == torch.uint8 else x.to(dtype)
    weights = torch.arange(1.0, N + 1) if weighted else None
    kept = torch.ones(N, dtype=torch.bool)
    kept[left_out] = False
    made = Source(x[kept], None if weights is None else weights[kept])
    return Source(x, weights).without(left_out), made, kept


@pytest.mark.sweep
@pytest.mark.parametrize("structure", list(collections(SHAPE, 0)))
@pytest.mark.parametrize("which", list(LEFT_OUT))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_and_gradients(structure, which, dtype):
    queries, responses = collections(SHAPE, 0)[structure]
    for stored, weighted in ((torch.uint8, False), (torch.float32, True)):
        ours, theirs, _ = sources(LEFT_OUT[which], stored, weighted)
        for sigma, budget in ((0.05, None), (1.0, 400_000), (20.0, None)):
            z = diffusion.add_noise(ours[:2], sigma, 0).to(dtype)
            found = []
            for source in (ours, theirs):
                leaf = z.clone().requires_grad_()
                answer = FPMC(queries, responses, source, budget=budget)(leaf, sigma)
                found.append((answer, *torch.autograd.grad(answer.square().sum(), leaf)))
            limit = 0.2 * tolerance(sigma) if dtype == torch.float32 else 1e-10
            (answer, slope), (wanted, expected) = found
            assert relative(answer, wanted) < limit
            assert (slope - expected).norm() <= 1e-4 * expected.norm() + 1e-6


@pytest.mark.parametrize("which", list(LEFT_OUT))
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_reduced_precision(which, precision):
    ours, theirs, _ = sources(LEFT_OUT[which])
    queries, responses = collections(SHAPE, 0)["dense"]
    z = diffusion.add_noise(ours[:2], 0.5, 0)
    answers = [
        FPMC(queries, responses, source).with_precision(precision)(z, 0.5)
        for source in (ours, theirs)
    ]
    assert relative(*answers) < 1e-5


@pytest.mark.parametrize("which", list(LEFT_OUT))
def test_posteriors_and_nearest_images(which):
    ours, theirs, kept = sources(LEFT_OUT[which], weighted=True)
    op = Box(SHAPE[1:], 3)
    z = diffusion.add_noise(ours[:2], 0.5, 0)
    mine, other = (FPMC(op, op, source).posterior(z, 0.5) for source in (ours, theirs))
    assert (mine.weights()[..., ~kept] == 0).all()
    torch.testing.assert_close(mine.weights()[..., kept], other.weights())
    torch.testing.assert_close(mine.mean(), other.mean())
    torch.testing.assert_close(mine.effective_number(), other.effective_number())
    (distance, at), (expected, index) = (nearest(z, source) for source in (ours, theirs))
    torch.testing.assert_close(distance, expected)
    assert torch.equal(at, kept.nonzero()[:, 0][index])


@pytest.mark.parametrize("which", list(LEFT_OUT))
def test_methods_without_operators(which):
    ours, theirs, _ = sources(LEFT_OUT[which])
    z = diffusion.add_noise(ours[:1], 0.5, 0)
    for method in (fpmc.methods.wiener, lambda s: fpmc.methods.els(s, 3), fpmc.methods.es):
        assert relative(method(ours)(z, 0.5), method(theirs)(z, 0.5)) < 1e-6


def test_it_composes_and_copies_nothing():
    source = Source(images(N, SHAPE, 0))
    once, twice = source.without([3, 4, 5]), source.without([3]).without([4, 5])
    torch.testing.assert_close(once.log_weights, twice.log_weights)
    assert once.images is source.images
    assert len(once) == N
    assert source.log_weights is None
    assert source.without([]) is source


@pytest.mark.parametrize("of", [list, torch.tensor, np.array, np.uint8, range])
def test_positions_are_whole_numbers_however_they_come(of):
    """Bytes too, of which PyTorch would make a mask."""
    index = range(3) if of is range else of([0, 1, 2])
    left_out = Source(images(N, SHAPE, 0)).without(index).log_weights == -torch.inf
    assert left_out.nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0.5], TypeError, "index: got torch.float32, wanted positions of images"),
        ([True], TypeError, "index: got torch.bool"),
        (["a"], TypeError, "index: got list, wanted positions of images"),
        (None, TypeError, "index: got NoneType, wanted positions of images"),
        (slice(3), TypeError, "index: got slice, wanted positions of images"),
        ([-1], ValueError, "index: got positions -1 to -1, wanted 0 to 299"),
        ([2, 300], ValueError, "index: got positions 2 to 300, wanted 0 to 299"),
        (list(range(N)), ValueError, "index: got every image that is left"),
    ],
)
def test_bad_positions_are_an_error(index, error, message):
    with pytest.raises(error, match=message):
        Source(images(N, SHAPE, 0)).without(index)
