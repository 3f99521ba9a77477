"""Other kernels: what they are by their formula, and that the Gaussian is their limit."""

import pytest
import torch

import fpmc
from fpmc import kernels
from fpmc.levels import Constant
from fpmc.operators import Dense
from tests.helpers import collections, exact, images, matrix, relative, rows

SHAPE = (2, 4, 5)
SOURCE = fpmc.Source(images(40, SHAPE, 1), weights=torch.arange(1.0, 41))
Z = images(3, SHAPE, 2, torch.float64) * 1.5


def transcribed(z, sigma, queries, responses, phi):
    """(10) with ℓ = −φ(u), one noisy image after the other."""
    x = SOURCE.read(slice(None), torch.float64).flatten(1)
    q, r = rows(queries, 2), rows(responses, 2)
    answers = []
    for one in z.flatten(1):
        u = q @ (one - x).square().T / (2 * sigma**2)
        weights = (SOURCE.log_weights - phi(u)).softmax(1)
        answers.append((r * (weights @ x)).sum(0) / r.sum(0))
    return torch.stack(answers).view_as(z)


@pytest.mark.parametrize("name", ["optimal", "PSPC-Square", "LS", "dense"])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_kernels_are_what_their_formulas_say(name, sigma):
    queries, responses = collections(SHAPE, 0)[name]
    for made, phi in (
        (kernels.student(Constant(queries), 3.0), lambda u: 3 * (1 + u / 3).log()),
        (kernels.laplace(Constant(queries), 2.0), lambda u: 2 * (2 * u).sqrt()),
    ):
        answer = fpmc.FPMC(made, responses, SOURCE)
        wanted = transcribed(Z, sigma, queries, responses, phi)
        assert relative(answer(Z, sigma), wanted) < 1e-10
        assert relative(answer(Z.float(), sigma), wanted) < 1e-5


def test_student_s_t_with_many_degrees_of_freedom_is_the_gaussian():
    queries, responses = collections(SHAPE, 0)["dense"]
    answer = fpmc.FPMC(kernels.student(Constant(queries), 1e9), responses, SOURCE)(Z, 0.5)
    assert relative(answer, exact(Z, 0.5, queries, responses, SOURCE)) < 1e-6


def test_a_kernel_has_no_gradients_and_says_so():
    queries = Dense(matrix(5, (4, 5), 3))
    collection = fpmc.FPMC(
        kernels.student(Constant(queries), 3.0), Dense(queries.matrix + 0.1), SOURCE
    )
    z = Z.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="has no gradients"):
        collection(z, 0.5).sum().backward()


@pytest.mark.parametrize("make", [kernels.student, kernels.laplace])
@pytest.mark.parametrize("name", ["optimal", "PSPC-Square", "dense"])
def test_a_kernel_is_computed_exactly_where_float32_would_do(make, name):
    queries, responses = collections(SHAPE, 0)[name]
    collection = fpmc.FPMC(make(Constant(queries), 2.0), responses, SOURCE)
    fast = collection.with_precision("float32")(Z.float(), 0.5)
    assert relative(fast, collection(Z, 0.5)) < 1e-5


@pytest.mark.usefixtures("as_users_do")
def test_queries_of_another_kind_are_refused_by_name():
    queries = Dense(matrix(5, (4, 5), 3))
    with pytest.raises(TypeError, match=r"queries: got Dense, wanted a function"):
        kernels.student(queries, 3.0)
    with pytest.raises(TypeError, match=r"queries: got NoneType, wanted an operator"):
        kernels.student(Constant(None), 3.0)(0.5)
    with pytest.raises(ValueError, match="queries: got a kernel other than the Gaussian"):
        kernels.student(Constant(queries), 3.0)(0.5).dense()


@pytest.mark.parametrize("make", [kernels.student, kernels.laplace])
def test_a_scale_must_be_positive(make):
    with pytest.raises(ValueError, match="got 0"):
        make(Constant(Dense(matrix(5, (4, 5), 3))), 0)
