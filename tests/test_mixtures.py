"""Gaussians in place of points: both ends of the mixture, and what lies between."""

import pickle

import pytest
import torch
from torch.distributions import MultivariateNormal

import fpmc
from fpmc import methods, mixtures
from fpmc.mixtures import Mixture
from tests.helpers import PeakMemory, images, relative

SHAPE = (2, 5, 5)
X = images(30, SHAPE, 1, torch.float64)
SOURCE = fpmc.Source(X)
Z = images(3, SHAPE, 2, torch.float64) * 1.5


def covariance(d, seed, size=0.3):
    root = images(d, (1, 1, d), seed, torch.float64).flatten(1) * size
    return root @ root.T


def transcribed(patch, sigma, weights, means, covariances):
    """The posterior mean of one patch, by densities and solved equations."""
    noise = sigma**2 * torch.eye(len(patch), dtype=torch.float64)
    terms = list(zip(weights, means.flatten(1), covariances, strict=True))
    log = torch.stack([w.log() + MultivariateNormal(m, s + noise).log_prob(patch)
                       for w, m, s in terms])  # fmt: skip
    answers = [m + s @ torch.linalg.solve(s + noise, patch - m) for _, m, s in terms]
    return log.softmax(0) @ torch.stack(answers)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("p", [2, 5])
def test_an_answer_is_the_average_of_patches_posterior_means(p, sigma):
    d = 2 * p * p
    weights, means = torch.tensor([0.2, 0.5, 0.3]).double(), images(3, (2, p, p), 4, X.dtype)
    covariances = torch.stack([covariance(d, seed) for seed in (5, 6, 7)])
    total, counts = torch.zeros_like(Z), torch.zeros_like(Z)
    for z, to, count in zip(Z, total, counts, strict=True):
        for i in range(6 - p):
            for j in range(6 - p):
                place = (slice(None), slice(i, i + p), slice(j, j + p))
                patch = z[place].flatten()
                mean = transcribed(patch, sigma, weights, means, covariances)
                to[place] += mean.view(2, p, p)
                count[place] += 1
    answer = Mixture(SHAPE, weights, means, covariances)(Z, sigma)
    assert relative(answer, total / counts) < 1e-10


def test_points_are_the_optimal_denoiser():
    points = Mixture(SHAPE, torch.ones(30), X, torch.zeros(1, 50, 50))
    for sigma in (0.1, 1.0):
        assert relative(points(Z, sigma), methods.optimal(SOURCE)(Z, sigma)) < 1e-9


def test_one_component_is_the_wiener_filter():
    one = mixtures.fit(SOURCE, 5, 1, floor=1e-12)
    assert relative(one(Z, 0.5), methods.wiener(SOURCE)(Z, 0.5)) < 1e-8


def test_a_width_around_each_point_is_a_whitened_collection_and_a_linear_part():
    gaussian, sigma, share = methods.wiener(SOURCE), 0.6, 0.2
    u, values = gaussian.eigenvectors, gaussian.eigenvalues
    shared = share * (u * values) @ u.T
    wide = Mixture(SHAPE, torch.ones(30), X, shared[None])
    ones = fpmc.operators.Ones(SHAPE[1:])
    keyed = fpmc.FPMC(ones, ones, SOURCE, features=gaussian.whitening(share))(Z, sigma)
    gain = shared @ torch.linalg.inv(shared + sigma**2 * torch.eye(50, dtype=X.dtype))
    blend = keyed + ((Z - keyed).flatten(1) @ gain).view_as(Z)
    assert relative(wide(Z, sigma), blend) < 1e-9


def test_an_isotropic_width_is_a_change_of_sigma_and_a_blend():
    sigma, width = 0.4, 0.3
    wide = Mixture(SHAPE, torch.ones(30), X, width**2 * torch.eye(50, dtype=X.dtype)[None])
    points = methods.optimal(SOURCE)(Z, (sigma**2 + width**2) ** 0.5)
    gain = width**2 / (sigma**2 + width**2)
    assert relative(wide(Z, sigma), gain * Z + (1 - gain) * points) < 1e-9


def test_steps_of_the_fit_never_lower_the_likelihood():
    def likelihood(steps):
        mixture = mixtures.fit(SOURCE, 3, 4, steps=steps, seed=3, floor=1e-9)
        patches = mixtures.all_patches(X, 3).flatten(0, 1)
        return mixture.log_weights(patches, 0.0).logsumexp(1).mean()

    values = [likelihood(steps).item() for steps in range(5)]
    assert values == sorted(values)


def test_the_fit_depends_on_the_seed_alone_and_on_the_source_s_weights():
    one, again = (mixtures.fit(SOURCE, 3, 3, steps=2, seed=5)(Z, 0.5) for _ in range(2))
    assert torch.equal(one, again)
    one_hot = fpmc.Source(X).without(list(range(1, 30)))
    alone = mixtures.fit(one_hot, 5, 1, patches=50)
    torch.testing.assert_close(alone.means[0], X[0])


def test_of_each_image_that_is_drawn_one_patch_alone_is_copied():
    """All patches of these images would be 0.5 GB."""
    source = fpmc.Source(images(2_000, (3, 16, 16), 1))
    with PeakMemory() as memory:
        mixtures.fit(source, 8, 2, patches=4_000, steps=0)
    assert memory.peak < 1e8


class TestFewDirections:
    MIXTURE = mixtures.fit(SOURCE, 3, 4, steps=1)

    def test_all_of_them_change_nothing(self):
        assert self.MIXTURE.rank == 18
        assert torch.equal(self.MIXTURE.of_rank(18)(Z, 0.5), self.MIXTURE(Z, 0.5))

    @pytest.mark.parametrize("sigma", [0.1, 1.0])
    def test_they_answer_as_the_covariance_that_has_the_mean_variance_elsewhere(self, sigma):
        few, covariances = self.MIXTURE.of_rank(5).of_rank(4), []
        for values, u in zip(self.MIXTURE.eigenvalues, self.MIXTURE.eigenvectors, strict=True):
            changed = torch.cat([values[:-4].mean().expand(14), values[-4:]])
            covariances.append(u * changed @ u.T)
        full = Mixture(SHAPE, few.weights, few.means, torch.stack(covariances))
        assert few.rank == 4
        assert relative(few(Z, sigma), full(Z, sigma)) < 1e-10
        patches = mixtures.all_patches(Z, 3).flatten(0, 1)
        away = few.log_weights(patches, sigma) - full.log_weights(patches, sigma)
        assert away.abs().max() < 1e-8

    def test_what_is_read_is_near_what_was_kept(self, tmp_path):
        path, few = tmp_path / "mixture.safetensors", self.MIXTURE.of_rank(6)
        mixtures.write(path, few)
        read = mixtures.read(path)
        assert relative(read(Z, 0.5), few(Z, 0.5)) < 2e-3
        u = read.eigenvectors
        torch.testing.assert_close(u.mT @ u, torch.eye(6).double().expand(4, -1, -1))
        assert read.shape == SHAPE
        assert path.stat().st_size < 4 * (18 * 6 + 4 * (2 * 6 + 18 + 3)) + 1000
        mixtures.write(path, read)
        assert relative(mixtures.read(path)(Z, 0.5), read(Z, 0.5)) < 1e-3

    @pytest.mark.usefixtures("as_users_do")
    def test_what_is_no_mixture_is_refused(self, tmp_path):
        path = tmp_path / "mixture.safetensors"
        path.write_bytes(b"nothing")
        with pytest.raises(ValueError, match="no mixture can be read from it"):
            mixtures.read(path)
        with pytest.raises(FileNotFoundError):
            mixtures.read(tmp_path / "none.safetensors")
        with pytest.raises(IsADirectoryError, match=tmp_path.name):
            mixtures.read(tmp_path)
        with pytest.raises(TypeError, match="mixture: got int, wanted a Mixture"):
            mixtures.write(path, 3)
        with pytest.raises(FileNotFoundError) as told:
            mixtures.write(tmp_path / "none" / "a.safetensors", self.MIXTURE)
        assert told.value.filename == str(tmp_path / "none" / "a.safetensors"), "not what is beside"

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"rest": torch.zeros(3)}, "values: got shape"),
            ({"values": torch.zeros(4, 7)}, "values: got shape"),
            ({"values": -torch.ones(4, 6)}, "values: got negative"),
            ({"values": torch.full((4, 6), torch.nan)}, "values: got negative, NaN or"),
            ({"rest": torch.full((4,), torch.inf)}, "rest: got negative, NaN or infinite"),
            ({"rest": torch.full((4,), torch.nan)}, "rest: got negative, NaN or infinite"),
            ({"vectors": torch.full((4, 18, 6), torch.nan)}, "vectors: got NaN"),
            ({"weights": torch.zeros(4)}, "weights: got"),
        ],
    )
    @pytest.mark.usefixtures("as_users_do")
    def test_bad_directions_get_one_error(self, change, told):
        few = self.MIXTURE.of_rank(6)
        given = {
            "weights": few.weights,
            "means": few.means,
            "values": few.eigenvalues,
            "vectors": few.eigenvectors,
            "rest": few.rest,
        }
        with pytest.raises(ValueError, match=told):
            Mixture.of_directions(SHAPE, **(given | change))
        with pytest.raises(ValueError, match="r: got 7, wanted"):
            few.of_rank(7)


def test_gradients_and_pickles():
    mixture = mixtures.fit(SOURCE, 3, 2, steps=1)
    z = Z[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mixture(z, 0.7), (z,))
    assert torch.equal(pickle.loads(pickle.dumps(mixture))(Z, 0.5), mixture(Z, 0.5))
    assert mixture(Z.float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"means": torch.zeros(3, 2, 6, 6)}, "means: got"),
        ({"covariances": torch.zeros(3, 7, 7)}, "covariances: got shape"),
        ({"covariances": -torch.eye(18)[None]}, "covariances: got a matrix"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "weights: got"),
        ({"weights": torch.tensor([1.0, torch.nan, 1.0])}, "weights: got NaN"),
        ({"weights": [1.0, 1.0, 1.0]}, "weights: got list, wanted"),
        ({"means": torch.zeros(3, 18)}, "means: got shape"),
        ({"means": torch.zeros(0, 2, 3, 3)}, "means: got shape"),
        ({"means": torch.zeros(3, 2, 0, 0), "covariances": torch.zeros(1, 0, 0)}, "means: got"),
        ({"covariances": torch.eye(18)[None] + 0j}, "covariances: got torch.complex64, wanted"),
        ({"shape": 5}, "shape: got 5, wanted"),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_bad_components_get_one_error(change, told):
    given = {
        "shape": SHAPE,
        "weights": torch.ones(3),
        "means": torch.zeros(3, 2, 3, 3),
        "covariances": torch.eye(18)[None],
    }
    with pytest.raises((TypeError, ValueError), match=told):
        Mixture(**(given | change))


@pytest.mark.parametrize("wrong", [{"p": 6}, {"m": 0}, {"floor": 0.0}, {"patches": 1}])
def test_bad_arguments_of_a_fit_get_one_error(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}: got"):
        mixtures.fit(SOURCE, **({"p": 3, "m": 2} | wrong))


def test_a_generator_may_stand_in_the_seed_s_place():
    source = fpmc.Source(images(30, (1, 6, 6), 0))
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    first = mixtures.fit(source, 3, 2, patches=50, steps=2, generator=generators[0])
    again = mixtures.fit(source, 3, 2, patches=50, steps=2, seed=generators[1])
    assert torch.equal(first.means, again.means)
    with pytest.raises(ValueError, match="seed: got a generator, too, wanted one of the two"):
        mixtures.fit(source, 3, 2, seed=0, generator=generators[0])
