"""Keys and values: any precision matrix is a diagonal one in features, and values stay pixels."""

import pickle

import pytest
import torch

import fpmc
from fpmc import engine, features, methods
from fpmc.features import Features
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import collections, exact, images, matrix, relative

SHAPE = (2, 4, 5)
SOURCE = fpmc.Source(images(40, SHAPE, 1), weights=torch.arange(1.0, 41))
Z = images(3, SHAPE, 2, torch.float64) * 1.5


def any_map(shape=SHAPE, seed=3):
    """A random Φ, whose features lie like images of this shape."""
    f = shape[0] * shape[1] * shape[2]
    return Features(images(f, (1, 1, 40), seed, torch.float64).flatten(1) / 4, SHAPE, shape)


def transcribed(z, sigma, queries, responses, source, phi):
    """(10) with the precision Φᵀ diag(q) Φ, one estimator and noisy image after the other."""
    x = source.read(slice(None), torch.float64).flatten(1)
    r = responses.dense()
    r = (r if r.ndim == 4 else r[:, None].expand(-1, SHAPE[0], -1, -1)).flatten(1)
    q = queries.dense()
    q = (q if q.ndim == 4 else q[:, None].expand(-1, phi.shape[0], -1, -1)).flatten(1)
    total = torch.zeros_like(z.flatten(1))
    for q_k, r_k in zip(q, r, strict=True):
        precision = phi.matrix.T @ torch.diag(q_k) @ phi.matrix
        for total_b, z_b in zip(total, z.flatten(1), strict=True):
            away = z_b - x
            ell = -((away @ precision) * away).sum(1) / (2 * sigma**2) + source.log_weights
            total_b += r_k * (ell.softmax(0) @ x)
    return (total / r.sum(0)).view_as(z)


@pytest.mark.parametrize("name", collections(SHAPE, 0))
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_features_are_a_precision_matrix(name, sigma):
    queries, responses = collections(SHAPE, 0)[name]
    phi = any_map()
    answer = fpmc.FPMC(queries, responses, SOURCE, features=phi)
    wanted = transcribed(Z, sigma, queries, responses, SOURCE, phi)
    assert relative(answer(Z, sigma), wanted) < 1e-10
    assert relative(answer(Z.float(), sigma), wanted) < 1e-5


def test_features_may_lie_otherwise_than_pixels():
    phi = any_map((3, 2, 3), 4)
    queries, responses = Dense(matrix(5, (3, 2, 3), 5)), Dense(matrix(5, (4, 5), 6) + 0.01)
    answer = fpmc.FPMC(queries, responses, SOURCE, features=phi)(Z, 0.3)
    assert relative(answer, transcribed(Z, 0.3, queries, responses, SOURCE, phi)) < 1e-10


def test_the_identity_changes_nothing():
    same = Features(torch.eye(40, dtype=torch.float64), SHAPE)
    queries, responses = Box((4, 5), 3), Box((4, 5), 3)
    answer = fpmc.FPMC(queries, responses, SOURCE, features=same)(Z, 0.4)
    assert relative(answer, exact(Z, 0.4, queries, responses, SOURCE)) < 1e-10


def test_orthonormal_features_keep_the_optimal_denoiser_and_the_cosines_are():
    phi = features.dct(SHAPE)
    product = phi.matrix @ phi.matrix.T
    torch.testing.assert_close(product, torch.eye(40, dtype=torch.float64))
    ones = Ones((4, 5))
    answer = fpmc.FPMC(ones, ones, SOURCE, features=phi)(Z, 0.4)
    assert relative(answer, methods.optimal(SOURCE)(Z, 0.4)) < 1e-12
    flat = phi.apply(torch.ones(SHAPE, dtype=torch.float64))
    assert flat.abs().gt(1e-12).sum() == 2, "a flat channel is its first frequency alone"


def test_the_budget_changes_nothing():
    phi, ones = any_map(), Ones((4, 5))
    whole = fpmc.FPMC(ones, ones, SOURCE, features=phi)(Z, 0.4)
    parts = fpmc.FPMC(ones, ones, SOURCE, features=phi, budget=45_000)(Z, 0.4)
    assert relative(parts, whole) < 1e-12
    with pytest.raises(ValueError, match="budget"):  # the features' own matrix counts
        fpmc.FPMC(ones, ones, SOURCE, features=phi, budget=25_000)(Z, 0.4)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["optimal", "LS", "dense"])
def test_gradients_pass_through_features(name):
    queries, responses = collections(SHAPE, 0)[name]
    if isinstance(queries, Dense):
        queries = Dense((queries.matrix + 0.1).requires_grad_())
    collection = fpmc.FPMC(queries, responses, SOURCE, features=any_map())
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, *_: collection(z, 0.7), (z,), atol=1e-7)
    if isinstance(queries, Dense):
        (gradient,) = torch.autograd.grad(collection(z, 0.7).square().sum(), queries.matrix)
        step = images(5, (4, 5), 9, torch.float64) * 1e-5
        moved = (
            fpmc.FPMC(Dense(queries.matrix.detach() + s * step), responses, SOURCE,
                      features=any_map())(Z, 0.7).square().sum()
            for s in (1, -1)
        )  # fmt: skip
        slope = (next(moved) - next(moved)) / 2
        assert slope.item() == pytest.approx((gradient * step).sum().item(), rel=1e-5)


def test_posteriors_are_those_of_the_features():
    phi, ones = any_map(), Ones((4, 5))
    posterior = fpmc.FPMC(ones, ones, SOURCE, features=phi).posterior(Z, 0.7)
    x = SOURCE.read(slice(None), torch.float64).flatten(1)
    keys = (Z.flatten(1) @ phi.matrix.T, x @ phi.matrix.T)
    wanted = (SOURCE.log_weights - torch.cdist(*keys).square() / (2 * 0.7**2)).softmax(1)
    torch.testing.assert_close(posterior.weights()[:, 0], wanted)


def test_whitening_makes_covariance_and_noise_white():
    gaussian, sigma = methods.wiener(SOURCE), 0.6
    for share in (0.3, 1.0):
        phi = gaussian.whitening(share)(sigma).matrix
        u, values = gaussian.eigenvectors, gaussian.eigenvalues
        covariance = share * (u * values) @ u.T + sigma**2 * torch.eye(40, dtype=torch.float64)
        white = phi @ covariance @ phi.T / sigma**2
        torch.testing.assert_close(white, torch.eye(40, dtype=torch.float64))
        torch.testing.assert_close(phi, phi.T)


def test_principal_components_are_few_and_vary_most():
    gaussian = methods.wiener(SOURCE)
    phi = gaussian.principal(3)
    assert phi.shape == (1, 1, 3)
    centred = SOURCE.read(slice(None), torch.float64).flatten(1) - gaussian.mean.flatten()
    weights = SOURCE.log_weights.exp()
    variances = (weights[:, None] * (centred @ phi.matrix.T).square()).sum(0)
    torch.testing.assert_close(variances, gaussian.eigenvalues.flip(0)[:3])
    collection = fpmc.FPMC(Ones((1, 3)), Ones((4, 5)), SOURCE, features=phi)
    assert collection(Z, 0.5).shape == Z.shape


def test_the_plan_says_that_features_are_streamed_and_why():
    box = Box((4, 5), 3)
    plan = engine.plan(box, box, SOURCE, 2, features=any_map())
    assert plan.path == "streaming"
    assert "features" in plan.reason


def test_a_collection_with_features_is_pickled():
    gaussian = methods.wiener(SOURCE)
    ones = Ones((4, 5))
    collection = fpmc.FPMC(ones, ones, SOURCE, features=gaussian.whitening())
    again = pickle.loads(pickle.dumps(collection))
    assert torch.equal(again(Z, 0.5), collection(Z, 0.5))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Features(torch.eye(3), SHAPE), "wanted (40, 40)"),
        (lambda: Features(torch.full((40, 40), torch.nan), SHAPE), "NaN"),
        (lambda: methods.wiener(SOURCE).principal(99), "r: got 99"),
        (lambda: methods.wiener(SOURCE).whitening(0), "share: got 0"),
        (lambda: of(Ones((4, 5)), lambda sigma: torch.eye(40)), "features: got"),
        (lambda: of(Ones((4, 5)), features.dct((1, 4, 5))), "features: got Features"),
        (lambda: of(Box((3, 5), 2), any_map()), "queries: got"),
        (lambda: tuned(), "features"),
    ],
)
def test_bad_input_gets_one_error(call, told):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert told in str(raised.value)


def of(queries, phi):
    responses = Identity((4, 5)) if queries.k > 1 else Ones((4, 5))
    return fpmc.FPMC(queries, responses, SOURCE, features=phi)(Z, 0.5)


def tuned():
    collection = fpmc.FPMC(Ones((4, 5)), Ones((4, 5)), SOURCE, features=any_map())
    return fpmc.finetuning.finetune(collection, lambda z, s: z, None, 0.5, validation=Z.float())


@pytest.mark.parametrize(
    ("matrix", "images", "shape", "told"),
    [
        (torch.eye(16), 16, None, "images: got 16, wanted"),
        (torch.eye(16), (1, 4, 4), 16, "shape: got 16, wanted"),
        (torch.eye(16), (1, -4, -4), None, "images: got -4, wanted at least 1"),
        (torch.zeros(0, 16), (1, 4, 4), (1, 0, 4), "shape: got 0, wanted at least 1"),
        (torch.eye(16).to_sparse(), (1, 4, 4), None, "matrix: got torch.sparse_coo, wanted"),
        (torch.eye(16).to(torch.float8_e4m3fn), (1, 4, 4), None, "matrix: got torch.float8"),
        (torch.eye(16) / 0, (1, 4, 4), None, "matrix: got NaN or entries beyond"),
        (torch.full((16, 16), torch.inf), (1, 4, 4), None, "matrix: got NaN or entries beyond"),
        (torch.eye(16).double() * 1e170, (1, 4, 4), None, "matrix: got NaN or entries beyond"),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_a_map_that_is_none_is_refused_by_name(matrix, images, shape, told):
    with pytest.raises((TypeError, ValueError), match=f"^{told}"):
        Features(matrix, images, shape)


@pytest.mark.parametrize("shape", [4, (4, 4), (1, 1, 4, 4), None])
@pytest.mark.usefixtures("as_users_do")
def test_a_transform_of_no_images_is_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"^images: got .*, wanted \(c, h, w\)"):
        features.dct(shape)
