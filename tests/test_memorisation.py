"""What estimators know of noisy images: closed forms, bounds, and what theory makes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fpmc
from fpmc import FPMC, Source, diffusion, memorisation, methods
from fpmc.engine.streaming import posterior
from fpmc.gaussian import Gaussian
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import PeakMemory, collections, images, matrix

SHAPE = (2, 4, 5)
STRUCTURES = list(collections(SHAPE, 0))


def question(structure, sigma, n=40, b=5, seed=0, weights=False):
    """A collection, images of its source, and the same with noise."""
    source = Source(images(n, SHAPE, seed), images(n, (1,), 9)[:, 0] + 2 if weights else None)
    denoiser = FPMC(*collections(SHAPE, seed)[structure], source)
    x = source[torch.arange(b)].double()
    return denoiser, x, diffusion.add_noise(x, sigma, seed + 1)


def gaussian_images(n, covariance, seed):
    """Draws of a Gaussian on images of shape (1, 1, d)."""
    d = len(covariance)
    root = torch.linalg.cholesky(covariance)
    xi = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (xi @ root.T).view(n, 1, 1, d)


def covariance(d, seed, scale=0.05):
    """A random covariance whose draws stay in [-1, 1]."""
    half = images(d, (2 * d,), seed, torch.float64)
    return scale * half @ half.T / (2 * d)


class TestPosterior:
    """Posterior.entropy and Posterior.information."""

    @pytest.mark.parametrize("weights", [False, True])
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_they_are_those_of_the_weights(self, structure, weights):
        denoiser, _, z = question(structure, 1.5, weights=weights)
        found = denoiser.posterior(z, 1.5)
        w, prior = found.weights(), denoiser.source.log_weights
        prior = torch.full((40,), -math.log(40)).double() if prior is None else prior.double()
        entropy = torch.special.entr(w).sum(-1)
        torch.testing.assert_close(found.entropy(), entropy)
        over = (w * (w.log() - prior)).nan_to_num(0).sum(-1)
        torch.testing.assert_close(found.information(), over)
        assert (entropy > 0.1).any()

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_tiles_decide_nothing(self, structure):
        denoiser, _, z = question(structure, 0.8)
        small = FPMC(*denoiser.operators(0.8), denoiser.source, budget=3_000_000)
        for ask in ("entropy", "information"):
            both = (getattr(each.posterior(z, 0.8), ask)() for each in (denoiser, small))
            torch.testing.assert_close(*both, rtol=1e-10, atol=1e-12)

    def test_chunks_decide_nothing_where_the_peak_rises(self, monkeypatch):
        """The heaviest image comes last, and each tile has one image."""
        x = images(6, SHAPE, 0).double()
        denoiser, z = methods.optimal(Source(x)), x[5:] + 0.3
        wanted = denoiser.posterior(z, 1.0).entropy()
        size = posterior._size
        monkeypatch.setattr(posterior, "_size", lambda *a, **o: replace(size(*a, **o), b=1, n=1))
        torch.testing.assert_close(denoiser.posterior(z, 1.0).entropy(), wanted)

    def test_the_effective_number_of_entropy_is_no_less_than_kish_s(self):
        denoiser, _, z = question("dense", 0.7)
        found = denoiser.posterior(z, 0.7)
        assert (found.entropy().exp() > found.effective_number() - 1e-9).all()

    def test_images_left_out_count_nowhere(self):
        source = Source(images(20, SHAPE, 0))
        z = images(3, SHAPE, 1, torch.float64)
        without = methods.optimal(source.without([0, 7])).posterior(z, 2.0)
        kept = [i for i in range(20) if i not in (0, 7)]
        made = methods.optimal(Source(source.images[kept])).posterior(z, 2.0)
        torch.testing.assert_close(without.entropy(), made.entropy())
        torch.testing.assert_close(without.information(), made.information())

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_memory_stays_under_the_budget(self, structure):
        denoiser, _, z = question(structure, 0.8, n=3_000, b=4)
        small = FPMC(*denoiser.operators(0.8), denoiser.source, budget=4_000_000)
        found = small.posterior(z, 0.8)
        with PeakMemory() as memory:
            found.entropy()
        assert memory.peak < 4_000_000


class TestClosedForms:
    """Information that is known."""

    def test_of_far_apart_images_it_is_log_n_and_copied(self):
        source = Source(images(64, (1, 8, 8), 0))
        x = source[torch.arange(64)].double()
        z = diffusion.add_noise(x, 0.1, 1)
        found = memorisation.knowledge(methods.optimal(source), x, z, 0.1)
        nothing = torch.zeros(64, 1, dtype=torch.float64)
        torch.testing.assert_close(found.information, nothing + math.log(64))
        torch.testing.assert_close(found.effective, nothing + 1)
        torch.testing.assert_close(found.density, nothing + math.log(64))
        assert memorisation.distance(methods.optimal(source), z, 0.1).max() < 1e-7

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_in_much_noise_it_is_none(self, structure):
        denoiser, x, z = question(structure, 1e6)
        found = memorisation.knowledge(denoiser, x, z, 1e6)
        assert found.information.max() < 1e-9
        torch.testing.assert_close(found.effective, torch.full_like(found.effective, 40))
        assert found.density.abs().max() < 1e-4

    def test_of_two_images_it_is_that_of_two_signals_in_noise(self):
        """log 2 − E log(1 + exp(−2 a (a + ε))), with half the distance a = |x₁ − x₂| / 2σ."""
        first, second = images(2, (1, 3, 3), 0, torch.float64)
        source, sigma = Source(torch.stack([first, second])), 1.3
        a = (first - second).norm() / (2 * sigma)
        nodes, shares = np.polynomial.hermite_e.hermegauss(80)
        open_ = np.logaddexp(0, -2 * a.item() * (a.item() + nodes)) @ shares
        wanted = math.log(2) - open_ / math.sqrt(2 * math.pi)
        x = torch.stack([first, second]).repeat(10_000, 1, 1, 1)
        z = diffusion.add_noise(x, sigma, 1)
        found = memorisation.knowledge(methods.optimal(source), x, z, sigma)
        assert 0.2 < wanted < 0.6
        for values in (found.information, found.density):
            error = values.std() / math.sqrt(len(values))
            assert abs(values.mean() - wanted) < 4 * error
            assert error < 0.005

    @pytest.mark.parametrize("sigma", [0.1, 0.3])
    def test_a_gaussian_channel_lies_between_both_bounds(self, sigma):
        sigma_x, n = covariance(6, 0), 30_000
        gaussian = Gaussian(torch.zeros(1, 1, 6).double(), sigma_x)
        seen = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]]).double().view(2, 1, 6)
        queries = Dense(seen)
        known = memorisation.gaussian_information(gaussian, queries, sigma)
        draws = gaussian_images(n + 400, sigma_x, 1)
        collection = FPMC(queries, Dense(torch.ones(2, 1, 6)), Source(draws[:n]))
        bounds = []
        for x in (draws[:400], draws[n:]):
            z = diffusion.add_noise(x, sigma, 2)
            found = memorisation.knowledge(collection, x, z, sigma)
            assert found.information.shape == (400, 2)
            bounds.append(found.density)
        for below, above, wanted in zip(*(b.T for b in bounds), known, strict=True):
            error = below.std() / math.sqrt(400)
            assert below.mean() - 3 * error < wanted < above.mean() + 3 * error
            assert above.mean() - below.mean() < 0.1 + 3 * error
        assert (known > 3 * error).all()


class TestGaussian:
    """gaussian_information."""

    def test_along_pixels_it_is_the_sum_of_capacities(self):
        variances = torch.linspace(0.1, 0.6, 6).double()
        gaussian = Gaussian(torch.zeros(1, 2, 3).double(), variances.diag())
        each = 0.5 * torch.log1p(variances / 0.25)
        found = memorisation.gaussian_information(gaussian, Identity((2, 3)), 0.5)
        torch.testing.assert_close(found, each)
        found = memorisation.gaussian_information(gaussian, Ones((2, 3)), 0.5)
        torch.testing.assert_close(found, each.sum(0, keepdim=True))

    @pytest.mark.parametrize("n", [10, 400])
    def test_of_a_source_it_is_the_determinant(self, n):
        source = Source(images(n, SHAPE, 0))
        gaussian, queries = methods.wiener(source), Dense(matrix(3, (4, 5), 1))
        found = memorisation.gaussian_information(gaussian, queries, 0.4)
        sigma_x = gaussian.spectral(lambda values: values)
        for row, value in zip(queries.dense(), found, strict=True):
            root = row.expand(SHAPE).flatten().sqrt()
            inner = root[:, None] * sigma_x * root / 0.16
            torch.testing.assert_close(value, torch.eye(40).double().add(inner).logdet() / 2)

    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("sigma", [0.2, 1.0])
    def test_it_is_above_what_is_known_of_a_source_s_numbers(self, structure, sigma):
        """For queries of zeros and ones: of others it is what they believe to know."""
        denoiser, _, _ = question(structure, sigma)
        queries = Dense((denoiser.operators(sigma)[0].dense() > 0).double())
        denoiser = FPMC(queries, queries, denoiser.source)
        x = denoiser.source[torch.arange(40)].double().repeat(8, 1, 1, 1)
        z = diffusion.add_noise(x, sigma, 3)
        found = memorisation.knowledge(denoiser, x, z, sigma).information
        bound = memorisation.gaussian_information(methods.wiener(denoiser.source), queries, sigma)
        error = found.std(0) / math.sqrt(len(found))
        assert (found <= math.log(40) + 1e-9).all()
        assert (found.mean(0) < bound + 3 * error + 1e-9).all()


class TestKnowledge:
    """knowledge, distance, own_weight."""

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_of_source_images_the_density_is_their_weight(self, structure):
        denoiser, x, z = question(structure, 0.9, weights=True)
        found = memorisation.knowledge(denoiser, x, z, 0.9)
        weights = denoiser.posterior(z, 0.9).weights()
        own = weights[torch.arange(5), :, torch.arange(5)]
        prior = denoiser.source.log_weights[:5, None].double()
        torch.testing.assert_close(found.density, own.log() - prior)
        for asked, name in ((found.information, "information"), (found.effective.log(), "entropy")):
            torch.testing.assert_close(asked, getattr(denoiser.posterior(z, 0.9), name)())

    def test_on_average_both_estimates_are_one(self):
        denoiser, _, _ = question("LS", 0.7)
        x = denoiser.source[torch.arange(40)].double().repeat(50, 1, 1, 1)
        found = memorisation.knowledge(denoiser, x, diffusion.add_noise(x, 0.7, 3), 0.7)
        apart = (found.information - found.density).mean(1)
        assert abs(apart.mean()) < 4 * apart.std() / math.sqrt(len(apart))
        assert found.information.mean() > 0.3

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_units_do_not_matter(self, structure):
        denoiser, x, z = question(structure, 0.9)
        half = Source(denoiser.source.read(slice(None), torch.float64) / 2)
        smaller = FPMC(*denoiser.operators(0.9), half)
        for a, b in zip(
            memorisation.knowledge(denoiser, x, z, 0.9),
            memorisation.knowledge(smaller, x / 2, z / 2, 0.45),
            strict=True,
        ):
            torch.testing.assert_close(a, b)

    def test_what_is_not_seen_does_not_matter(self):
        denoiser, x, z = question("dense", 0.9)
        before = memorisation.knowledge(denoiser, x, z, 0.9)
        unseen = (denoiser.operators(0.9)[0].dense()[2] == 0).expand(SHAPE)
        assert unseen.any()
        moved = torch.where(unseen, z + 0.7, z)
        after = memorisation.knowledge(denoiser, x, moved, 0.9)
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a[:, 2], b[:, 2])

    def test_an_orthonormal_map_keeps_what_whole_images_know(self):
        denoiser, x, z = question("optimal", 0.9)
        keyed = FPMC(*denoiser.operators(0.9), denoiser.source, features=fpmc.features.dct(SHAPE))
        for a, b in zip(
            memorisation.knowledge(denoiser, x, z, 0.9),
            memorisation.knowledge(keyed, x, z, 0.9),
            strict=True,
        ):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_some_estimators_are_as_among_all(self, structure):
        denoiser, x, z = question(structure, 0.9)
        k = denoiser.operators(0.9)[0].k
        rows = sorted({0, k // 2, k - 1})
        every = memorisation.knowledge(denoiser, x, z, 0.9)
        some = memorisation.knowledge(denoiser, x, z, 0.9, estimators=rows)
        for a, b in zip(every, some, strict=True):
            torch.testing.assert_close(a[:, rows], b)
        every = memorisation.distance(denoiser, z, 0.9)
        some = memorisation.distance(denoiser, z, 0.9, estimators=rows)
        torch.testing.assert_close(every[:, rows], some)

    def test_the_weight_by_theory(self):
        i = torch.linspace(-3, 12, 7).double()
        for n in (1, 2, 500):
            wanted = 1 / (1 + (n - 1) * torch.exp(-i))
            torch.testing.assert_close(memorisation.own_weight(i, n), wanted)

    def test_the_weight_by_theory_is_that_in_a_source(self):
        """i by a closed form, the weight by a source of Gaussian images: larger on average, by
        less the more others there are."""
        sigma_x, n, sigma = covariance(5, 1), 3_000, 0.05
        gaussian = Gaussian(torch.zeros(1, 1, 5).double(), sigma_x)
        draws = gaussian_images(n, sigma_x, 2)
        x, z = draws[:300], diffusion.add_noise(draws[:300], sigma, 4)
        noisy = torch.distributions.MultivariateNormal(
            torch.zeros(5).double(), sigma_x + sigma**2 * torch.eye(5)
        )
        noise = torch.distributions.Normal(x, sigma).log_prob(z).flatten(1).sum(1)
        i = noise - noisy.log_prob(z.flatten(1))
        known = memorisation.gaussian_information(gaussian, Ones((1, 5)), sigma)
        assert abs(i.mean() - known) < 4 * i.std() / math.sqrt(300)
        gaps = []
        for size in (300, 3_000):
            part = methods.optimal(Source(draws[:size]))
            found = memorisation.knowledge(part, x, z, sigma)
            own = (found.density[:, 0] - math.log(size)).exp()
            theory = memorisation.own_weight(i, size)
            gap = own - theory
            assert gap.mean() > -3 * gap.std() / math.sqrt(300), "Jensen's inequality"
            assert ((own > 0.5) == (theory > 0.5)).double().mean() > 0.85
            gaps.append(gap.mean())
        assert gaps[0] > 3 * gaps[1]
        assert gaps[1] < 0.02


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "collection: got", {"collection": 3}),
        (ValueError, "x: got 4 images, wanted 5", {"x": images(4, SHAPE, 0)}),
        (ValueError, r"x: got shape \(5, 1, 4, 5\)", {"x": images(5, (1, 4, 5), 0)}),
        (TypeError, "z: got", {"z": None}),
        (ValueError, "sigma: got", {"sigma": 0.0}),
        (ValueError, "estimators: got none", {"estimators": []}),
        (ValueError, "estimators: got 5", {"estimators": [5]}),
        (TypeError, "estimators: got", {"estimators": [0.5]}),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_what_is_wrong_is_named(error, match, change):
    denoiser, x, z = question("dense", 0.9)
    given = {"collection": denoiser, "x": x, "z": z, "sigma": 0.9} | change
    with pytest.raises(error, match=match):
        memorisation.knowledge(**given)


@pytest.mark.usefixtures("as_users_do")
def test_what_is_wrong_with_a_closed_form_is_named():
    gaussian = methods.wiener(Source(images(5, SHAPE, 0)))
    ask = memorisation.gaussian_information
    with pytest.raises(TypeError, match="gaussian: got int"):
        ask(3, Ones((4, 5)), 1.0)
    with pytest.raises(TypeError, match="queries: got int"):
        ask(gaussian, 3, 1.0)
    with pytest.raises(ValueError, match="queries: got"):
        ask(gaussian, Box((5, 4), 2), 1.0)
    with pytest.raises(TypeError, match="density: got"):
        memorisation.own_weight(3.0, 2)
    with pytest.raises(ValueError, match="n: got 0"):
        memorisation.own_weight(torch.ones(2), 0)
    keyed = FPMC(
        Ones((4, 5)), Ones((4, 5)), Source(images(5, SHAPE, 0)), features=fpmc.features.dct(SHAPE)
    )
    with pytest.raises(ValueError, match="collection: got one that compares in features"):
        memorisation.distance(keyed, images(2, SHAPE, 0), 1.0)
