"""The Wiener filter and the Gaussian sampler against formulas for jointly Gaussian variables."""

import pytest
import torch

import fpmc
from fpmc import Source, diffusion
from fpmc.gaussian import Gaussian
from fpmc.moments import moments, principal_axes
from fpmc.source import to_float
from tests.helpers import PeakMemory, images, relative

SHAPE = (3, 4, 5)
D = 60


def spread(n, shape, seed):
    """Correlated images in [-1, 1], float64."""
    x = images(n, shape, seed, torch.float64)
    return (x + x.roll(1, -1) + x.mean((1, 2, 3), keepdim=True)) / 3


def test_a_function_of_the_covariance_may_be_its_inverse():
    gaussian = Gaussian.of_source(Source(spread(200, SHAPE, 0)))
    inverse = gaussian.spectral(torch.reciprocal)
    torch.testing.assert_close(inverse @ gaussian.spectral(lambda v: v), torch.eye(D).double())


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 91.0)])
def test_moments_are_numpys(weights):
    x = spread(90, SHAPE, 0)
    mean, covariance = moments(Source(x, weights))
    flat = x.flatten(1)
    torch.testing.assert_close(covariance, torch.cov(flat.T, correction=0, aweights=weights))
    share = torch.ones(90) if weights is None else weights
    torch.testing.assert_close(mean, (share.double() @ flat) / share.sum())


def test_moments_read_pixel_values_and_stay_within_their_budget():
    pixels = torch.randint(0, 256, (3000, *SHAPE), dtype=torch.uint8, generator=_seeded(0))
    whole = moments(Source(to_float(pixels, torch.float64)))
    least = D * (D + 2) * 8 + (4 * D + 2) * 8
    for budget in (least, 3 * least):
        with PeakMemory() as memory:
            parts = moments(Source(pixels), budget)
        assert memory.peak <= budget
        for ours, exact in zip(parts, whole, strict=True):
            torch.testing.assert_close(ours, exact)
    with pytest.raises(ValueError, match=f"budget: got {least - 1:,} bytes, wanted at least"):
        moments(Source(pixels), least - 1)


def sides(source):
    """The Wiener filter by the source's covariance, and by its Gram matrix."""
    mean, covariance = moments(source)
    by_gram = Gaussian(mean.view(SHAPE), covariance)
    _, by_gram.eigenvalues, by_gram.eigenvectors = principal_axes(source)
    return Gaussian(mean.view(SHAPE), covariance), by_gram


@pytest.mark.parametrize("n", [1, 2, 20, D - 1, D, D + 1, 150])
@pytest.mark.parametrize("weighted", [False, True])
def test_covariance_and_gram_matrix_give_the_same_filter(n, weighted):
    source = Source(spread(n, SHAPE, 0), torch.arange(1.0, n + 1) if weighted else None)
    z = 3 * images(5, SHAPE, 1, torch.float64)
    one, other = sides(source)
    for sigma in (0.02, 0.3, 2.0, 80.0):
        assert (one.matrix(sigma) - other.matrix(sigma)).abs().max() < 1e-10
        assert (one(z, sigma) - other(z, sigma)).abs().max() < 1e-10
        drawn = [gaussian.sample(80 * z, 80.0, sigma) for gaussian in (one, other)]
        assert relative(*drawn) < 1e-10
    assert (one.variance - other.variance).abs().max() < 1e-12
    ours = fpmc.methods.wiener(source)
    assert torch.equal(ours.eigenvalues, (other if n < D else one).eigenvalues)
    assert torch.equal(ours.mean, one.mean)


def test_the_axes_are_orthonormal_and_as_many_as_the_rank():
    x = spread(40, SHAPE, 0)
    x = torch.cat([x, x[:5]])  # the rank is that of 40 images, less one for the mean
    x[:, 1, 2, 3] = 0.25
    mean, variances, axes = principal_axes(Source(x))
    assert axes.shape == (D, 39)
    torch.testing.assert_close(axes.T @ axes, torch.eye(39, dtype=torch.float64))
    assert (variances.diff() > 0).all()
    covariance = torch.cov(x.flatten(1).T, correction=0)
    torch.testing.assert_close(axes * variances @ axes.T, covariance, rtol=0, atol=1e-15)
    torch.testing.assert_close(mean, x.flatten(1).mean(0))


def test_images_without_weight_are_as_if_they_were_not_there():
    x = spread(40, SHAPE, 0)
    kept = fpmc.methods.wiener(Source(x).without([3, 17]))
    alone = fpmc.methods.wiener(Source(torch.cat([x[:3], x[4:17], x[18:]])))
    assert len(kept.eigenvalues) == len(alone.eigenvalues) == 37
    torch.testing.assert_close(kept.matrix(0.3), alone.matrix(0.3), rtol=0, atol=1e-12)


def test_what_never_varies_is_the_mean():
    x = images(1, SHAPE, 0, torch.float64)
    constant = fpmc.methods.wiener(Source(x.expand(7, *SHAPE)))
    z = images(3, SHAPE, 1, torch.float64)
    for answer in (constant(z, 0.1), constant.sample(z, 80.0)):
        torch.testing.assert_close(answer, x.expand(3, *SHAPE))
    torch.testing.assert_close(constant.sample(z, 80.0, 8.0), x + (z - x) / 10)


def test_the_gram_matrix_stays_within_its_budget(monkeypatch):
    shape, n = (3, 16, 16), 60
    d = 3 * 16 * 16
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=_seeded(0))
    whole = principal_axes(Source(pixels))
    eigh, peaks = torch.linalg.eigh, []

    def recorded(gram):
        peaks.append(memory.peak)
        return eigh(gram)

    monkeypatch.setattr(torch.linalg, "eigh", recorded)
    least = (n * n + d) * 8 + (7 * d + n + 2) * 8
    for budget in (least, 5 * least):
        with PeakMemory() as memory:
            parts = principal_axes(Source(pixels), budget)
        assert least / 2 < peaks.pop() <= budget
        assert memory.peak <= budget + (d * n + 3 * n * n) * 8
        for ours, exact in zip(parts[:2], whole[:2], strict=True):
            torch.testing.assert_close(ours, exact)
        filters = [axes * (v / (v + 0.01)) @ axes.T for _, v, axes in (parts, whole)]
        assert (filters[0] - filters[1]).abs().max() < 1e-12
    with pytest.raises(ValueError, match=f"budget: got {least - 1:,} bytes, wanted at least"):
        principal_axes(Source(pixels), least - 1)


def test_rows_of_the_filter_are_its_rows():
    for n in (20, 100):
        denoiser = fpmc.methods.wiener(Source(spread(n, SHAPE, 0)))
        for rows in (slice(0, 7), slice(50, 70)):
            expected = denoiser.matrix(0.3)[rows]
            torch.testing.assert_close(denoiser.matrix(0.3, rows), expected)


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.3, 2.0, 80.0])
def test_the_filter_conditions_the_joint_gaussian_of_image_and_observation(sigma):
    x = spread(200, SHAPE, 0)
    z = diffusion.add_noise(x[:3], sigma, 1)
    flat = x.flatten(1)
    covariance = torch.cov(flat.T, correction=0)
    observed = covariance + sigma**2 * torch.eye(D, dtype=torch.float64)
    centred = (z - x.mean(0)).flatten(1)
    expected = flat.mean(0) + torch.linalg.solve(observed, centred.T).T @ covariance
    denoiser = fpmc.methods.wiener(Source(x))
    assert relative(denoiser(z, sigma), expected) < 1e-8
    gain = torch.linalg.solve(observed, covariance)
    torch.testing.assert_close(denoiser.matrix(sigma), gain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(denoiser.variance.flatten(), covariance.diagonal())


def test_the_optimal_denoiser_of_gaussian_data_is_the_wiener_filter():
    factor = torch.tensor([[0.15, 0.0], [0.12, 0.05]], dtype=torch.float64)
    x = torch.randn(100_000, 2, generator=_seeded(0), dtype=torch.float64) @ factor.T
    source = Source(x.clamp(-1, 1).view(-1, 1, 1, 2))
    z = diffusion.add_noise(source.read(slice(50)).double(), 0.1, 1)
    assert (
        relative(fpmc.methods.optimal(source)(z, 0.1), fpmc.methods.wiener(source)(z, 0.1)) < 0.01
    )


def test_the_answer_is_the_posterior_mean_of_a_conjugate_gaussian():
    """Independent dimensions: precisions add, means are averaged with them."""
    variance = torch.linspace(0.01, 4, D, dtype=torch.float64)
    mean = images(1, SHAPE, 0, torch.float64)[0]
    z = images(4, SHAPE, 1, torch.float64)
    sigma = 0.7
    precision = (1 / variance).view(SHAPE)
    expected = (mean * precision + z / sigma**2) / (precision + 1 / sigma**2)
    torch.testing.assert_close(Gaussian(mean, variance.diag())(z, sigma), expected)


def test_the_closed_form_is_where_many_small_steps_lead():
    denoiser = fpmc.methods.wiener(Source(spread(100, SHAPE, 0)))
    z = diffusion.initial_noise(4, SHAPE, 0).double()
    exact = denoiser.sample(z, 80.0)
    errors = [
        relative(diffusion.sample(denoiser, z, diffusion.edm_sigmas(n, 1e-5)), exact)
        for n in (40, 160, 640)
    ]
    assert errors[2] < 1e-4
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_the_closed_form_may_stop_on_the_way():
    denoiser = fpmc.methods.wiener(Source(spread(100, SHAPE, 0)))
    z = diffusion.initial_noise(4, SHAPE, 0).double()
    halfway = denoiser.sample(z, 80.0, 0.3)
    torch.testing.assert_close(denoiser.sample(halfway, 0.3), denoiser.sample(z, 80.0))
    torch.testing.assert_close(denoiser.sample(z, 80.0, 80.0), z)
    slope = (denoiser.sample(z, 80.0, 0.3001) - denoiser.sample(z, 80.0, 0.2999)) / 0.0002
    torch.testing.assert_close(
        slope, (halfway - denoiser(halfway, 0.3)) / 0.3, rtol=1e-5, atol=1e-6
    )


def test_samples_have_the_sources_moments():
    source = Source(spread(100, SHAPE, 0))
    denoiser = fpmc.methods.wiener(source)
    z = 1000 * torch.randn(40_000, *SHAPE, generator=_seeded(0), dtype=torch.float64)
    samples = denoiser.sample(z, 1000.0).flatten(1)
    _, covariance = moments(source)
    assert relative(torch.cov(samples.T), covariance) < 0.03


def test_float32_answers_keep_the_contract(photos):
    source = Source(photos.train[:500])
    denoiser = fpmc.methods.wiener(source)
    for sigma in (0.02, 0.5, 80.0):
        z = diffusion.add_noise(source[:4], sigma, 0)
        answer = denoiser(z, sigma)
        assert answer.dtype == torch.float32
        assert relative(answer, denoiser(z.double(), sigma)) < 1e-6


def test_the_filter_is_differentiable():
    denoiser = fpmc.methods.wiener(Source(spread(100, SHAPE, 0)))
    z = images(1, SHAPE, 1, torch.float64).requires_grad_()
    row = torch.autograd.grad(denoiser(z, 0.4)[0, 1, 2, 3], z)[0]
    torch.testing.assert_close(row.flatten(), denoiser.matrix(0.4)[1 * 20 + 2 * 5 + 3])


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: fpmc.methods.wiener(torch.zeros(2, 1, 1, 2)), TypeError, "source: got Tensor"),
        (lambda: Gaussian([0.0], torch.eye(1)), TypeError, "mean: got list"),
        (lambda: Gaussian(torch.zeros(2), torch.eye(2)), ValueError, "mean: got shape (2,)"),
        (
            lambda: Gaussian(torch.zeros(1, 1, 2), torch.eye(3)),
            ValueError,
            "covariance: got shape (3, 3), wanted (2, 2)",
        ),
        (
            lambda: Gaussian(torch.zeros(1, 1, 2), torch.full((2, 2), torch.nan)),
            ValueError,
            "covariance: got NaN",
        ),
        (
            lambda: Gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
            ValueError,
            "covariance: got a matrix that is not symmetric",
        ),
        (
            lambda: Gaussian(torch.zeros(1, 1, 2), torch.diag(torch.tensor([1.0, -0.5]))),
            ValueError,
            "covariance: got an eigenvalue of -0.5",
        ),
        (lambda: _unit()(torch.zeros(1, 1, 2, 1), 1.0), ValueError, "z: got shape (1, 1, 2, 1)"),
        (lambda: _unit()(torch.zeros(1, 1, 1, 2), 0), ValueError, "sigma: got 0"),
        (lambda: _unit().matrix(-1.0), ValueError, "sigma: got -1.0"),
        (lambda: _unit().matrix(1.0, 0), TypeError, "rows: got int, wanted a slice"),
        (
            lambda: _unit().sample(torch.zeros(1, 1, 1, 2), 1.0, 2.0),
            ValueError,
            "sigma: got 2.0, wanted at most sigma_max = 1.0",
        ),
        (lambda: _unit().sample(torch.zeros(1, 1, 1, 2), 0), ValueError, "sigma_max: got 0"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def _unit():
    return Gaussian(torch.zeros(1, 1, 2), torch.eye(2))


def _seeded(seed):
    return torch.Generator().manual_seed(seed)
