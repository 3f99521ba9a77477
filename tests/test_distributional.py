"""Scoring rules against closed forms, the Gaussian bridge, and the sampler that goes down it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Chi2

import fpmc
from fpmc import Source, diffusion
from fpmc.distributional import bridge, energy_score, kernel_score, sample
from tests.helpers import images

BETAS = (0.1, 1.0, 1.9, 2.0)
B = 20_000
"""Targets of a Monte Carlo estimate."""

WRONG = [lambda e: e + 0.3, lambda e: 0.7 * e, lambda e: 1.4 * e, lambda e: e.abs()]
"""What makes another distribution of standard normal noise."""


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(found, expected):
    """How many standard errors the mean of b scores lies from a number."""
    return abs(found.mean() - expected) / (found.std() / math.sqrt(len(found)))


def expected_power(variance, d, beta):
    """E‖x‖^β for x ~ N(0, variance · I_d)."""
    log_ratio = math.lgamma((d + beta) / 2) - math.lgamma(d / 2)
    return (2 * variance) ** (beta / 2) * math.exp(log_ratio)


class TestEnergyScore:
    """‖x̂ − x‖^β less half of λ ‖x̂ − x̂'‖^β."""

    def test_in_one_dimension_it_is_written_down_in_a_line(self):
        draws, x = torch.tensor([[1.0], [4.0], [-1.0]]), torch.tensor([2.0])
        errors, pairs = (1 + 2 + 3) / 3, (3 + 2 + 5) / 3
        for weight in (0, 0.5, 1):
            assert energy_score(draws, x, 1.0, weight).item() == pytest.approx(
                errors - weight / 2 * pairs
            )

    @pytest.mark.parametrize("beta", BETAS)
    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    def test_it_is_the_double_sum_over_draws(self, beta, weight):
        draws, x = images(4, (3, 2, 5), 0, torch.float64), images(3, (2, 5), 1, torch.float64)
        for b in range(3):
            errors = sum((draw[b] - x[b]).norm() ** beta for draw in draws)
            pairs = sum(
                (one[b] - other[b]).norm() ** beta
                for one, other in itertools.permutations(draws, 2)
            )
            expected = errors / 4 - weight / (2 * 4 * 3) * pairs
            torch.testing.assert_close(energy_score(draws, x, beta, weight)[b], expected)

    @pytest.mark.parametrize("beta", BETAS)
    @pytest.mark.parametrize("d", [1, 5])
    @pytest.mark.parametrize("m", [2, 3, 7])
    def test_for_gaussians_its_mean_is_known_whatever_the_number_of_draws(self, beta, d, m):
        spread, weight = 0.7, 0.8
        score = energy_score(spread * normal(m, m, B, d), normal(1, B, d), beta, weight)
        errors = expected_power(spread**2 + 1, d, beta)
        assert far(score, errors - weight / 2 * expected_power(2 * spread**2, d, beta)) < 4

    def test_at_two_it_sees_means_and_variances_alone(self):
        draws, x = images(5, (6, 1, 3, 3), 0, torch.float64), images(6, (1, 3, 3), 1, torch.float64)
        bias = (draws.mean(0) - x).square().flatten(1).sum(1)
        variance = draws.var(0).flatten(1).sum(1)
        plain, fair = (energy_score(draws, x, 2.0, weight) for weight in (0.0, 1.0))
        torch.testing.assert_close(plain, bias + 4 / 5 * variance)
        torch.testing.assert_close(fair, bias - variance / 5)

    def test_with_one_draw_at_two_it_is_the_squared_error_to_the_bit(self):
        answer, x = images(6, (2, 3, 3), 0), images(6, (2, 3, 3), 1)
        score = energy_score(answer[None], x, 2.0, 0.0)
        assert torch.equal(score, (answer - x).square().flatten(1).sum(1))

    @pytest.mark.parametrize("beta", [0.1, 1.0, 1.5])  # near 2, spreads take far more draws to tell
    @pytest.mark.parametrize("wrong", WRONG)
    def test_it_is_least_for_the_distribution_that_targets_come_from(self, beta, wrong):
        noise, x = normal(0, 2, B, 2), normal(1, B, 2)
        more = energy_score(wrong(noise), x, beta) - energy_score(noise, x, beta)
        assert more.mean() > 4 * more.std() / math.sqrt(B)

    def test_at_two_it_cannot_tell_spreads_apart(self):
        noise, x = normal(0, 2, B, 2), normal(1, B, 2)
        more = energy_score(0.5 * noise, x, 2.0) - energy_score(noise, x, 2.0)
        assert far(more, 0) < 4

    @pytest.mark.parametrize("weight", [0.3, 0.7, 1.0])
    def test_a_smaller_weight_asks_for_a_narrower_distribution(self, weight):
        def expected(spread):
            errors = expected_power(spread**2 + 1, 1, 1.0)
            return errors - weight / 2 * expected_power(2 * spread**2, 1, 1.0)

        spreads = torch.linspace(0.01, 2, 2_000, dtype=torch.float64).tolist()
        best = min(spreads, key=expected)
        assert best == pytest.approx(weight / math.sqrt(2 - weight**2), abs=1e-3)

    @pytest.mark.parametrize("m", [2, 3, 8])
    def test_dividing_by_the_square_of_m_is_a_smaller_weight(self, m):
        """What ``scoringrules.es_ensemble`` calls the energy score, unless asked for "fair"."""
        draws, x = normal(0, m, 4, 3), normal(1, 4, 3)
        norms = (draws[:, None] - draws).norm(dim=-1)
        by_square = (draws - x).norm(dim=-1).mean(0) - norms.sum((0, 1)) / (2 * m**2)
        torch.testing.assert_close(energy_score(draws, x, 1.0, (m - 1) / m), by_square)
        too_high = by_square - energy_score(draws, x)
        torch.testing.assert_close(too_high, norms.sum((0, 1)) / (m * (m - 1)) / (2 * m))

    @pytest.mark.parametrize("beta", BETAS)
    def test_gradients_are_finite_where_draws_meet_or_hit_the_target(self, beta):
        for gap in (0.0, 1e-45, 1e-30, 1e-23, 1e-19, 1e-10):
            draws = torch.zeros(3, 1, 4)
            draws[1] += gap
            draws.requires_grad_()
            x = torch.zeros(1, 4, requires_grad=True)
            score = energy_score(draws, x, beta)
            for gradient in torch.autograd.grad(score.sum(), (draws, x)):
                assert gradient.isfinite().all()
            assert score.isfinite().all()

    @pytest.mark.parametrize("beta", BETAS)
    def test_a_pair_that_meets_adds_nothing_to_the_gradient(self, beta):
        draws = normal(0, 3, 1, 4)
        draws[1] = draws[0]
        draws.requires_grad_()
        (found,) = torch.autograd.grad(energy_score(draws, torch.zeros(1, 4), beta).sum(), draws)
        errors = draws.norm(dim=-1).pow(beta).sum() / 3
        apart = sum((draws[j] - draws[2]).norm().pow(beta) for j in (0, 1)) / 6
        (expected,) = torch.autograd.grad(errors - apart, draws)
        torch.testing.assert_close(found, expected)

    def test_gradients_are_those_of_finite_differences(self):
        inputs = normal(0, 3, 2, 4).requires_grad_(), normal(1, 2, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda s, x: energy_score(s, x, 0.7, 0.6), inputs)

    def test_half_precision_is_computed_in_single(self):
        draws, x = images(2, (3, 40), 0).half(), images(3, (40,), 1).bfloat16()
        score = energy_score(draws, x)
        assert score.dtype == torch.float32
        assert torch.equal(score, energy_score(draws.float(), x.float()))


class TestKernelScore:
    """One less the similarity to the target, and half of that among draws."""

    @pytest.mark.parametrize("m", [2, 5])
    @pytest.mark.parametrize("weight", [0.5, 1.0])
    def test_for_gaussians_and_a_gaussian_kernel_its_mean_is_known(self, m, weight):
        d, h, spread, shift = 3, 1.3, 0.6, 0.4

        def expected(variance, distance):
            wide = h**2 + variance
            return (h**2 / wide) ** (d / 2) * math.exp(-(distance**2) / (2 * wide))

        draws = spread * normal(m, m, B, d) + shift
        score = kernel_score(draws, normal(1, B, d), bandwidth=h, weight=weight)
        to_x = expected(spread**2 + 1, shift * math.sqrt(d))
        assert far(score, 1 - to_x - weight / 2 * (1 - expected(2 * spread**2, 0))) < 4

    @pytest.mark.parametrize("m", [2, 5])
    def test_for_gaussians_in_the_plane_that_of_the_multiquadric_is_known(self, m):
        h, spread = 0.8, 0.6

        def expected(variance):  # ∫ e⁻ᵘ / √(1 + a u) du, as ‖·‖² is exponential
            a = 2 * variance / h**2
            return math.sqrt(math.pi / a) * math.exp(1 / a) * math.erfc(1 / math.sqrt(a))

        score = kernel_score(spread * normal(m, m, B, 2), normal(1, B, 2), "imq", bandwidth=h)
        assert far(score, 0.5 - expected(spread**2 + 1) + expected(2 * spread**2) / 2) < 4

    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    @pytest.mark.parametrize("wrong", WRONG)
    def test_it_is_least_for_the_distribution_that_targets_come_from(self, kernel, wrong):
        noise, x = normal(0, 2, B, 2), normal(1, B, 2)
        scores = [kernel_score(e, x, kernel, bandwidth=1.0) for e in (wrong(noise), noise)]
        more = scores[0] - scores[1]
        assert more.mean() > 4 * more.std() / math.sqrt(B)

    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    def test_it_depends_on_distances_in_bandwidths(self, kernel):
        draws, x = images(4, (3, 2, 5), 0, torch.float64), images(3, (2, 5), 1, torch.float64)
        scores = [kernel_score(s * draws, s * x, kernel, bandwidth=s * 0.9) for s in (1, 100)]
        torch.testing.assert_close(*scores)
        assert torch.equal(
            kernel_score(x[None], x, kernel, bandwidth=1, weight=0), torch.zeros(3).double()
        )

    @pytest.mark.parametrize("kernel", ["rbf", "imq"])
    def test_gradients_are_finite_where_draws_meet_or_hit_the_target(self, kernel):
        draws = torch.zeros(3, 1, 4, requires_grad=True)
        score = kernel_score(draws, torch.zeros(1, 4), kernel, bandwidth=0.5)
        (gradient,) = torch.autograd.grad(score.sum(), draws)
        assert torch.equal(gradient, torch.zeros_like(draws))
        inputs = normal(0, 3, 2, 4).requires_grad_(), normal(1, 2, 4).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, x: kernel_score(s, x, kernel, bandwidth=2.0), inputs
        )


X, DRAWS = torch.zeros(2, 3), torch.ones(4, 2, 3)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: energy_score(DRAWS, X, 0), ValueError, "beta: got 0, wanted"),
        (lambda: energy_score(DRAWS, X, 2.1), ValueError, "beta: got 2.1, wanted a number above 0"),
        (lambda: energy_score(DRAWS, X, "1"), TypeError, "beta: got str"),
        (lambda: energy_score(DRAWS, X, 1.0, 1.5), ValueError, "weight: got 1.5"),
        (lambda: energy_score(DRAWS[:1], X), ValueError, "samples: got 1 draw with weight = 1"),
        (lambda: energy_score(DRAWS[:, :1], X), ValueError, "samples: got shape (4, 1, 3) for a"),
        (lambda: energy_score(DRAWS[0], X), ValueError, "samples: got shape (2, 3) for a target"),
        (lambda: energy_score(DRAWS[:0], X), ValueError, "samples: got shape (0, 2, 3)"),
        (lambda: energy_score(DRAWS, None), TypeError, "target: got NoneType"),
        (lambda: energy_score(DRAWS.long(), X), TypeError, "samples: got torch.int64"),
        (lambda: kernel_score(DRAWS, X, "tps", bandwidth=1), ValueError, "kernel: got 'tps'"),
        (lambda: kernel_score(DRAWS, X, bandwidth=0), ValueError, "bandwidth: got 0"),
        (lambda: bridge.moments(Z, Z, 1.0, 2.0), ValueError, "lower: got 2, wanted at most sigma"),
        (lambda: bridge.moments(Z, Z, 1.0, 0.5, 1.1), ValueError, "eta: got 1.1"),
        (lambda: bridge.moments(Z, Z[:1], 1.0, 0.5), ValueError, "x_hat: gave shape (1, 1, 1, 2)"),
        (lambda: sample(fixed, Z, [1.0, 2.0]), ValueError, "sigmas: got [1.0, 2.0]"),
        (lambda: sample(fixed, Z[0], [1.0]), ValueError, "z: got shape (1, 1, 2)"),
        (lambda: sample(fixed, Z, [1.0], seed=-1), ValueError, "seed: got -1"),
        (lambda: sample(fixed, Z, [1.0], eta=2), ValueError, "eta: got 2"),
        (lambda: sample(lambda z, s, xi: 0, Z, [1.0]), TypeError, "network: gave int"),
        (lambda: sample(lambda z, s, xi: z[:1], Z, [1.0]), ValueError, "network: gave shape"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


Z = torch.ones(2, 1, 1, 2)


def fixed(z, sigma, xi):
    """A posterior that is sure of one image."""
    return torch.full_like(z, 0.25)


class TestBridge:
    """The distribution of z_s between z_t and x̂."""

    @given(st.floats(1e-3, 80), st.floats(0, 1), st.floats(0, 1))
    def test_noise_at_one_level_becomes_noise_at_the_lower(self, t, part, eta):
        """What is kept of z_t − x, squared and times t², and what is drawn, add up to s²."""
        x, z = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
        kept, spread = bridge.moments(z, x, t, part * t if part > 1e-9 else 0.0, eta)
        s = part * t if part > 1e-9 else 0.0
        assert kept.item() ** 2 * t**2 + spread**2 == pytest.approx(s**2, rel=1e-9)

    @given(st.floats(0.1, 10), st.floats(0.01, 0.99))
    def test_the_bridge_is_the_product_of_two_normal_densities(self, t, part):
        """p(z_s | z_t, x) ∝ N(z_s; x, s²) N(z_t; z_s, t² − s²), from its values on a line."""
        s, x, z = part * t, 0.3, 1.1
        mean, spread = bridge.moments(
            *(torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (z, x)), t, s
        )

        def log_density(at):
            return -((at - x) ** 2) / (2 * s**2) - (z - at) ** 2 / (2 * (t**2 - s**2))

        middle = mean.item()
        curvature = log_density(middle + spread) + log_density(middle - spread)
        curvature -= 2 * log_density(middle)
        assert curvature == pytest.approx(-1, rel=1e-6)  # a normal density's, at its deviation
        lean = log_density(middle + spread) - log_density(middle - spread)
        assert lean == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
    def test_many_steps_keep_noisy_data_noisy_data(self, eta):
        """With the image known, z at each level has its mean and that level's variance."""
        n, x = 40_000, 0.25
        z = x + 3 * normal(0, n, 1, 1, 1)
        generator = torch.Generator().manual_seed(1)
        for t, s in itertools.pairwise([3.0, 1.0, 0.7, 0.1]):
            mean, spread = bridge.moments(z, torch.full_like(z, x), t, s, eta)
            z = mean + spread * bridge.normal(z, generator)
            assert abs(z.mean() - x) < 4 * s / math.sqrt(n)
            assert abs(z.var() / s**2 - 1) < 4 * math.sqrt(2 / n)

    def test_all_noise_is_gone_at_zero(self):
        mean, spread = bridge.moments(images(2, (1, 3, 3), 0), images(2, (1, 3, 3), 1), 2.0, 0.0)
        assert torch.equal(mean, images(2, (1, 3, 3), 1))
        assert spread == 0


VARIANCE = torch.linspace(0.01, 1, 8, dtype=torch.float64).view(1, 2, 2, 2)


def mean_network(z, sigma, xi=None):
    """The posterior mean of independent Gaussian data."""
    return VARIANCE / (VARIANCE + sigma**2) * z


def drawing_network(z, sigma, xi):
    """A draw from the posterior of independent Gaussian data."""
    return mean_network(z, sigma) + sigma * (VARIANCE / (VARIANCE + sigma**2)).sqrt() * xi


class TestSample:
    """ξ, then x̂, then the bridge."""

    def test_without_noise_the_steps_are_eulers(self):
        z = 10 * normal(0, 3, 2, 2, 2)
        sigmas = diffusion.edm_sigmas(9, 0.01, 10.0).tolist()
        expected = z
        for sigma, lower in itertools.pairwise([*sigmas, 0.0]):
            slope = (expected - mean_network(expected, sigma)) / sigma
            expected = expected + (lower - sigma) * slope
        found = sample(mean_network, z, sigmas, eta=0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_the_last_step_is_that_of_the_other_sampler(self):
        z = 0.5 * normal(0, 3, 2, 2, 2)
        both = sample(mean_network, z, [0.5], eta=0), diffusion.sample(mean_network, z, [0.5])
        torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)

    def test_without_noise_it_nears_the_other_sampler_at_first_order(self):
        z = 10 * normal(0, 3, 2, 2, 2)
        errors = []
        for n in (40, 80, 160):
            sigmas = diffusion.edm_sigmas(n, 0.1, 10.0)
            exact = diffusion.sample(mean_network, z, diffusion.edm_sigmas(1_000, 0.1, 10.0))
            errors.append((sample(mean_network, z, sigmas, eta=0) - exact).norm())
        for coarse, fine in itertools.pairwise(errors):
            assert 1.7 < coarse / fine < 2.3

    @pytest.mark.parametrize("sigmas", [[5.0], [5.0, 1.0], [5.0, 4.0, 0.5, 0.1]])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_draws_from_the_posterior_give_the_data_on_any_grid(self, sigmas, eta):
        n = 20_000
        z = VARIANCE.sqrt() * normal(0, n, 2, 2, 2) + 5 * normal(1, n, 2, 2, 2)
        ratio = sample(drawing_network, z, sigmas, seed=2, eta=eta).var(0) / VARIANCE[0]
        assert ((ratio - 1).abs() < 4 * math.sqrt(2 / n)).all()

    def test_means_do_not(self):
        z = VARIANCE.sqrt() * normal(0, 2_000, 2, 2, 2) + 5 * normal(1, 2_000, 2, 2, 2)
        ratio = sample(mean_network, z, [5.0, 1.0], seed=2).var(0) / VARIANCE[0]
        assert (ratio < 0.5).all()

    def test_posteriors_over_a_source_give_back_its_weights_on_a_coarse_grid(self):
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        x = torch.tensor([-0.9, 0.1, 0.8]).view(3, 1, 1, 1)
        source, n = Source(x, weights), 3_000
        optimal = fpmc.methods.optimal(source)

        def network(z, sigma, generator):
            return source[optimal.posterior(z, sigma).sample(1, generator)[0, :, 0]]

        true = torch.multinomial(weights, n, True, generator=torch.Generator().manual_seed(0))
        z = diffusion.add_noise(x[true], 2.0, 1)
        found = sample(network, z, [2.0, 0.5], draw=lambda z, generator: generator)
        counts = (found.flatten()[:, None] == x.flatten()).sum(0)
        assert counts.sum() == n
        statistic = ((counts - n * weights).square() / (n * weights)).sum()
        assert Chi2(2).cdf(statistic) < 0.999

    def test_a_seed_or_a_generator_decides_every_draw(self):
        z = 5 * normal(0, 2, 2, 2, 2)
        generator = torch.Generator().manual_seed(3)
        before = generator.get_state()
        ask = (3, 3, 4, 0, generator, generator, torch.Generator().set_state(before))
        one, same, other, zero, by_generator, goes_on, again = (
            sample(drawing_network, z, [5.0, 1.0], seed=seed) for seed in ask
        )
        assert torch.equal(one, same)
        assert torch.equal(by_generator, again)
        assert torch.equal(zero, sample(drawing_network, z, [5.0, 1.0]))
        for different in (other, zero, by_generator):
            assert not torch.equal(one, different)
        assert not torch.equal(by_generator, goes_on)

    def test_the_seed_that_made_z_makes_other_noise_here(self):
        z, seen = diffusion.initial_noise(2_000, (1, 1, 1), 0), []

        def network(z, sigma, xi):
            seen.append(xi.flatten())
            return 0 * z

        sample(network, z, [80.0, 1.0], seed=0)
        for noise in itertools.combinations([z.flatten(), *seen], 2):
            assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 4 / math.sqrt(2_000)

    def test_noise_may_have_another_shape(self):
        shapes = []

        def network(z, sigma, xi):
            shapes.append(tuple(xi.shape))
            return z * 0

        def draw(z, generator):
            return torch.randn(len(z), 7, generator=generator)

        sample(network, Z, [2.0, 1.0, 0.0], draw=draw)
        assert shapes == [(2, 7)] * 2

    def test_samples_are_differentiable_where_the_network_is(self):
        z = normal(0, 1, 2, 2, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: sample(drawing_network, z, [2.0, 0.5]), z)

    def test_progress_is_shown_when_asked_for(self, capsys):
        sample(fixed, Z, [2.0, 1.0])
        assert "sampling" not in capsys.readouterr().err
        sample(fixed, Z, [2.0, 1.0], progress=True)
        assert "sampling" in capsys.readouterr().err
