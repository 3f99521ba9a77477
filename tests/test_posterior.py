"""Draws from filtered posteriors, and the source images that have most of their weight."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Chi2

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.engine.problem import Problem
from fpmc.engine.streaming.posterior import posterior_weights
from fpmc.engine.streaming.sizes import tile
from fpmc.operators import Box, Dense, Ones
from fpmc.seeds import own_stream
from tests.helpers import PeakMemory, collections, images, matrix, relative

SHAPE = (2, 4, 5)
STRUCTURES = list(collections(SHAPE, 0))
SEEDS = st.integers(0, 2**31)
ALMOST = torch.tensor(1 - 2**-53, dtype=torch.float64)
"""The largest number that is drawn uniformly from 0 to 1."""


def question(structure, n=6, seed=0, sigma=4.0, b=2):
    """A collection, noisy images, and its posteriors' weights, of which several count."""
    queries, responses = collections(SHAPE, seed)[structure]
    source = Source(images(n, SHAPE, seed), 2 + images(n, (1,), seed + 1)[:, 0])
    z = images(b, SHAPE, seed + 2, torch.float64)
    weights = posterior_weights(z, Problem(queries, responses, source, sigma))
    return FPMC(queries, responses, source), z, sigma, weights


def limited(denoiser, sigma, times, rows):
    """The same collection with so many times the smallest budget that such draws allow."""
    operators = denoiser.operators(sigma)[:1]
    with pytest.raises(ValueError, match="wanted at least") as caught:
        tile(1, 100, SHAPE, operators, 1, rows=rows)
    least = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    return FPMC(*denoiser.operators(sigma), denoiser.source, budget=times * least)


class TestDraws:
    """posterior.sample."""

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_images_are_drawn_as_often_as_they_weigh(self, structure):
        denoiser, z, sigma, weights = question(structure)
        n = 2_000
        draws = denoiser.posterior(z, sigma).sample(n, 0)
        assert draws.shape == (n, *weights.shape[:2])
        counts = torch.nn.functional.one_hot(draws, weights.shape[-1]).sum(0)
        surprise = (counts - n * weights).square() / (n * weights)
        assert (n * weights).min() > 5
        freedom = weights[..., 1:].numel()
        assert Chi2(freedom).cdf(surprise.sum()) < 0.999
        assert Chi2(freedom).cdf(surprise.sum()) > 0.001

    @pytest.mark.parametrize("structure", STRUCTURES)
    @given(seed=SEEDS, n=st.integers(1, 40), draws=st.integers(1, 5), times=st.integers(1, 20))
    def test_tiles_decide_nothing(self, structure, seed, n, draws, times):
        denoiser, z, sigma, _ = question(structure, n, seed, b=3)
        tiled = limited(denoiser, sigma, times, 4 * draws)
        both = [each.posterior(z, sigma).sample(draws, seed) for each in (denoiser, tiled)]
        assert torch.equal(*both)

    def test_of_whole_images_they_are_draws_from_the_posterior_of_the_optimal_denoiser(self):
        n, sigma, source = 20_000, 1.0, Source(images(30, SHAPE, 0))
        optimal, z = fpmc.methods.optimal(source), images(2, SHAPE, 1)
        draws = optimal.posterior(z, sigma).sample(n, 3)
        for b in range(2):
            x = source[draws[:, b, 0]]
            off = (x.mean(0) - optimal(z, sigma)[b]) / (x.std(0) / math.sqrt(n))
            assert off.abs().max() < 4.5

    def test_estimators_and_draws_are_independent(self):
        op, source = Ones((4, 5)), Source(torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)]) / 4)
        z = torch.full((3, *SHAPE), 0.125)
        draws = FPMC(op, op, source).posterior(z, 1.0).sample(4_000, 0)[..., 0].double().T
        assert (draws.mean(1) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(4_000)
        pairs = torch.cat([draws[:, :-1], draws[:, 1:]])  # of images, and of a draw and the next
        assert (torch.corrcoef(pairs) - torch.eye(6)).abs().max() < 4 / math.sqrt(4_000)

    def test_without_noise_the_nearest_image_is_drawn(self):
        source = Source(images(50, SHAPE, 0))
        z = source[:4] + 0.01
        op = Box(SHAPE[1:], 3)
        draws = FPMC(op, op, source).posterior(z, 1e-3).sample(5, 0)
        assert (draws == torch.arange(4).view(1, 4, 1)).all()

    def test_an_image_that_is_left_out_is_never_drawn(self):
        source = Source(images(8, SHAPE, 0)).without([0, 3, 6, 7])
        z = images(2, SHAPE, 1)
        draws = fpmc.methods.pspc_square(source, 3).posterior(z, 100.0).sample(500, 0)
        assert draws.unique().tolist() == [1, 2, 4, 5]

    @pytest.mark.parametrize(("u", "first"), [(0 * ALMOST, 100), (ALMOST, 890)])
    def test_nor_by_a_number_at_either_end(self, monkeypatch, u, first):
        """Rounding leaves half of the sums of weights below the largest number that is drawn."""
        left_out = [*range(100), *range(900, 1_000)]
        source = Source(images(1_000, (1, 2, 2), 0)).without(left_out)
        z = 0.1 * images(64, (1, 2, 2), 1)
        monkeypatch.setattr(torch, "rand", lambda *args, **options: u.expand(1, 64, 1).clone())
        for budget in (None, 20_000):
            optimal = FPMC(Ones((2, 2)), Ones((2, 2)), source, budget=budget)
            draws = optimal.posterior(z, 5.0).sample(1, 0)
            assert (draws >= first).all()
            assert (draws < first + 10).all()

    def test_a_seed_gives_the_same_draws_and_a_generator_new_ones(self):
        denoiser, z, sigma, _ = question("PSPC-Square")
        posterior, generator = denoiser.posterior(z, sigma), torch.Generator().manual_seed(3)
        one, same, other, first = (posterior.sample(4, seed) for seed in (3, 3, 4, generator))
        second = posterior.sample(4, generator=generator)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(first, second)
        assert torch.equal(posterior.sample(), posterior.sample(1, 0))

    def test_the_seed_that_made_z_makes_other_draws(self):
        """Else the first image would be drawn where noise is low, given the noisy image or not."""
        noise = torch.rand(4_000, generator=torch.Generator().manual_seed(0))
        mine = torch.rand(4_000, generator=own_stream("posterior", 0))
        other = torch.rand(4_000, generator=own_stream("bridge", 0))
        assert (torch.corrcoef(torch.stack([noise, mine, other])) - torch.eye(3)).abs().max() < 0.07


class TestTop:
    """posterior.top."""

    @pytest.mark.parametrize("structure", STRUCTURES)
    @given(seed=SEEDS, n=st.integers(1, 40), part=st.floats(0, 1), times=st.integers(1, 20))
    def test_it_is_the_head_of_the_sorted_weights(self, structure, seed, n, part, times):
        denoiser, z, sigma, weights = question(structure, n, seed, b=3)
        top = max(1, round(part * n))
        tiled = limited(denoiser, sigma, times, 10 * top)
        for each in (denoiser, tiled):
            heaviest, positions = each.posterior(z, sigma).top(top)
            expected, order = weights.topk(top)
            torch.testing.assert_close(heaviest, expected)
            assert torch.equal(positions, order)
            torch.testing.assert_close(heaviest, weights.gather(-1, positions))

    def test_the_first_is_the_nearest_and_all_of_them_weigh_one(self):
        source = Source(images(20, SHAPE, 0))
        z, op = images(3, SHAPE, 1), Box(SHAPE[1:], 3)
        posterior = FPMC(op, op, source).posterior(z, 0.8)
        _, index = fpmc.metrics.nearest(z, source, op)
        assert torch.equal(posterior.top(1)[1][..., 0], index)
        weights, positions = posterior.top(20)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, op.k))
        assert torch.equal(positions.sort(-1).values, torch.arange(20).expand_as(positions))

    def test_an_image_that_is_left_out_comes_last_without_weight(self):
        source = Source(images(6, SHAPE, 0)).without([1, 4])
        posterior = fpmc.methods.optimal(source).posterior(images(2, SHAPE, 1), 10.0)
        weights, positions = posterior.top(6)
        assert (weights[..., :4] > 0).all()
        assert (weights[..., 4:] == 0).all()
        assert (positions[..., 4:].sort(-1).values == torch.tensor([1, 4])).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_weights_have_the_type_of_z(self, dtype):
        source = Source(images(20, SHAPE, 0))
        z = images(3, SHAPE, 1).to(dtype)
        weights, _ = fpmc.methods.optimal(source).posterior(z, 1.0).top(4)
        assert weights.dtype == dtype

    def test_weights_have_no_gradient(self):
        z = images(2, SHAPE, 1).requires_grad_()
        weights, _ = fpmc.methods.optimal(Source(images(9, SHAPE, 0))).posterior(z, 1.0).top(4)
        with pytest.raises(RuntimeError, match="not differentiable, got a call for its gradient"):
            (z.sum() + weights.sum()).backward()


@pytest.mark.parametrize("ask", ["sample", "top"])
def test_memory_stays_below_the_budget(ask):
    shape, budget, n = (1, 4, 4), 2**20, 50
    op = Dense(matrix(16, (4, 4), 0))
    for size in (300, 4_000):  # all weights would be three times the budget
        source = Source(fpmc.source.to_uint8(images(size, shape, 0)))
        z = images(6, shape, 1)
        posterior = FPMC(op, op, source, budget=budget).posterior(z, 1.0)
        results = 6 * 16 * n * (8 if ask == "sample" else 8 + 4)
        with PeakMemory() as memory:
            getattr(posterior, ask)(n)
        assert budget / 10 < memory.peak <= budget + results


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: p.sample(0), ValueError, "n: got 0, wanted at least 1"),
        (lambda p: p.sample(2.5), TypeError, "n: got 2.5"),
        (lambda p: p.sample(2, -1), ValueError, "seed: got -1"),
        (lambda p: p.sample(2, "0"), TypeError, "seed: got '0'"),
        (lambda p: p.sample(2, 0, generator=torch.Generator()), ValueError, "seed: got a gen"),
        (lambda p: p.sample(10**6), ValueError, "budget: got 100,000 bytes, wanted at least"),
        (lambda p: p.top(0), ValueError, "n: got 0, wanted between 1 and 9"),
        (lambda p: p.top(10), ValueError, "n: got 10, wanted between 1 and 9"),
        (lambda p: p.top("3"), TypeError, "n: got '3'"),
    ],
)
def test_bad_input_is_named(call, error, says):
    source = Source(images(9, SHAPE, 0))
    denoiser = FPMC(Ones(SHAPE[1:]), Ones(SHAPE[1:]), source, budget=100_000)
    with pytest.raises(error) as caught:
        call(denoiser.posterior(images(2, SHAPE, 1), 1.0))
    assert says in str(caught.value)


def test_draws_follow_the_noisy_image_that_they_are_for():
    """Each image of a batch has its own posterior: after little noise, the image that it was."""
    source = Source(images(200, SHAPE, 0))
    z = diffusion.add_noise(source[:30], 0.2, 1)
    optimal = fpmc.methods.optimal(source)
    draws = optimal.posterior(z, 0.2).sample(3, 0)
    assert (draws[..., 0] == torch.arange(30)).all()
    assert relative(source[draws[0, :, 0]], source[:30]) == 0
