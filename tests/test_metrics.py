"""Errors, r² and nearest neighbours."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, r2_score

from fpmc import Source, metrics
from fpmc.operators import Box, Dense, Ones
from tests.helpers import images

SHAPE = (3, 5, 4)


@given(st.integers(2, 8), st.integers(0, 99))
def test_mse_and_r2_are_scikit_learns(b, seed):
    x, y = images(b, SHAPE, seed), images(b, SHAPE, seed + 1)
    pairs = [(y[i].flatten().double(), x[i].flatten().double()) for i in range(b)]
    errors = torch.tensor([mean_squared_error(*pair) for pair in pairs], dtype=torch.float64)
    scores = torch.tensor([r2_score(*pair) for pair in pairs], dtype=torch.float64)
    for estimate, values in ((metrics.mse(x, y), errors), (metrics.r2(x, y), scores)):
        assert estimate == pytest.approx(values.mean().item())
        assert estimate.standard_error == pytest.approx((values.std() / math.sqrt(b)).item())
        assert estimate.n == b


def test_an_estimate_is_a_number_that_knows_its_error():
    estimate = metrics.mse(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert estimate == 1.0
    assert math.isnan(estimate.standard_error)
    two = metrics.mse(
        torch.zeros(2, 1, 1, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    )
    assert str(two) == "5.0 ± 4.0"
    assert str(metrics.Estimate(0.74651, 0.0193, 32)) == "0.747 ± 0.019"
    assert str(metrics.Estimate(0.25, math.nan, 1)) == "0.25 ± nan"
    assert f"{two:.1f}" == "5.0"


def test_an_estimate_survives_copying_and_pickling():
    estimate = metrics.mse(images(3, SHAPE, 0), images(3, SHAPE, 1))
    for other in (copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        assert (other, other.standard_error, other.n) == (estimate, estimate.standard_error, 3)


def test_an_image_of_the_source_is_at_distance_zero():
    source = Source(images(9, SHAPE, 0))
    distance, index = metrics.nearest(source[2:5], source)
    assert (distance == 0).all()
    assert index[:, 0].tolist() == [2, 3, 4]


def test_a_perfect_sample_has_r2_one_and_the_mean_has_zero():
    y = images(4, SHAPE, 0)
    assert metrics.r2(y, y) == 1
    mean = y.mean((1, 2, 3), keepdim=True).expand_as(y)
    assert metrics.r2(mean, y) == pytest.approx(0, abs=1e-6)


def test_nearest_is_the_root_of_the_mean_squared_difference():
    source = Source(images(20, SHAPE, 0))
    x = images(3, SHAPE, 1)
    every = ((x[:, None] - source[:]) ** 2).flatten(2).mean(-1).sqrt()
    distance, index = metrics.nearest(x, source)
    torch.testing.assert_close(distance[:, 0], every.min(1).values)
    assert torch.equal(index[:, 0], every.argmin(1))


def test_nearest_patches_are_found_at_the_same_place():
    source = Source(images(20, SHAPE, 0))
    x = images(2, SHAPE, 1)
    distance, index = metrics.nearest(x, source, Box(SHAPE[1:], 3))
    k = 0
    for i in range(3):
        for j in range(2):
            crop = (..., slice(i, i + 3), slice(j, j + 3))
            every = ((x[crop][:, None] - source[:][crop]) ** 2).flatten(2).mean(-1).sqrt()
            torch.testing.assert_close(distance[:, k], every.min(1).values)
            assert torch.equal(index[:, k], every.argmin(1))
            k += 1


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: metrics.mse(torch.zeros(2, 1, 2, 2), torch.zeros(3, 1, 2, 2)),
            ValueError,
            "b: got shape (3, 1, 2, 2), wanted (2, 1, 2, 2)",
        ),
        (
            lambda: metrics.r2(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)),
            ValueError,
            "reference: got a constant image",
        ),
        (
            lambda: metrics.mse(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.ones(1, 1, 2, 2)),
            TypeError,
            "a: got torch.uint8",
        ),
        (
            lambda: metrics.nearest(torch.zeros(1, 1, 2, 2), Source(torch.zeros(1, 1, 3, 3))),
            ValueError,
            "images: got shape (1, 1, 2, 2), wanted (b, 1, 3, 3)",
        ),
        (
            lambda: metrics.r2(
                torch.rand(1, 1, 3, 3).double(), torch.full((1, 1, 3, 3), 0.1).double()
            ),
            ValueError,
            "reference: got a constant image",
        ),
        (
            lambda: metrics.nearest(torch.zeros(1, 1, 2, 2), torch.zeros(3, 1, 2, 2)),
            TypeError,
            "source: got Tensor",
        ),
        (
            lambda: metrics.nearest(
                torch.zeros(1, 1, 3, 3), Source(torch.zeros(1, 1, 3, 3)), Ones((9, 9))
            ),
            ValueError,
            "patches: got Ones(shape=(9, 9), k=1)",
        ),
        (
            lambda: metrics.nearest(
                torch.zeros(1, 1, 3, 3),
                Source(torch.zeros(1, 1, 3, 3)),
                Dense(torch.zeros(2, 3, 3)),
            ),
            ValueError,
            "patches: got an empty one",
        ),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)
