"""Samples put together from patches, draws of the Gaussian's posterior, distances between sets."""

import math

import pytest
import torch

from fpmc import FPMC, Source, distributional, metrics
from fpmc.distributional import composite
from fpmc.experiments.features import SIZE, classifier
from fpmc.gaussian import Gaussian
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import images

SHAPE = (2, 4, 4)


def collection(queries, responses=None, n=12):
    return FPMC(queries, responses or queries, Source(images(n, SHAPE, 0)))


def far(found, expected):
    """The largest distance of a mean over samples from what it should be, in standard errors."""
    error = found.std(0) / math.sqrt(len(found))
    return ((found.mean(0) - expected).abs() / error.clamp(min=1e-6)).max()


class TestComposite:
    """Draws of all estimators, put together by their responses."""

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("queries", [Ones((4, 4)), Identity((4, 4)), Box((4, 4), 3)])
    def test_its_mean_is_the_answer(self, queries, shared):
        patches, z, sigma = collection(queries), images(2, SHAPE, 1), 1.5
        found = composite(patches, z, sigma, 1_000, seed=3, shared=shared)
        assert found.shape == (1_000, *z.shape)
        assert far(found, patches(z, sigma)) < 5

    def test_for_one_estimator_it_is_an_image_of_the_source_as_often_as_it_weighs(self):
        whole, z, sigma = collection(Ones((4, 4))), images(1, SHAPE, 1), 2.0
        found = composite(whole, z, sigma, 8_000, seed=1)[:, 0]
        weights = whole.posterior(z, sigma).weights()[0, 0]
        for image, weight in zip(whole.source[:], weights, strict=True):
            share = (found - image).abs().flatten(1).amax(1).lt(1e-6).float().mean().item()
            assert share == pytest.approx(weight.item(), abs=4 * math.sqrt(0.25 / 8_000))

    def test_each_estimator_s_draws_have_its_weights_and_patches_that_agree_draw_alike(self):
        """Without overlaps the pixels are the draws: their marginals, and how often they agree."""
        patches, z, sigma = collection(Identity((4, 4)), n=6), images(1, SHAPE, 1), 3.0
        weights = patches.posterior(z, sigma).weights()[0]
        agree = {}
        for shared in (True, False):
            found = composite(patches, z, sigma, 4_000, seed=2, shared=shared)[:, 0]
            drawn = (found[:, None] - patches.source[:]).abs().sum(2).argmin(1).flatten(1)  # (m, k)
            share = torch.stack([(drawn == i).float().mean(0) for i in range(6)], 1)
            torch.testing.assert_close(share, weights, atol=0.035, rtol=0)
            agree[shared] = (drawn[:, 0] == drawn[:, 1]).float().mean().item()
        assert agree[False] == pytest.approx((weights[0] * weights[1]).sum().item(), abs=0.03)
        assert agree[True] > 2 * agree[False]

    def test_shared_noise_keeps_the_spread_that_independent_draws_lose(self):
        box = Box((4, 4), 3)
        patches, z = collection(box, n=40), torch.zeros(1, *SHAPE)
        shared, independent = (
            composite(patches, z, 50.0, 1_000, seed=4, shared=shared)[:, 0].std(0)
            for shared in (True, False)
        )
        source = patches.source[:].std(0)  # at much noise every posterior is the source
        assert box.coverage().max() > 3
        torch.testing.assert_close(shared, source, rtol=0.12, atol=0)
        of_means = source / box.coverage().sqrt().float()
        torch.testing.assert_close(independent, of_means, rtol=0.12, atol=0)

    def test_the_same_seed_gives_the_same_samples_and_the_sampler_takes_them(self):
        patches, z = collection(Box((4, 4), 3)), images(3, SHAPE, 1)
        first, again, other = (composite(patches, z, 1.0, 2, seed=s) for s in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

        def network(z, sigma, generator):
            return composite(patches, z, sigma, generator=generator)[0]

        drawn = distributional.sample(network, z, [5.0, 1.0], draw=lambda z, generator: generator)
        assert drawn.shape == z.shape

    def test_bad_input_is_named(self):
        patches, z = collection(Ones((4, 4))), images(1, SHAPE, 1)
        with pytest.raises(ValueError, match="n: got 0, wanted at least 1"):
            composite(patches, z, 1.0, 0)
        half = Dense(torch.tensor([1.0, 0.0]).repeat_interleave(8).view(1, 4, 4))
        with pytest.raises(ValueError, match="responses: 8 positions have no response weight"):
            composite(collection(Ones((4, 4)), half), z, 0.5)
        with pytest.raises(ValueError, match="z: got shape"):
            composite(patches, z[:, :1], 1.0)


class TestGaussianDraws:
    def test_they_have_the_posterior_s_mean_and_covariance(self):
        x = images(50, (1, 2, 2), 0, torch.float64)
        gaussian = Gaussian.of_source(Source(x))
        z, sigma = images(1, (1, 2, 2), 1, torch.float64), 0.6
        found = gaussian.draws(z, sigma, 20_000, seed=1)[:, 0].flatten(1)
        assert far(found, gaussian(z, sigma).flatten()) < 5
        expected = sigma**2 * gaussian.matrix(sigma)
        torch.testing.assert_close(found.T.cov(), expected, atol=0.01, rtol=0.05)

    def test_the_same_seed_gives_the_same_draws(self):
        gaussian = Gaussian(torch.zeros(1, 2, 2), torch.eye(4))
        z = images(3, (1, 2, 2), 0)
        assert torch.equal(gaussian.draws(z, 1.0, 2, 3), gaussian.draws(z, 1.0, 2, 3))
        assert gaussian.draws(z, 1.0, 2, 3).dtype == z.dtype
        with pytest.raises(ValueError, match="n: got 0"):
            gaussian.draws(z, 1.0, 0)


class TestEnergyDistance:
    def test_of_two_normals_it_is_known(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 4_000, 1, generator=generator)
        gap = 1.0
        between = 2 / math.sqrt(math.pi) * math.exp(-(gap**2) / 4) + gap * math.erf(gap / 2)
        expected = 2 * between - 4 / math.sqrt(math.pi)
        assert metrics.energy_distance(x, y + gap) == pytest.approx(expected, abs=0.03)

    def test_of_one_distribution_it_is_zero_without_bias_for_few_images(self):
        generator = torch.Generator().manual_seed(0)
        found = torch.tensor([
            metrics.energy_distance(*torch.randn(2, 5, 3, generator=generator)) for _ in range(400)
        ])  # fmt: skip
        assert abs(found.mean()) < 3 * found.std() / 20
        assert (found < 0).any()

    def test_pairs_of_an_image_with_itself_do_not_count(self):
        x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        assert metrics.energy_distance(x, y) == pytest.approx(2 * (0 + 3 + 1 + 2) / 4 - 1 - 3)

    @pytest.mark.usefixtures("as_users_do")
    def test_bad_input_is_named(self):
        x = torch.zeros(3, 2)
        for arguments, says in (
            ((x[:1], x), "a: got shape .1, 2., wanted two or more rows"),
            ((x, x[:, :1]), r"b: got shape \(3, 1\), wanted"),
            ((x, x, 2.0), "beta: got 2, wanted a number above 0 and below 2"),
            ((x, x * math.nan), "b: got NaN"),
            ((x + math.inf, x), "a: got NaN or infinite values"),
            ((x[:, :0], x[:, :0]), r"a: got shape \(3, 0\)"),
        ):
            with pytest.raises(ValueError, match=says):
                metrics.energy_distance(*arguments)


class TestFrechet:
    def test_of_gaussians_with_the_same_axes_it_is_that_of_their_spreads(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
        moved = 2 * x + 1
        gap = (moved.mean(0) - x.mean(0)).square().sum() + x.var(0).sum()
        assert metrics.frechet(x, moved) == pytest.approx(gap.item())

    def test_it_is_symmetric_and_zero_for_the_same_features(self):
        a, b = images(40, (5,), 0), images(30, (5,), 1)
        assert metrics.frechet(a, b) == pytest.approx(metrics.frechet(b, a))
        assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
        for n in range(2, 9):  # rounding leaves no negative distance
            assert metrics.frechet(a[:n], a[:n]) >= 0


def test_the_classifier_of_digits_knows_them_and_is_the_same_each_time(digits):
    from fpmc.source import to_float

    x, y = to_float(digits.train), digits.train_labels
    features, classes = classifier(x, y)
    held = to_float(digits.test)
    assert features(held).shape == (len(held), SIZE)
    assert (classes(held) == digits.test_labels).float().mean() > 0.93
    assert torch.equal(features(held), classifier(x, y)[0](held))
