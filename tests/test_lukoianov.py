"""Lukoianov's denoiser against its definition by explicit matrices."""

from importlib import import_module

import pytest
import torch

import fpmc
from fpmc import Source, diffusion
from fpmc.gaussian import Gaussian
from fpmc.methods import lukoianov
from tests.helpers import PeakMemory, images, relative

SHAPE = (3, 8, 9)


def smooth(n, shape, seed):
    """Images whose neighbouring pixels agree, float64."""
    x = images(n, shape, seed, torch.float64)
    for axis in (-1, -2):
        x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
    return x


def by_definition(z, sigma, x, tau):
    """Equations (69) to (73): the filter from a matrix inverse, a loop over the dimensions."""
    flat, z_flat = x.flatten(1), z.flatten(1)
    d = flat.shape[1]
    covariance = torch.cov(flat.T, correction=0)
    filter_matrix = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(d).double())
    answer = torch.empty_like(z_flat)
    for i, row in enumerate(filter_matrix):
        seen = (row / row[i]).abs() >= tau
        for b, observed in enumerate(z_flat):
            distance = ((observed - flat)[:, seen] ** 2).sum(1)
            answer[b, i] = torch.softmax(-distance / (2 * sigma**2), 0) @ flat[:, i]
    return answer.view_as(z)


@pytest.mark.parametrize("tau", [0.02, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 40.0])
def test_it_is_its_definition(tau, sigma):
    x = smooth(300, SHAPE, 0)
    z = diffusion.add_noise(x[:2], sigma, 1)
    assert relative(lukoianov(Source(x), tau)(z, sigma), by_definition(z, sigma, x, tau)) < 1e-9


def test_a_threshold_of_zero_is_the_optimal_denoiser(photos):
    source = Source(photos.train[:200])
    for sigma in (0.02, 1.0, 20.0):
        z = diffusion.add_noise(source[:2], sigma, 0)
        optimal = fpmc.methods.optimal(source)(z, sigma)
        assert relative(lukoianov(source, 0)(z, sigma), optimal) < 1e-5


def test_masks_do_not_depend_on_the_eigenvectors_signs(photos):
    source = Source(photos.train[:300])
    one, other = Gaussian.of_source(source), Gaussian.of_source(source)
    signs = images(1, (1, 1, len(other.eigenvalues)), 0).sign().flatten()
    assert signs.min() == -1
    other.eigenvectors = other.eigenvectors * signs
    for sigma in (0.02, 1.0, 20.0):
        masks = [
            lukoianov(source, "cifar10", gaussian=gaussian).operators(sigma)[0].dense()
            for gaussian in (one, other)
        ]
        assert torch.equal(*masks)


@pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
def test_masks_are_made_a_few_rows_at_a_time(tau, monkeypatch):
    source = Source(smooth(100, SHAPE, 0))
    gaussian = Gaussian.of_source(source)
    d, r = gaussian.eigenvectors.shape
    assert r == 99
    whole = lukoianov(source, tau, gaussian=gaussian).operators(0.3)[0]
    assert whole.matrix.nbytes == 2 * d * d
    monkeypatch.setattr(import_module("fpmc.methods.lukoianov"), "ROWS", 10)
    denoiser = lukoianov(source, tau, gaussian=gaussian)
    with PeakMemory() as memory:
        parts = denoiser.operators(0.3)[0]
    assert torch.equal(parts.matrix, whole.matrix)
    rows = 10 * (3 * d + r) * 8
    assert memory.peak < whole.matrix.nbytes + rows + gaussian.eigenvectors.nbytes


def test_every_dimension_sees_itself_and_a_higher_threshold_sees_less(photos):
    source = Source(photos.train[:300])
    gaussian = Gaussian.of_source(source)
    seen = None
    for tau in (0.0, 0.02, 0.05, 0.3, 1.0):
        masks = lukoianov(source, tau, gaussian=gaussian).operators(1.0)[0].dense().flatten(1)
        assert (masks.diagonal() == 1).all()
        assert seen is None or ((masks <= seen).all() and masks.sum() < seen.sum())
        seen = masks


def test_a_dimension_that_never_varies_sees_itself_and_answers_its_constant():
    x = smooth(100, SHAPE, 0)
    x[:, 1, 2, 3], x[:, 0, 0, 0] = 0.3, -1.0
    denoiser = lukoianov(Source(x), 0.05)
    for sigma in (0.02, 1.0, 80.0):
        masks = denoiser.operators(sigma)[0].dense().flatten(1)
        for d in (72 + 2 * 9 + 3, 0):
            assert masks[d].nonzero().flatten().tolist() == [d]
        answer = denoiser(diffusion.add_noise(x[:3], sigma, 1), sigma)
        torch.testing.assert_close(answer[:, 1, 2, 3], x[:3, 1, 2, 3])
        torch.testing.assert_close(answer[:, 0, 0, 0], x[:3, 0, 0, 0])


def test_the_published_thresholds_are_used_by_name():
    source = Source(smooth(50, SHAPE, 0))
    z = images(2, SHAPE, 1)
    for name, tau in (("cifar10", 0.05), ("ffhq64", 0.02)):
        assert torch.equal(lukoianov(source, name)(z, 0.5), lukoianov(source, tau)(z, 0.5))
    levels = lukoianov(source, {0.1: 0.5, 10.0: 0.05})
    for sigma, tau in ((0.2, 0.5), (5.0, 0.05)):
        assert torch.equal(levels(z, sigma), lukoianov(source, tau)(z, sigma))


def test_float32_answers_keep_the_contract(photos):
    source = Source(photos.train[:300])
    denoiser = lukoianov(source, "cifar10")
    for sigma in (0.02, 0.3, 5.0, 80.0):
        z = diffusion.add_noise(source[:2], sigma, 0)
        assert relative(denoiser(z, sigma), denoiser(z.double(), sigma)) < 1e-6


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((-0.1,), ValueError, "thresholds: got -0.1, wanted a number from 0 to 1"),
        ((1.1,), ValueError, "thresholds: got 1.1"),
        ((float("nan"),), ValueError, "thresholds: got nan"),
        (({1.0: 2},), ValueError, "thresholds: got 2"),
        (({},), ValueError, "thresholds: got an empty mapping"),
        (([0.5],), TypeError, "thresholds: got list"),
        (("imagenet",), ValueError, "thresholds: got 'imagenet', wanted a number"),
    ],
)
def test_bad_thresholds_are_named(arguments, error, says):
    with pytest.raises(error) as caught:
        lukoianov(Source(torch.zeros(2, 1, 2, 2)), *arguments)
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_bad_sources_and_gaussians_are_named():
    with pytest.raises(TypeError, match="source: got Tensor"):
        lukoianov(torch.zeros(2, 1, 2, 2))
    other = Gaussian(torch.zeros(1, 2, 3), torch.eye(6))
    with pytest.raises(ValueError, match=r"gaussian: got Gaussian\(1 × 2 × 3\), wanted one of"):
        lukoianov(Source(torch.zeros(2, 1, 2, 2)), 0.1, gaussian=other)
