"""Soft collections: where they start, what they answer, and that their gradients are right."""

import math

import pytest
import torch

import fpmc
from fpmc.engine import reference
from fpmc.finetuning import SoftFPMC, step
from fpmc.finetuning.parametrisation import MAPS, ZEROS, expanded, start
from fpmc.operators import Box, Dense, Identity, Ones
from tests import helpers
from tests.helpers import images, matrix, relative

SHAPE = (3, 4, 4)
PIXELS, D = SHAPE[1:], math.prod(SHAPE)

PAIRS = {
    "optimal": (Ones(PIXELS), Ones(PIXELS)),
    "PSPC-Square": (Box(PIXELS, 3), Box(PIXELS, 3)),
    "PSPC-Flex": (Dense(matrix(16, PIXELS, 0).ceil()), Dense(matrix(16, PIXELS, 1).ceil() + 1)),
    "Lukoianov": (Dense(matrix(D, SHAPE, 2).ceil()), Identity(SHAPE)),
    "mixed": (Dense(matrix(16, SHAPE, 3)), Identity(PIXELS)),
}


def source(n=40, weights=None):
    return fpmc.Source(images(n, SHAPE, 5), weights)


def noisy(sigma, b=5):
    z = images(b, SHAPE, 6) + sigma * torch.randn(b, *SHAPE, generator=torch.Generator())
    return z, images(b, SHAPE, 7) / 2


def expected(soft, z, target, sigma, without):
    """Loss and gradients to θ by autograd through the reference, float64."""
    keep = torch.ones(len(soft.source), dtype=torch.bool)
    keep[without] = False
    x = soft.source.images[keep].double().flatten(1)
    weights = soft.source.log_weights
    thetas = [p.detach().double().requires_grad_() for p in soft.parameters()]
    learned = dict(zip([name for name, _ in soft.named_parameters()], thetas, strict=True))
    rows = []
    for name, op in zip("qr", soft.operators(), strict=True):
        theta = learned.get(f"theta_{name}")
        dense = op.dense() if theta is None else soft.mapping.value(theta)
        if dense.ndim == 3:
            dense = dense.unsqueeze(1).expand(-1, SHAPE[0], -1, -1)
        rows.append(dense.flatten(1))
    weights = None if weights is None else weights[keep]
    answer = reference.collection(z.flatten(1), x, *rows, sigma, weights)
    loss = (answer - target.double().flatten(1)).square().mean()
    return loss, torch.autograd.grad(loss, thetas)


@pytest.mark.parametrize("mapping", MAPS)
def test_the_start_is_the_matrix_where_that_is_positive(mapping):
    given = matrix(7, PIXELS, 0)
    got = MAPS[mapping].value(start(given, MAPS[mapping]))
    torch.testing.assert_close(got[given > 0].double(), given[given > 0], rtol=1e-5, atol=0)
    raised, flat = got.flatten(1), given.flatten(1)
    for row, was in zip(raised, flat, strict=True):
        zeros = row[was == 0]
        assert zeros.max() <= ZEROS * was.max() * (1 + 1e-5)
        assert zeros.sum() <= ZEROS * was.sum() * (1 + 1e-5)


def test_ones_start_exactly():
    assert (start(torch.ones(3, 2, 2), MAPS["exponential"]) == 0).all()


def test_a_row_of_zeros_starts_beside_the_others():
    given = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).view(2, 1, 2)
    got = start(given, MAPS["exponential"]).exp()
    torch.testing.assert_close(got.view(2, 2), torch.tensor([[0.02, 0.02], [4.0, 0.04]]))


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_not_learned_stays_and_the_start_is_near(name):
    z, _ = noisy(0.5)
    queries, responses = PAIRS[name]
    given = fpmc.FPMC(queries, responses, source())(z, 0.5)
    for learn in ("q", "r", "qr"):
        soft = SoftFPMC(queries, responses, source(), learn)
        assert relative(soft(z, 0.5), given) < 0.1
        for part, op, was in zip("qr", soft.operators(), expanded(queries, responses), strict=True):
            assert part in learn or torch.equal(op.dense(), was.dense())


@pytest.mark.parametrize("shape", [PIXELS, SHAPE])
def test_one_estimator_becomes_many_that_answer_the_same_and_differ_when_tuned(shape):
    z, target = noisy(0.5)
    queries, responses = expanded(Ones(shape), Ones(shape))
    assert queries.k == responses.k == math.prod(shape)
    exact = fpmc.FPMC(Ones(shape), Ones(shape), source())(z, 0.5)
    soft = SoftFPMC(Ones(shape), Ones(shape), source())
    torch.testing.assert_close(soft(z, 0.5), exact)
    soft.loss(z, target, 0.5).backward()
    gradient = soft.theta_q.grad.flatten(1)
    assert (gradient[0] - gradient[1]).abs().max() > 0.01 * gradient.abs().max()


@pytest.mark.parametrize("learn", ["qr", "q", "r"])
@pytest.mark.parametrize("mapping", MAPS)
@pytest.mark.parametrize("name", ["PSPC-Flex", "Lukoianov", "mixed"])
def test_gradients_are_those_of_the_reference(name, mapping, learn):
    sigma, without = 0.7, torch.tensor([3, 0, 17])
    weights = None if name == "mixed" else torch.arange(1, 41)
    soft = SoftFPMC(*PAIRS[name], source(weights=weights), learn, mapping=mapping)
    z, target = noisy(sigma)
    loss, gradients = expected(soft, z, target, sigma, without)

    got = (soft(z.double(), sigma, without) - target).square().mean()
    assert relative(got, loss) < 1e-5
    for ours, exact in zip(torch.autograd.grad(got, soft.parameters()), gradients, strict=True):
        assert relative(ours, exact) < 1e-4

    for options, bound in (({}, 1e-3), ({"cut": 0.0}, 1e-4)):
        got = soft.loss(z, target, sigma, without, **options)
        assert relative(got, loss) < bound
        found = torch.autograd.grad(got, list(soft.parameters()))
        for ours, exact in zip(found, gradients, strict=True):
            assert relative(ours, exact) < bound


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.3, 1.0, 5.0, 40.0])
def test_gradients_hold_at_every_noise_level(sigma):
    soft = SoftFPMC(*PAIRS["PSPC-Flex"], source(200))
    z, target = noisy(sigma, 8)
    loss, gradients = expected(soft, z, target, sigma, [])
    got = soft.loss(z, target, sigma)
    assert relative(got, loss) < 1e-3
    for ours, exact in zip(torch.autograd.grad(got, soft.parameters()), gradients, strict=True):
        assert (ours - exact).norm() < 1e-3 * exact.norm() + 1e-12


def test_few_images_carry_weight_at_low_noise_and_what_is_left_out_is_bounded():
    soft, shares = SoftFPMC(*PAIRS["PSPC-Flex"], source(500)), []
    q, r = (op.dense() for op in soft.operators())
    z, target = noisy(0.2)
    for cut in (0.0, 1e-4, 0.1):
        shares.append(step.gradients(z, target, q, r, soft.source, 0.2, cut=cut).share)
    assert shares[0] >= shares[1] > shares[2]
    assert shares[1] < 0.5


def test_a_smaller_budget_changes_nothing_and_is_kept():
    large = source(3000)
    z, target = noisy(0.5, 3)
    q, r = (op.dense(torch.float32) for op in PAIRS["PSPC-Flex"])
    whole = step.gradients(z, target, q, r, large, 0.5)
    for budget in (3_600_000, 2_200_000):
        with helpers.PeakMemory() as meter:
            part = step.gradients(z, target, q, r, large, 0.5, budget=budget)
        assert meter.peak < budget
        assert relative(part.loss, whole.loss) < 1e-5
        assert relative(part.to_q, whole.to_q) < 1e-4
        assert relative(part.to_r, whole.to_r) < 1e-4
    with pytest.raises(ValueError, match=r"budget: got 1,000 bytes, wanted at least"):
        step.gradients(z, target, q, r, large, 0.5, budget=1000)


def test_a_part_of_the_source_is_the_source_of_that_part():
    soft, some = SoftFPMC(*PAIRS["PSPC-Flex"], source()), torch.arange(5, 30)
    z, target = noisy(0.5)
    part = SoftFPMC(*PAIRS["PSPC-Flex"], fpmc.Source(soft.source.images[5:30]))
    ours = soft.loss(z, target, 0.5, torch.tensor([2, 7]), only=some)
    torch.testing.assert_close(ours, part.loss(z, target, 0.5, torch.tensor([2])))
    without = SoftFPMC(*PAIRS["PSPC-Flex"], soft.source.without([2, 7]))
    here = soft.loss(z, target, 0.5, torch.tensor([2, 7]))
    torch.testing.assert_close(here, without.loss(z, target, 0.5))
    every = soft.loss(z, target, 0.5, only=torch.arange(40))
    assert torch.equal(every, soft.loss(z, target, 0.5))


def test_sigma_absorbs_a_factor_of_the_queries():
    z, _ = noisy(1.0)
    q, r = (op.dense() for op in PAIRS["PSPC-Flex"])
    soft = SoftFPMC(Dense(q), Dense(r), source())
    half = SoftFPMC(Dense(q / 4), Dense(r), source())
    torch.testing.assert_close(half(z, 0.5), soft(z, 1.0))


def test_a_collection_is_left_as_it_is_by_later_training():
    soft = SoftFPMC(*PAIRS["PSPC-Flex"], source())
    z, _ = noisy(0.5)
    collection = soft.collection()
    before = collection(z, 0.5)
    with torch.no_grad():
        soft.theta_q += 1
    assert torch.equal(collection(z, 0.5), before)
    assert not torch.equal(soft(z, 0.5), before)


@pytest.mark.usefixtures("as_users_do")
def test_bad_arguments_are_named():
    queries, responses = PAIRS["PSPC-Flex"]
    for options, says in (
        ({"learn": "s"}, "learn: got 's', wanted one of qr, q, r"),
        ({"mapping": "square"}, "mapping: got 'square', wanted one of exponential, softplus"),
        ({"zeros": 0}, "zeros: got 0, wanted a number above 0"),
    ):
        with pytest.raises(ValueError, match=says):
            SoftFPMC(queries, responses, source(), **options)
    with pytest.raises(ValueError, match="matrix: got zeros alone"):
        SoftFPMC(Dense(torch.zeros(16, 4, 4)), responses, source())
    soft = SoftFPMC(queries, responses, source())
    z, target = noisy(0.5)
    with pytest.raises(ValueError, match=r"target: gave shape \(4, 3, 4, 4\)"):
        soft.loss(z, target[:4], 0.5)
    with pytest.raises(ValueError, match="without: got all images"):
        soft.loss(z, target, 0.5, torch.arange(40))
