"""The streaming engine against the reference, and what must not change its answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.engine import memory, reference
from fpmc.engine.problem import Problem
from fpmc.engine.streaming.posterior import knowledge, nearest
from fpmc.engine.streaming.sizes import Tile, tile
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import PeakMemory, collections, exact, images, matrix, relative, rows

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(2, 6), st.integers(2, 6))
SIGMAS = st.sampled_from([0.002, 0.02, 0.3, 1.0, 5.0, 80.0])
SEEDS = st.integers(0, 10_000)
STRUCTURES = list(collections((1, 4, 4), 0))


def bound(sigma):
    """The exactness contract."""
    return 1e-5 if sigma >= 0.02 else 1e-3


def noisy(b, source, sigma, seed):
    """Noisy versions of source images, as forward processes make them."""
    dtype = source.images.dtype if source.images.is_floating_point() else torch.float32
    x = source.read(torch.arange(b) % len(source), dtype)
    return diffusion.add_noise(x, sigma, seed)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, n=st.integers(1, 12), sigma=SIGMAS, seed=SEEDS)
def test_agrees_with_the_reference(structure, shape, n, sigma, seed):
    queries, responses = collections(shape, seed)[structure]
    source = Source(images(n, shape, seed))
    z = noisy(2, source, sigma, seed)
    answer = FPMC(queries, responses, source)(z, sigma)
    assert answer.dtype == z.dtype
    assert answer.shape == z.shape
    assert relative(answer, exact(z, sigma, queries, responses, source)) < bound(sigma)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, n=st.integers(2, 12), sigma=SIGMAS, seed=SEEDS)
def test_permuting_and_duplicating_the_source_change_nothing(structure, shape, n, sigma, seed):
    queries, responses = collections(shape, seed)[structure]
    x = images(n, shape, seed, torch.float64)
    z = noisy(2, Source(x), sigma, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    sources = [Source(s) for s in (x, x[order], x.repeat(2, 1, 1, 1))]
    answers = [FPMC(queries, responses, source)(z, sigma) for source in sources]
    for answer in answers[1:]:
        assert relative(answer, answers[0]) < 1e-9


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, n=st.integers(2, 12), sigma=SIGMAS, seed=SEEDS)
def test_duplicating_an_image_is_doubling_its_weight(structure, shape, n, sigma, seed):
    queries, responses = collections(shape, seed)[structure]
    x = images(n, shape, seed, torch.float64)
    z = noisy(2, Source(x), sigma, seed)
    doubled = Source(torch.cat([x, x[:1]]))
    weighted = Source(x, torch.tensor([2.0] + [1.0] * (n - 1)))
    answers = [FPMC(queries, responses, source)(z, sigma) for source in (doubled, weighted)]
    assert relative(*answers) < 1e-9


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, n=st.integers(2, 60), sigma=SIGMAS, seed=SEEDS, times=st.integers(1, 20))
def test_tiles_change_nothing(structure, shape, n, sigma, seed, times):
    """Answers, gradients, posteriors and neighbours, with the smallest budget and larger ones."""
    queries, responses = collections(shape, seed)[structure]
    source = similar_images(n, shape, sigma, seed)
    z = noisy(3, source, sigma, seed)
    budget = times * smallest_budget(shape, (queries, responses), whole_images=True)
    tiled, whole = (
        everything(FPMC(queries, responses, source, budget=limit), z, sigma)
        for limit in (budget, None)
    )
    for name, value in whole.items():
        torch.testing.assert_close(tiled[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, n=st.integers(1, 12), sigma=SIGMAS, seed=SEEDS)
def test_evidence_is_the_sum_of_the_filtered_likelihoods(structure, shape, n, sigma, seed):
    queries, responses = collections(shape, seed)[structure]
    source = similar_images(n, shape, sigma, seed)
    z = noisy(2, source, sigma, seed)
    evidence = knowledge(z, Problem(queries, responses, source, sigma)).evidence
    x = source.read(slice(None), torch.float64).flatten(1)
    expected = [
        [
            (reference.filtered_log_likelihood(z_b, x, q, sigma) + source.log_weights).logsumexp(0)
            for q in rows(queries, shape[0])
        ]
        for z_b in z.flatten(1)
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(evidence, expected, rtol=1e-6, atol=1e-6)


def test_the_smallest_budget_makes_many_tiles():
    shape = (3, 6, 5)
    for structure, operators in collections(shape, 0).items():
        least = smallest_budget(shape, operators)
        sizes = {tile(7, 300, shape, operators, times * least) for times in (1, 2, 10, 1000)}
        assert len(sizes) == 4, structure
        assert tile(7, 300, shape, operators, least) == Tile(1, 1)


def similar_images(n, shape, sigma, seed):
    """A source of which several images fit a z: they are a few σ apart; weights up to 3 : 1."""
    base = 0.5 * images(1, shape, seed, torch.float64)
    step = min(3 * sigma / base.numel() ** 0.5, 0.5)
    together = base + step * images(n, shape, seed + 1, torch.float64)
    return Source(together, 2 + images(n, (1,), seed + 2)[:, 0])


def everything(denoiser, z, sigma):
    """All that a collection can be asked for, by name."""
    queries, responses = denoiser.operators(sigma)
    matrices = [op.matrix.requires_grad_() for op in (queries, responses) if isinstance(op, Dense)]
    z = z.clone().requires_grad_()
    answer = denoiser(z, sigma)
    gradients = torch.autograd.grad(answer.square().sum(), [z, *matrices])
    posterior = denoiser.posterior(z, sigma)
    distance, position = nearest(z, queries, denoiser.source, denoiser.budget)
    return {
        "answer": answer.detach(),
        "weights": posterior.weights().detach(),
        "means": posterior.mean().detach(),
        "effective number": posterior.effective_number().detach(),
        "distance": distance,
        "position": position,
        **{f"gradient {i}": gradient for i, gradient in enumerate(gradients)},
    }


def smallest_budget(shape, operators, **options):
    """What the error of a budget too small asks for."""
    with pytest.raises(ValueError, match="wanted at least") as caught:
        tile(1, 100, shape, operators, 1, **options)
    return int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(shape=SHAPES, n=st.integers(2, 20), sigma=SIGMAS, seed=SEEDS)
def test_gradients_are_those_of_autograd_through_the_reference(
    structure, dtype, shape, n, sigma, seed
):
    queries, responses = collections(shape, seed)[structure]
    source = similar_images(n, shape, sigma, seed)
    z = noisy(3, source, sigma, seed).to(dtype).requires_grad_()
    parameters = [z]
    for op in (queries, responses):
        if isinstance(op, Dense):
            op.matrix.requires_grad_()
            parameters.append(op.matrix)
    direction = images(3, shape, seed + 3, dtype)
    ours = torch.autograd.grad(
        (FPMC(queries, responses, source)(z, sigma) * direction).sum(), parameters
    )
    theirs = torch.autograd.grad(
        (exact(z, sigma, queries, responses, source) * direction).sum(), parameters
    )
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    rounding = 1e-13 / sigma**2  # what is left where gradients that are summed cancel
    for mine, expected in zip(ours, theirs, strict=True):
        least = tolerance * expected.abs().max().item() + rounding
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=least)


def test_gradients_pass_through_what_made_the_matrix():
    shape = (1, 3, 3)
    theta = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = Source(images(9, shape, 0, torch.float64))
    z = noisy(2, source, 0.7, 0)

    def loss(theta):
        op = Dense(torch.nn.functional.softplus(theta))
        return FPMC(op, op, source)(z, 0.7).square().sum()

    assert torch.autograd.gradcheck(loss, theta.requires_grad_())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("power", [1, 2])
def test_the_gradient_of_a_gradient_is_an_error_and_not_a_wrong_number(structure, power):
    """Whether the loss is linear in the answer, so that its gradient is a constant, or not."""
    queries, responses = collections((1, 4, 4), 0)[structure]
    source = Source(images(6, (1, 4, 4), 0))
    z = noisy(2, source, 0.7, 0).requires_grad_()
    loss = FPMC(queries, responses, source)(z, 0.7).pow(power).sum()
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.square().sum(), z)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("b", [16, 150])
def test_memory_stays_below_the_budget_for_ten_times_the_source(structure, b):
    """Inputs, result and gradients not counted, in both directions."""
    shape = (3, 12, 12)
    queries, responses = collections(shape, 0)[structure]
    results = 2 * 4 * b * 3 * 12 * 12
    for op in (queries, responses):
        if isinstance(op, Dense):
            op.matrix.requires_grad_()
            results += 8 * op.matrix.numel()
    budget = 2**24
    if structure == "dense, per dimension":
        budget *= 2
    for n in (50, 500):
        source = Source(fpmc.source.to_uint8(images(n, shape, 0)))
        z = noisy(b, source, 1.0, 0).requires_grad_()
        with PeakMemory() as memory:
            answer = FPMC(queries, responses, source, budget=budget)(z, 1.0)
            answer.backward(torch.ones_like(answer))
        assert budget / 100 < memory.peak <= budget + results


@pytest.mark.parametrize("ask", ["weights", "mean", "effective_number", "nearest"])
def test_memory_of_posteriors_stays_below_the_budget(ask):
    shape, budget = (3, 12, 12), 2**23
    op = Dense(matrix(9, (12, 12), 0).requires_grad_())
    for n in (300, 3_000):
        source = Source(fpmc.source.to_uint8(images(n, shape, 0)))
        z = noisy(40, source, 1.0, 0)
        sizes = {"weights": 4 * 40 * 9 * n, "mean": 4 * 40 * 9 * 432}
        with PeakMemory() as memory:
            posterior = FPMC(op, op, source, budget=budget).posterior(z, 1.0)
            if ask == "nearest":
                nearest(z, op, source, budget)
            elif ask == "weights":
                _ = posterior.weights()
            else:
                getattr(posterior, ask)()
        assert memory.peak <= budget + sizes.get(ask, 0)


def test_without_a_budget_the_default_one_holds(monkeypatch):
    source = Source(fpmc.source.to_uint8(images(2_000, (3, 16, 16), 0)))
    z = noisy(4, source, 1.0, 0)
    expected = fpmc.methods.pspc_square(source, 5)(z, 1.0)
    for budget in (2**21, 2**22):
        monkeypatch.setattr(memory, "DEFAULT_BUDGET", budget)
        with PeakMemory() as meter:
            answer = fpmc.methods.pspc_square(source, 5)(z, 1.0)
        assert budget / 20 < meter.peak <= budget
        assert relative(answer, expected) < 1e-6


def test_a_float32_copy_of_the_source_would_not_fit_the_budget_it_runs_in():
    source = Source(torch.randint(0, 256, (20_000, 3, 16, 16), dtype=torch.uint8))
    budget = 2**23
    assert 4 * source.images.numel() > 5 * budget
    z = noisy(4, source, 2.0, 0)
    with PeakMemory() as memory:
        fpmc.methods.pspc_square(source, 5, budget=budget)(z, 2.0)
        fpmc.methods.optimal(source, budget=budget)(z, 2.0)
    assert memory.peak <= budget


def test_a_budget_too_small_says_what_is_needed():
    source = Source(images(10, (3, 8, 8), 0))
    with pytest.raises(ValueError, match=r"budget: got 1,000 bytes, wanted at least \d"):
        fpmc.methods.pspc_square(source, 3, budget=1_000)(images(1, (3, 8, 8), 1), 1.0)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(shape=SHAPES, sigma=SIGMAS, seed=SEEDS)
def test_the_same_call_gives_the_same_bits(structure, shape, sigma, seed):
    queries, responses = collections(shape, seed)[structure]
    source = Source(images(200, shape, seed))
    z = noisy(8, source, sigma, seed)
    denoiser = FPMC(queries, responses, source)
    assert torch.equal(denoiser(z, sigma), denoiser(z, sigma))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_exact_along_a_sampling_run(structure):
    shape = (3, 5, 5)
    queries, responses = collections(shape, 0)[structure]
    source = Source(images(40, shape, 0))
    start = diffusion.initial_noise(3, shape, 0)
    path = diffusion.steps(FPMC(queries, responses, source), start, diffusion.edm_sigmas(18))
    for step in list(path)[:-1]:
        answer = exact(step.z, step.sigma, queries, responses, source)
        assert relative(step.x_hat, answer) < bound(step.sigma)


def test_exact_in_three_thousand_dimensions(device):
    source = Source(fpmc.data.load("photos32", n_train=1_000, n_test=2).train.to(device))
    optimal = fpmc.methods.optimal(source)
    on_cpu = Source(source.images.cpu())
    start = diffusion.initial_noise(4, source.shape, 0).to(device)
    for step in list(diffusion.steps(optimal, start, diffusion.edm_sigmas(18)))[:-1]:
        queries, responses = optimal.operators(step.sigma)
        answer = exact(step.z.cpu(), step.sigma, queries, responses, on_cpu)
        assert relative(step.x_hat, answer) < bound(step.sigma)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_devices_agree(structure, device):
    shape = (3, 6, 6)
    queries, responses = collections(shape, 0)[structure]
    source = Source(images(100, shape, 0))
    z = noisy(4, source, 0.5, 0)
    on_device = FPMC(queries, responses, source)(z.to(device), 0.5)
    assert on_device.device.type == device.type
    assert relative(on_device, exact(z, 0.5, queries, responses, source)) < bound(0.5)


def test_a_source_of_one_image_answers_with_it():
    source = Source(images(1, (3, 5, 5), 0))
    for queries, responses in collections((3, 5, 5), 0).values():
        answer = FPMC(queries, responses, source)(images(2, (3, 5, 5), 1), 0.7)
        assert relative(answer, source[:].expand(2, -1, -1, -1)) < 1e-6


class TestPosterior:
    """The filtered posteriors behind an answer."""

    shape = (2, 4, 5)

    @pytest.mark.parametrize("structure", STRUCTURES)
    @given(n=st.integers(1, 9), sigma=SIGMAS, seed=SEEDS)
    def test_weights_and_means_are_those_of_the_reference(self, structure, n, sigma, seed):
        queries, responses = collections(self.shape, seed)[structure]
        source = similar_images(n, self.shape, sigma, seed)
        z = noisy(2, source, sigma, seed)
        posterior = FPMC(queries, responses, source).posterior(z, sigma)
        weights, means, numbers = (
            posterior.weights(),
            posterior.mean(),
            posterior.effective_number(),
        )
        assert weights.shape == (2, queries.k, n)
        assert means.shape == (2, queries.k, *self.shape)
        dense = queries.dense()
        x = source.read(slice(None), torch.float64).flatten(1)
        for b in range(2):
            for k in range(0, queries.k, 7):
                q = dense[k].expand(self.shape).flatten()
                arguments = (z[b].flatten(), x, q, sigma, source.log_weights)
                w = reference.filtered_posterior(*arguments)
                mean = reference.filtered_posterior_mean(*arguments)
                torch.testing.assert_close(weights[b, k], w, rtol=1e-5, atol=1e-9)
                torch.testing.assert_close(means[b, k].flatten(), mean, rtol=1e-5, atol=1e-8)
                torch.testing.assert_close(numbers[b, k], 1 / (w**2).sum(), rtol=1e-5, atol=0)

    def test_the_answer_is_the_response_weighted_mean_of_the_means(self):
        op = Box(self.shape[1:], 3)
        denoiser = FPMC(op, op, Source(images(30, self.shape, 0)))
        z = images(2, self.shape, 1)
        r = op.dense(torch.float32)[None, :, None]
        means = denoiser.posterior(z, 0.8).mean()
        torch.testing.assert_close(denoiser(z, 0.8), (r * means).sum(1) / r.sum(1))

    def test_effective_number_runs_from_one_to_all(self):
        source = Source(images(50, self.shape, 0))
        optimal = fpmc.methods.optimal(source)
        z = source[:3]
        torch.testing.assert_close(optimal.posterior(z, 1e-3).effective_number(), torch.ones(3, 1))
        every = optimal.posterior(z, 1e5).effective_number()
        torch.testing.assert_close(every, torch.full((3, 1), 50.0))


class TestNearest:
    """Where a posterior goes as σ → 0."""

    @pytest.mark.parametrize("structure", ["optimal", "PSPC-Square", "dense, per dimension"])
    def test_it_is_the_smallest_filtered_distance(self, structure):
        shape = (2, 4, 4)
        queries, _ = collections(shape, 0)[structure]
        source = Source(images(40, shape, 0, torch.float64))
        z = images(3, shape, 1, torch.float64)
        distance, index = nearest(z, queries, source)
        dense = torch.stack([row.expand(shape) for row in queries.dense()])
        gaps = (z[:, None] - source.images) ** 2
        every = torch.einsum("kchw,bnchw->bkn", dense, gaps)
        torch.testing.assert_close(distance, every.min(-1).values)
        assert torch.equal(index, every.argmin(-1))

    def test_weights_of_the_source_do_not_matter(self):
        x = images(5, (1, 3, 3), 0)
        z = images(2, (1, 3, 3), 1)
        plain, weighted = (
            nearest(z, Ones((3, 3)), Source(x, w)) for w in (None, [1e9, 1, 1, 1, 1])
        )
        assert torch.equal(plain[1], weighted[1])


@given(shape=SHAPES, n=st.integers(1, 12), seed=SEEDS, p=st.integers(1, 6))
def test_limits_of_sigma(shape, n, seed, p):
    source = Source(images(n, shape, seed))
    z = images(2, shape, seed + 1)
    mean = source[:].mean(0, keepdim=True).expand_as(z)
    _, index = fpmc.metrics.nearest(z, source)
    optimal = fpmc.methods.optimal(source)
    square = fpmc.methods.pspc_square(source, min(p, *shape[1:]))
    torch.testing.assert_close(optimal(z, 1e-5), source[index[:, 0]])
    for denoiser in (optimal, square):
        torch.testing.assert_close(denoiser(z, 1e5), mean)


@given(shape=SHAPES, n=st.integers(1, 12), seed=SEEDS, sigma=st.floats(1e-4, 5e-3))
def test_a_source_image_is_its_own_answer_at_low_noise(shape, n, seed, sigma):
    source = Source(images(n, shape, seed))
    x = source[:2]
    answer = fpmc.methods.optimal(source)(diffusion.add_noise(x, sigma, seed), sigma)
    torch.testing.assert_close(answer, x)


def test_a_photograph_of_the_source_is_its_own_answer_at_low_noise(photos):
    source = Source(photos.train)
    x = source[100:104]
    z = diffusion.add_noise(x, 0.005, 0)
    for denoiser in (fpmc.methods.optimal(source), fpmc.methods.pspc_square(source, 5)):
        assert fpmc.metrics.mse(denoiser(z, 0.005), x) < 1e-6


@given(shape=SHAPES, n=st.integers(1, 12), sigma=SIGMAS, seed=SEEDS)
def test_q_equal_one_is_the_optimal_denoiser(shape, n, sigma, seed):
    source = Source(images(n, shape, seed, torch.float64))
    z = noisy(2, source, sigma, seed)
    optimal = fpmc.methods.optimal(source)(z, sigma)
    pixels = shape[1:]
    ones = Dense(torch.ones(pixels[0] * pixels[1], *pixels))
    for responses in (Identity(pixels), Dense(matrix(ones.k, pixels, seed) + 0.1), ones):
        assert relative(FPMC(ones, responses, source)(z, sigma), optimal) < 1e-6
