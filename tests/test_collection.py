"""The class FPMC: operators by noise level, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import FPMC, Source
from fpmc.levels import nearest_level
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import images, relative

SHAPE = (2, 4, 5)


@pytest.fixture
def source():
    return Source(images(20, SHAPE, 0))


def test_operators_may_depend_on_the_noise_level(source):
    boxes = {0.1: Box(SHAPE[1:], 1), 1.0: Box(SHAPE[1:], 3)}
    z = images(2, SHAPE, 1)
    by_mapping = FPMC(boxes, boxes, source)
    by_function = FPMC(*[lambda sigma: boxes[0.1 if sigma < 0.3 else 1.0]] * 2, source)
    for sigma, op in ((0.11, boxes[0.1]), (0.02, boxes[0.1]), (0.5, boxes[1.0]), (9, boxes[1.0])):
        expected = FPMC(op, op, source)(z, sigma)
        assert torch.equal(by_mapping(z, sigma), expected)
        assert torch.equal(by_function(z, sigma), expected)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, unique=True), st.floats(1e-3, 1e3))
def test_the_nearest_noise_level_wins(levels, sigma):
    chosen = nearest_level({level: level for level in levels}, "levels")(sigma)
    ratio = max(chosen / sigma, sigma / chosen)
    assert all(ratio <= max(level / sigma, sigma / level) * (1 + 1e-9) for level in levels)


@pytest.mark.usefixtures("as_users_do")
def test_sigma_may_be_any_single_number(source):
    z = images(2, SHAPE, 1)
    denoiser = fpmc.methods.optimal(source)
    answers = [
        denoiser(z, sigma)
        for sigma in (2, 2.0, np.float32(2), np.array(2.0), torch.tensor(2.0), torch.tensor([2.0]))
    ]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_answer_has_the_type_of_z(source, dtype):
    z = images(2, SHAPE, 1).to(dtype)
    answer = fpmc.methods.optimal(source)(z, 1.0)
    assert answer.dtype == dtype
    assert relative(answer, fpmc.methods.optimal(source)(z.double(), 1.0)) < 1e-2


def test_answers_lie_between_the_source_images(source):
    answer = fpmc.methods.pspc_square(source, 2)(3 * images(8, SHAPE, 1), 0.5)
    assert answer.abs().max() <= 1


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("z", "sigma", "error", "says"),
    [
        (
            torch.zeros(2, 2, 4, 4),
            1.0,
            ValueError,
            "z: got shape (2, 2, 4, 4), wanted (b, 2, 4, 5)",
        ),
        (torch.zeros(2, 4, 5), 1.0, ValueError, "z: got shape (2, 4, 5)"),
        (torch.zeros(1, *SHAPE, dtype=torch.uint8), 1.0, TypeError, "z: got torch.uint8"),
        (np.zeros((1, *SHAPE)), 1.0, TypeError, "z: got ndarray"),
        (torch.full((1, *SHAPE), torch.inf), 1.0, ValueError, "z: got NaN or infinite"),
        (torch.zeros(1, *SHAPE), 0, ValueError, "sigma: got 0"),
        (torch.zeros(1, *SHAPE), -1.0, ValueError, "sigma: got -1.0"),
        (torch.zeros(1, *SHAPE), float("nan"), ValueError, "sigma: got nan"),
        (torch.zeros(1, *SHAPE), float("inf"), ValueError, "sigma: got inf"),
        (
            torch.full((1, *SHAPE), 1e60, dtype=torch.float64),
            1e-100,
            ValueError,
            "z: got values up to 1e+60 at sigma = 1e-100, wanted them up to 1e+130 times sigma",
        ),
        (torch.zeros(1, *SHAPE), 1e-170, ValueError, "sigma: got 1e-170"),
        (torch.zeros(1, *SHAPE), 10**400, ValueError, "sigma: got 1000"),
        (
            torch.full((1, *SHAPE), 1e200, dtype=torch.float64),
            1.0,
            ValueError,
            "z: got NaN or infinite",
        ),
        (torch.zeros(1, *SHAPE), "1", TypeError, "sigma: got str"),
        (torch.zeros(1, *SHAPE), True, TypeError, "sigma: got bool"),
        (torch.zeros(2, *SHAPE), torch.ones(3), ValueError, "sigma: got shape (3,), wanted one"),
        (torch.zeros(2, *SHAPE), torch.ones(2, 1), ValueError, "sigma: got shape (2, 1), wanted"),
        (torch.zeros(2, *SHAPE), torch.tensor([1.0, 0.0]), ValueError, "sigma: got 0.0"),
        (torch.zeros(2, *SHAPE), torch.tensor([1j, 1]), TypeError, "sigma: got complex"),
    ],
)
def test_bad_calls_are_named(source, z, sigma, error, says):
    denoiser = fpmc.methods.optimal(source)
    for call in (denoiser, denoiser.posterior):
        with pytest.raises(error) as caught:
            call(z, sigma)
        assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_posteriors_are_of_some_images_at_one_noise_level(source):
    denoiser, z = fpmc.methods.optimal(source), images(2, SHAPE, 0)
    weights = denoiser.posterior(z, torch.full((2,), 0.5)).weights()
    assert torch.equal(weights, denoiser.posterior(z, 0.5).weights())
    with pytest.raises(ValueError, match="sigma: got 2 noise levels, wanted one for all"):
        denoiser.posterior(z, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"z: got shape \(0, 2, 4, 5\)"):
        denoiser.posterior(z[:0], 1.0)


@pytest.mark.parametrize("entry", [torch.nan, -0.5, torch.inf, 1e31])
@pytest.mark.parametrize("name", ["queries", "responses"])
def test_matrices_that_were_changed_since_are_looked_at_again(source, name, entry):
    pair = {"queries": torch.ones(2, 4, 5), "responses": torch.ones(2, 4, 5)}
    denoiser = FPMC(*map(Dense, pair.values()), source)
    denoiser(torch.zeros(1, *SHAPE), 1.0)
    pair[name][1, 2, 3] = entry
    for call in (denoiser, denoiser.posterior):
        with pytest.raises(ValueError, match=f"{name}: got "):
            call(torch.zeros(1, *SHAPE), 1.0)


def test_transforms_of_torch_func_are_named(source):
    denoiser, z = fpmc.methods.optimal(source), torch.zeros(2, *SHAPE)
    for transform, value in (
        (torch.func.jacrev, z),
        (torch.func.jacfwd, z),
        (torch.func.vmap, z[None]),
    ):
        with pytest.raises(TypeError, match=r"z: got a tensor inside a transform of torch\.func"):
            transform(lambda z: denoiser(z, 1.0))(value)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("queries", "responses", "error", "says"),
    [
        (Ones((4, 5)), Identity((4, 5)), ValueError, "responses: got 20 estimators, wanted 1"),
        (Ones((4, 4)), Ones((4, 5)), ValueError, "queries: got Ones(shape=(4, 4), k=1)"),
        (Ones((4, 5)), Ones((1, 4, 5)), ValueError, "responses: got Ones(shape=(1, 4, 5), k=1)"),
        ({}, Ones((4, 5)), ValueError, "queries: got an empty mapping"),
        ({-1: Ones((4, 5))}, Ones((4, 5)), ValueError, "queries, a key: got -1"),
        (3, Ones((4, 5)), TypeError, "queries: got int"),
        (Ones((4, 5)), lambda sigma: None, ValueError, "responses: got None"),
        (Ones((4, 5)), Dense(torch.zeros(1, 4, 5)), ValueError, "responses: 20 positions have no"),
        (
            Ones((4, 5)),
            Dense(torch.full((1, 4, 5), 1e-40, dtype=torch.float64)),
            ValueError,
            "sums over the estimators from 1e-40 to 1e-40, wanted them between 1e-30 and 1e+30",
        ),
    ],
)
def test_bad_operators_are_named(source, queries, responses, error, says):
    with pytest.raises(error) as caught:
        FPMC(queries, responses, source)(torch.zeros(1, *SHAPE), 1.0)
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("budget", [0, -5, 1.5, "lots", float("nan")])
def test_a_bad_budget_is_named(source, budget):
    with pytest.raises((TypeError, ValueError), match="budget: got"):
        fpmc.methods.optimal(source, budget=budget)(torch.zeros(1, *SHAPE), 1.0)
