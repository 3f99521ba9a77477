"""PSPC-Flex against crops of its own masks, and how masks follow from sensitivity maps."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion
from fpmc.methods import pspc_flex
from tests.helpers import images, relative

SHAPE = (3, 8, 9)


def random_maps(h, w, seed):
    """Maps that fall off around their pixel, unevenly, and peak there."""
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    near = torch.exp(-torch.cdist(places, places).square() / 6)
    maps = near * (images(h * w, (h * w,), seed, torch.float64) + 1.01)
    maps += 2 * torch.eye(h * w)
    return (maps / maps.sum(1, keepdim=True)).view(-1, h, w)


def composite_of_flexible_patches(z, sigma, x, maps, tau):
    """The paper's procedure: take pixels in falling order, crop, average, put back, divide."""
    h, w = z.shape[-2:]
    total, cover = torch.zeros_like(z), torch.zeros(h, w, dtype=z.dtype)
    for sensitivity in maps:
        order = sorted(itertools.product(range(h), range(w)), key=lambda ij: -sensitivity[ij])
        taken, reached = [], 0.0
        while reached < tau:
            taken.append(order[len(taken)])
            reached += sensitivity[taken[-1]].item()
        rows, columns = zip(*taken, strict=True)
        patches = x[:, :, rows, columns]
        for b in range(len(z)):
            distance = ((z[b][:, rows, columns] - patches) ** 2).sum((1, 2))
            weights = torch.softmax(-distance / (2 * sigma**2), 0)
            total[b][:, rows, columns] += torch.einsum("n,ncp->cp", weights, patches)
        cover[rows, columns] += 1
    return total / cover


def masks_of(maps, tau):
    """The masks at a threshold, (k, h, w)."""
    source = Source(torch.zeros(1, 1, *maps.shape[1:]))
    return pspc_flex(source, maps, tau).operators(1.0)[0].dense()


@pytest.mark.parametrize("tau", [0.2, 0.55, 0.9, 0.999])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 40.0])
def test_it_is_the_composite_of_flexible_patches(tau, sigma):
    x, maps = images(12, SHAPE, 0, torch.float64), random_maps(8, 9, 1)
    z = diffusion.add_noise(x[:2], sigma, 2)
    expected = composite_of_flexible_patches(z, sigma, x, maps, tau)
    assert relative(pspc_flex(Source(x), maps, tau)(z, sigma), expected) < 1e-10


def test_a_delta_like_map_is_pspc_square_with_single_pixels():
    source = Source(images(30, SHAPE, 0))
    z = images(2, SHAPE, 1)
    delta = torch.eye(72).view(-1, 8, 9)
    for maps in (delta, 0.999 * delta + 0.001 / 72):
        ours = pspc_flex(source, maps, 0.9)(z, 0.4)
        assert relative(ours, fpmc.methods.pspc_square(source, 1)(z, 0.4)) < 1e-6


def test_a_threshold_of_one_is_the_optimal_denoiser_by_one_estimator():
    source = Source(images(30, SHAPE, 0))
    z = images(2, SHAPE, 1)
    flex = pspc_flex(source, torch.eye(72).view(-1, 8, 9), 1)
    assert torch.equal(flex(z, 0.4), fpmc.methods.optimal(source)(z, 0.4))
    assert [op.k for op in flex.operators(0.4)] == [1, 1]


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any), st.integers(1, 99))
def test_the_mask_is_the_smallest_set_that_reaches_the_threshold(values, percent):
    sensitivity = torch.tensor(values, dtype=torch.float64)
    maps = (sensitivity / sensitivity.sum()).expand(6, 6).reshape(6, 2, 3)
    mask = masks_of(maps, percent / 100)[0].flatten().bool()
    wanted = percent * sum(values)
    sums = [
        100 * sum(values[i] for i in subset)
        for subset in itertools.combinations(range(6), int(mask.sum()) - 1)
    ]
    assert 100 * sensitivity[mask].sum() >= wanted
    assert max(sums) < wanted


def test_of_equal_pixels_the_first_are_taken():
    maps = torch.full((6, 2, 3), 1 / 6)
    assert masks_of(maps, 0.5)[4].flatten().tolist() == [1, 1, 1, 0, 0, 0]
    ties = torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1, 0.1]).expand(6, 6).reshape(6, 2, 3)
    assert masks_of(ties, 0.75)[0].flatten().tolist() == [1, 1, 1, 1, 0, 0]
    assert masks_of(ties, 0.6)[0].flatten().tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_adds_no_pixel(count, dtype):
    """Ten equal pixels with a sum of ten times 0.1."""
    maps = torch.full((10, 2, 5), 0.1, dtype=dtype)
    assert (masks_of(maps, count / 10).sum((1, 2)) == count).all()


def test_a_pixel_that_no_mask_holds_answers_for_itself():
    x = images(20, (2, 2, 3), 0, torch.float64)
    z = images(2, (2, 2, 3), 1, torch.float64)
    maps = torch.zeros(6, 2, 3)
    maps[:, 0, 0] = 1
    queries, responses = pspc_flex(Source(x), maps, 0.5).operators(0.3)
    assert torch.equal(queries.dense(), maps.double())
    assert (responses.dense().sum(0).flatten() == torch.tensor([6, 1, 1, 1, 1, 1])).all()
    answer = pspc_flex(Source(x), maps, 0.5)(z, 0.3)
    weights = torch.softmax(-((z[:, None] - x)[..., 0, 0] ** 2).sum(-1) / 0.18, 1)
    torch.testing.assert_close(answer, torch.einsum("bn,nchw->bchw", weights, x))


def test_maps_and_thresholds_follow_the_noise_level():
    source = Source(images(20, SHAPE, 0))
    z = images(2, SHAPE, 1)
    low, high = random_maps(8, 9, 0), random_maps(8, 9, 1)
    denoiser = pspc_flex(source, {0.1: low, 10.0: high}, {0.1: 0.4, 10.0: 0.8})
    for sigma, maps, tau in ((0.05, low, 0.4), (20.0, high, 0.8), (0.2, low, 0.4)):
        assert torch.equal(denoiser(z, sigma), pspc_flex(source, maps, tau)(z, sigma))
    published = pspc_flex(source, low, "cifar10")
    assert torch.equal(published(z, 5.32), pspc_flex(source, low, 0.7)(z, 5.32))
    assert published.operators(80.0)[0].k == 1


def test_float32_answers_keep_the_contract(photos):
    source = Source(photos.train[:200])
    denoiser = pspc_flex(source, random_maps(16, 16, 0), 0.7)
    for sigma in (0.02, 0.3, 5.0, 80.0):
        z = diffusion.add_noise(source[:2], sigma, 0)
        assert relative(denoiser(z, sigma), denoiser(z.double(), sigma)) < 1e-6


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("maps", "tau", "error", "says"),
    [
        (torch.eye(6).view(6, 2, 3), 0, ValueError, "thresholds: got 0, wanted a number above 0"),
        (torch.eye(6).view(6, 2, 3), 1.5, ValueError, "thresholds: got 1.5"),
        (torch.eye(6).view(6, 2, 3), {1.0: -1}, ValueError, "thresholds: got -1"),
        (torch.eye(6).view(6, 2, 3), "faces", ValueError, "thresholds: got 'faces'"),
        (torch.eye(6), 0.5, ValueError, "sensitivity: got shape (6, 6), wanted (6, 2, 3)"),
        (torch.zeros(6, 2, 3), 0.5, ValueError, "sensitivity: got maps with sums from 0 to 0"),
        (torch.ones(6, 2, 3), 0.5, ValueError, "sensitivity: got maps with sums from 6 to 6"),
        (-torch.eye(6).view(6, 2, 3), 0.5, ValueError, "sensitivity: got negative"),
        (torch.full((6, 2, 3), torch.nan), 0.5, ValueError, "sensitivity: got negative or non-"),
        (torch.ones(6, 2, 3, dtype=torch.long), 0.5, TypeError, "sensitivity: got torch.int64"),
        ([[1.0]], 0.5, TypeError, "sensitivity: got list"),
        ({}, 0.5, ValueError, "sensitivity: got an empty mapping"),
        ({-1.0: torch.eye(6).view(6, 2, 3)}, 0.5, ValueError, "sensitivity, a key: got -1"),
    ],
)
def test_bad_maps_and_thresholds_are_named(maps, tau, error, says):
    with pytest.raises(error) as caught:
        pspc_flex(Source(torch.zeros(2, 1, 2, 3)), maps, tau)
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_a_tensor_is_not_a_source():
    with pytest.raises(TypeError, match=r"source: got Tensor, wanted an fpmc\.Source"):
        pspc_flex(torch.zeros(2, 1, 2, 3), torch.eye(6).view(6, 2, 3), 0.5)
