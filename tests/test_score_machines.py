"""LS, ELS and ES against explicit patch sets and translated images, and their symmetries."""

import functools
import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion
from fpmc.equivariant import Equivariant
from fpmc.methods import els, es, ls, optimal
from tests.helpers import PeakMemory, images, relative

SHAPE = (3, 8, 9)
SIDES = [1, 2, 3, 4, 5, 7, 8]
SIGMAS = [0.02, 0.3, 2.0, 40.0]


def square(i, j, p, h, w):
    """A mask of the pixels of the square centred at (i, j) that are in the image."""
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    near = [(-(p // 2) <= t) & (t <= (p + 1) // 2 - 1) for t in (rows - i, columns - j)]
    return near[0] & near[1]


def posterior_mean_at(z, sigma, candidates, i, j, mask, prior):
    """The mean of the candidates' pixel (i, j), by how well they fit z under the mask."""
    distance = (z[:, mask] - candidates[:, :, mask]).square().sum((1, 2))
    return torch.softmax(prior - distance / (2 * sigma**2), 0) @ candidates[:, :, i, j]


def shifted(x, down, right):
    """Images moved down and to the right, zeros where nothing came from."""
    h, w = x.shape[-2:]
    moved = torch.zeros_like(x)
    to = [slice(max(0, s), side + min(0, s)) for s, side in ((down, h), (right, w))]
    fro = [slice(max(0, -s), side + min(0, -s)) for s, side in ((down, h), (right, w))]
    moved[..., to[0], to[1]] = x[..., fro[0], fro[1]]
    return moved


def translations(i, side, p):
    """Along an axis: how far images may move so that their patches come to i.

    Any way if the square at i fits and the patch comes from inside; not at all otherwise.
    """
    before, after = p // 2, (p + 1) // 2 - 1
    if i - before < 0 or i + after > side - 1:
        return [0]
    return [t for t in range(-side, side + 1) if before <= i - t <= side - 1 - after]


def local_machine(z, sigma, x, p, equivariant, log_weights=None):
    """LS, or ELS with its translated data set written out for every pixel."""
    h, w = z.shape[-2:]
    prior = x.new_zeros(len(x)) if log_weights is None else log_weights
    answer, moved = torch.empty_like(z), functools.cache(lambda *move: shifted(x, *move))
    for b, i, j in itertools.product(range(len(z)), range(h), range(w)):
        moves = [(0, 0)]
        if equivariant:
            moves = list(itertools.product(translations(i, h, p), translations(j, w, p)))
        candidates = torch.cat([moved(*move) for move in moves])
        mask, priors = square(i, j, p, h, w), prior.repeat(len(moves))
        answer[b, :, i, j] = posterior_mean_at(z[b], sigma, candidates, i, j, mask, priors)
    return answer


def orbit(x):
    """All cyclic translations of images."""
    h, w = x.shape[-2:]
    return torch.cat([x.roll(move, (2, 3)) for move in itertools.product(range(h), range(w))])


@pytest.mark.parametrize("p", SIDES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_ls_is_the_posterior_mean_over_clipped_patches(p, sigma):
    x = images(12, SHAPE, 0, torch.float64)
    z = diffusion.add_noise(x[:2], sigma, 1)
    expected = local_machine(z, sigma, x, p, equivariant=False)
    assert relative(ls(Source(x), p)(z, sigma), expected) < 1e-10


@pytest.mark.parametrize("p", SIDES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_els_is_the_posterior_mean_over_the_translated_data_set(p, sigma):
    x = images(4, SHAPE, 0, torch.float64)
    z = diffusion.add_noise(x[:1], sigma, 1)
    expected = local_machine(z, sigma, x, p, equivariant=True)
    assert relative(els(Source(x), p)(z, sigma), expected) < 1e-10


@pytest.mark.parametrize("shape", [(3, 10, 12), (1, 12, 8)])
def test_els_is_that_on_images_of_other_sides(shape):
    x = images(3, shape, 0, torch.float64)
    z = diffusion.add_noise(x[:1], 0.5, 1)
    for p in (4, 5):
        expected = local_machine(z, 0.5, x, p, equivariant=True)
        assert relative(els(Source(x), p)(z, 0.5), expected) < 1e-10


@given(st.integers(1, 6), st.sampled_from([0.02, 0.5, 9.0]), st.integers(0, 99))
def test_doubling_an_images_weight_is_having_it_twice(p, sigma, seed):
    x = images(4, (2, 6, 7), seed, torch.float64)
    z = diffusion.add_noise(x[:2], sigma, seed)
    twice = Source(torch.cat([x, x[:1]]))
    weighted = Source(x, torch.tensor([2.0, 1, 1, 1]))
    for method in (lambda source: els(source, p), es):
        assert relative(method(weighted)(z, sigma), method(twice)(z, sigma)) < 1e-9


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_translating_z_translates_els_wherever_the_square_fits(p):
    source = Source(images(20, SHAPE, 0, torch.float64))
    z = diffusion.add_noise(source[:2].double(), 0.3, 1)
    down, right = 2, -1
    moved = z.roll((down, right), (2, 3))
    rows = slice(p // 2, 8 - (p + 1) // 2 + 1 - down)  # the squares fit before and after
    columns = slice(p // 2 - right, 9 - (p + 1) // 2 + 1)
    to = (slice(rows.start + down, rows.stop + down),)
    to += (slice(columns.start + right, columns.stop + right),)
    denoisers = {"els": els(source, p), "ls": ls(source, p)}
    before = {name: f(z, 0.3)[..., rows, columns] for name, f in denoisers.items()}
    after = {name: f(moved, 0.3)[..., to[0], to[1]] for name, f in denoisers.items()}
    assert before["els"].numel() > 0
    assert relative(after["els"], before["els"]) < 1e-10
    assert relative(after["ls"], before["ls"]) > 0.1


@pytest.mark.parametrize("p", SIDES)
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_ls_is_els_if_the_source_is_closed_under_cyclic_translations(p, sigma):
    """At every pixel, and for every p.

    A closed source has the same patches, as often, at every place of a boundary class: translating
    an image takes one place's to the other's, the clipped ones along their border.
    """
    x = images(2, SHAPE, 0, torch.float64)
    z = diffusion.add_noise(x[:1], sigma, 1)
    closed = Source(orbit(x))
    assert relative(els(closed, p)(z, sigma), ls(closed, p)(z, sigma)) < 1e-10
    if sigma == 2.0 and p <= 5:
        assert relative(els(Source(x), p)(z, sigma), ls(Source(x), p)(z, sigma)) > 0.01


def test_els_is_ls_in_the_corners_and_if_nothing_can_move():
    source = Source(images(20, SHAPE, 0, torch.float64))
    z = diffusion.add_noise(source[:2].double(), 0.3, 1)
    ours, local = els(source, 5)(z, 0.3), ls(source, 5)(z, 0.3)
    for rows, columns in itertools.product((slice(2), slice(-2, None)), repeat=2):
        assert torch.equal(ours[..., rows, columns], local[..., rows, columns])
    tall = Source(images(20, (1, 8, 8), 0))
    z = tall[:2].double()
    assert torch.equal(els(tall, 8)(z, 0.3), ls(tall, 8)(z, 0.3))


def test_els_with_single_pixels_treats_all_pixels_alike():
    source = Source(images(20, SHAPE, 0, torch.float64))
    z = images(2, SHAPE, 1, torch.float64)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    permuted = z.flatten(2)[..., order].view_as(z)
    answer = els(source, 1)(z, 0.3).flatten(2)[..., order].view_as(z)
    torch.testing.assert_close(els(source, 1)(permuted, 0.3), answer)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_es_is_the_optimal_denoiser_of_the_closed_source(sigma):
    x = images(5, SHAPE, 0, torch.float64)
    z = diffusion.add_noise(x[:3].roll((3, 4), (2, 3)), sigma, 1)
    assert relative(es(Source(x))(z, sigma), optimal(Source(orbit(x)))(z, sigma)) < 1e-9


def test_translating_z_cyclically_translates_es():
    source = Source(images(20, SHAPE, 0, torch.float64))
    z = diffusion.add_noise(source[:2].double(), 0.8, 1)
    moved = es(source)(z.roll((3, -2), (2, 3)), 0.8)
    torch.testing.assert_close(moved, es(source)(z, 0.8).roll((3, -2), (2, 3)))


@pytest.mark.parametrize("p", [2, 3, 5, 8, None])
@pytest.mark.parametrize("times", [1, 3, 20])
def test_the_budget_is_kept_and_changes_nothing(p, times):
    pixels = (images(12, SHAPE, 0) * 127 + 128).to(torch.uint8)
    source = Source(pixels, 2 + images(12, (1,), 2)[:, 0])
    z = diffusion.add_noise(source[:3], 0.5, 1).double()

    def denoiser(budget=None):
        return Equivariant(None if p is None else lambda sigma: p, source, budget=budget)

    budget = times * smallest_budget(denoiser, z)
    with PeakMemory() as memory:
        answer = denoiser(budget)(z, 0.5)
    assert memory.peak <= budget + answer.nbytes
    assert relative(answer, denoiser()(z, 0.5)) < 1e-12


def smallest_budget(denoiser, z):
    """What the errors of a smaller one ask for."""
    budget = 1
    while True:
        try:
            denoiser(budget)(z[:1], 0.5)
        except ValueError as error:
            wanted = re.search(r"wanted at least ([\d,]+)", str(error)).group(1)
            budget = max(budget + 1, int(wanted.replace(",", "")))
        else:
            return budget


@pytest.mark.parametrize("method", [ls, els, es])
def test_float32_answers_keep_the_contract(method, photos):
    source = Source(photos.train[:60], dataset="cifar10")
    denoiser = method(source)
    for sigma in (0.002, 0.02, 0.3, 5.0, 80.0):
        z = diffusion.add_noise(source[:2], sigma, 0)
        answer = denoiser(z, sigma)
        assert answer.dtype == torch.float32
        bound = 1e-5 if sigma >= 0.02 else 1e-3
        assert relative(answer, denoiser(z.double(), sigma)) < bound


@pytest.mark.parametrize("p", [1, 3, 8])
def test_large_log_weights_lose_no_digits(p):
    """At the lowest noise level of the samplers, against differences that are not expanded."""
    x = images(3, SHAPE, 0, torch.float64)
    z = diffusion.add_noise(x[:1], 0.002, 1)
    expected = local_machine(z, 0.002, x, p, equivariant=True)
    assert relative(els(Source(x), p)(z, 0.002), expected) < 1e-6


def test_the_published_schedules_are_used_by_name():
    source = Source(images(20, (1, 16, 16), 0))
    z = images(2, (1, 16, 16), 1)
    for sigma, p in ((80.0, 16), (5.32, 13), (1.92, 6), (0.002, 3)):
        assert torch.equal(ls(source, "cifar10")(z, sigma), ls(source, p)(z, sigma))
    for sigma, p in ((80.0, 16), (5.32, 14), (1.92, 8), (0.002, 3)):
        assert torch.equal(els(source, "cifar10")(z, sigma), els(source, p)(z, sigma))
    with pytest.raises(ValueError, match="'ffhq64', a schedule without one for els"):
        els(source, "ffhq64")


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("method", [ls, els])
@pytest.mark.parametrize(
    ("patch_sizes", "error", "says"),
    [
        (0, ValueError, "patch_sizes: got 0, wanted between 1 and 4"),
        ({1.0: 5}, ValueError, "patch_sizes: got 5, wanted between 1 and 4"),
        (2.5, TypeError, "patch_sizes: got 2.5, wanted a whole number"),
        ({}, ValueError, "patch_sizes: got an empty mapping"),
        ("imagenet", ValueError, "patch_sizes: got 'imagenet', wanted a number"),
    ],
)
def test_bad_patch_sizes_are_named(method, patch_sizes, error, says):
    with pytest.raises(error) as caught:
        method(Source(torch.zeros(2, 1, 4, 6)), patch_sizes)
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_bad_calls_are_named():
    source = Source(torch.zeros(2, 1, 4, 6), dataset="cifar10")
    z = torch.zeros(1, 1, 4, 6)
    for method in (ls, els, es):
        with pytest.raises(TypeError, match=r"source: got Tensor, wanted an fpmc\.Source"):
            method(torch.zeros(2, 1, 4, 6))
        with pytest.raises(ValueError, match=r"z: got shape \(1, 1, 6, 4\)"):
            method(source)(z.mT, 1.0)
        with pytest.raises(ValueError, match="sigma: got 0"):
            method(source)(z, 0)
        with pytest.raises(ValueError, match="budget: got 100 bytes, wanted"):
            method(source, budget=100)(z, 1.0)
        with pytest.raises(ValueError, match="budget: got 0"):
            method(source, budget=0)


@pytest.mark.parametrize("method", [ls, els, es, fpmc.methods.wiener, fpmc.methods.lukoianov])
def test_every_device_answers_alike(method, photos, device):
    denoiser = method(Source(photos.train[:100], dataset="cifar10"))
    for sigma in (0.02, 0.5, 80.0):
        z = diffusion.add_noise(Source(photos.test)[:3], sigma, 0)
        answer = denoiser(z.to(device), sigma)
        assert answer.device.type == device.type
        assert relative(answer, denoiser(z, sigma)) < 1e-5
