"""Augmented images: geometry that needs no other code to be checked, draws, and their order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import augment
from fpmc.augment import geometry
from fpmc.augment.recipes import of_images, of_network
from fpmc.augment.strategies import STRATEGIES
from fpmc.source import to_float, to_uint8
from tests.helpers import relative

FUNCTIONS = {
    "horizontal flips": augment.horizontal_flips,
    "vertical flips": augment.vertical_flips,
    "translations": augment.translations,
    "fractional translations": lambda *a, **k: augment.translations(*a, fractional=True, **k),
    "rotations": augment.rotations,
    "scalings": augment.scalings,
}
FLIPS = list(FUNCTIONS)[:2]
DRAWN = list(FUNCTIONS)[2:]


def pixels(n=4, shape=(3, 12, 10), seed=0):
    """Random pixel values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


def smooth(n, side, down=0.0, right=0.0):
    """Images of a few low frequencies, seen from so much farther down and right.

    They are even about their borders, so that their reflection is smooth too.
    """
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64)
    frequency = torch.arange(4, dtype=torch.float64)[:, None] * math.pi / (side - 1)
    y, x = (torch.cos(frequency * (torch.arange(side) + shift)) for shift in (down, right))
    return torch.einsum("ncij,iy,jx->ncyx", parts, y, x)


def number(*values):
    """A parameter for each image."""
    return torch.tensor(values, dtype=torch.float64)


@given(
    h=st.integers(7, 20), w=st.integers(7, 20), c=st.sampled_from([1, 3]), seed=st.integers(0, 99)
)
def test_without_a_move_the_filter_gives_the_image_back(h, w, c, seed):
    x = to_float(pixels(2, (c, h, w), seed), torch.float64)
    still = number(0, 0)
    for maps in (
        geometry.rotation(still), geometry.scaling(still + 1), geometry.translation(still, still)
    ):  # fmt: skip
        assert (geometry.warp(x, maps) - x).abs().max() < 1e-10
    assert torch.equal(geometry.shift(to_uint8(x), still.long(), still.long()), to_uint8(x))


def test_the_filter_is_orthonormal_to_its_shifts_by_two_and_passes_polynomials():
    """What defines sym6 but for its choice of roots: six vanishing moments."""
    taps = torch.tensor(geometry.TAPS, dtype=torch.float64)
    for lag in range(0, len(taps), 2):
        assert abs((taps[lag:] * taps[: len(taps) - lag]).sum() - float(lag == 0)) < 1e-11
    assert taps.sum().item() == pytest.approx(math.sqrt(2))
    other = taps * (-1.0) ** torch.arange(len(taps))
    for power in range(6):
        moment = (other * torch.arange(len(taps)).double() ** power).sum()
        assert abs(moment) < 1e-9 * len(taps) ** power


@pytest.mark.parametrize("name", FLIPS)
def test_a_flip_twice_is_the_identity(name):
    x = pixels()
    once = FUNCTIONS[name](x)
    assert sorted(once.parents.tolist()) == list(range(4))
    twice = FUNCTIONS[name](once.images)
    parents = once.parents[twice.parents]
    assert torch.equal(twice.images, x[parents])
    axis = 3 if name == "horizontal flips" else 2
    assert torch.equal(once.images, x[once.parents].flip(axis))


@given(h=st.integers(2, 9), w=st.integers(2, 9), x=st.integers(-30, 30), y=st.integers(-30, 30))
def test_a_translation_by_whole_pixels_is_an_exact_reflected_copy(h, w, x, y):
    """The image, reflected on and on, read with NumPy; y moves up."""
    image = pixels(1, (2, h, w))
    pad = [(0, 0), (0, 0), (30, 30), (30, 30)]
    large = torch.from_numpy(np.pad(image.numpy(), pad, mode="reflect"))
    found = geometry.shift(image, torch.tensor([x]), torch.tensor([y]))
    assert torch.equal(found, large[:, :, 30 + y : 30 + y + h, 30 - x : 30 - x + w])


def test_shifts_by_whole_pixels_through_the_filter_are_exact_too():
    """Up to half the side, and with y downwards: the filter sees no farther than it is padded."""
    x = to_float(pixels(3, (1, 16, 12)), torch.float64)
    right, down = number(3, -2, 0), number(-1, 4, 5)
    found = geometry.warp(x, geometry.translation(right, down))
    exact = geometry.shift(to_uint8(x), right.long(), -down.long())
    assert (found - to_float(exact, torch.float64)).abs().max() < 1e-10


DELAY = sum(k * tap for k, tap in enumerate(geometry.TAPS)) / math.sqrt(2) - 5
"""The filter is not symmetric: the way there moves an image by half of so much, 0.1 pixels."""


@pytest.mark.parametrize(("turns", "down", "right"), [(1, 0, -1), (2, -1, -1), (3, -1, 0)])
def test_quarter_turns_of_smooth_images_are_transposes(turns, down, right):
    """But for twice half the filter's delay, where an axis is turned round on the way."""
    x = smooth(3, 33)
    found = geometry.warp(x, geometry.rotation(number(*[turns * math.pi / 2] * 3)))
    exact = smooth(3, 33, down * DELAY, right * DELAY).rot90(turns, (2, 3))
    assert relative(found, exact) < 1e-3
    assert relative(found, x.rot90(turns, (2, 3))) < 0.02


def test_turning_and_turning_back_gives_a_smooth_image_back():
    x, angle = smooth(4, 41), number(0.3, -1.0, 2.0, 3.0)
    again = geometry.warp(geometry.warp(x, geometry.rotation(angle)), geometry.rotation(-angle))
    centre = slice(16, 25)  # what is seen is inside both ways
    assert relative(again[..., centre, centre], x[..., centre, centre]) < 1e-2


def test_twice_as_large_shows_the_centre():
    """Every other pixel of the large image is one of the image, about an odd side's centre."""
    x, moved = smooth(3, 33), -DELAY / 4  # half of it there, a quarter of it back
    found = geometry.warp(x, geometry.scaling(number(2, 2, 2)))
    exact = smooth(3, 33, moved, moved)[..., 8:25, 8:25]
    assert relative(found[..., ::2, ::2], exact) < 3e-3
    back = geometry.warp(found, geometry.scaling(number(0.5, 0.5, 0.5)))
    centre = slice(10, 23)
    assert relative(back[..., centre, centre], x[..., centre, centre]) < 1e-2


def test_beyond_the_padding_all_is_the_grey_in_the_middle():
    x = to_float(pixels(3, (3, 8, 8)), torch.float64)
    far = geometry.warp(x, geometry.translation(number(40, 0, -99), number(0, 40, 99)))
    assert (far == 0).all()
    half = geometry.warp(
        torch.ones_like(x), geometry.translation(number(11, 0, -11), number(0, 0, 0))
    )
    assert half.mean((1, 2, 3)).tolist() == pytest.approx([0.5, 1, 0.5], abs=0.06)
    assert to_uint8(far.float()).float().mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels_are_those_of_nine_and_say_what_was_done(name):
    x = pixels(6, (1, 16, 24))
    found = FUNCTIONS[name](x)
    label, rest = found.parameters, set(range(9))
    assert label.shape == (len(found), 9)
    if name in FLIPS:
        column = FLIPS.index(name)
        rest -= {column}
        assert (label[:, column] == 1).all()
    if name == "scalings":
        rest -= {2}
        expected = geometry.scaling((0.2 * label[:, 2]).exp2())
    if name == "rotations":
        rest -= {3, 4}
        expected = geometry.rotation(torch.atan2(label[:, 4], label[:, 3] + 1))
    if "translations" in name:
        rest -= {7, 8}
        x_y = label[:, 7:] * torch.tensor([3.0, 2.0])  # an eighth of each side
        expected = geometry.translation(*x_y.T)
    if name == "translations":
        assert torch.equal(x_y, x_y.round())
        moved = geometry.shift(x[found.parents], *x_y.long().T)
        assert torch.equal(found.images, moved)
    elif name in DRAWN:
        moved = geometry.warp(to_float(x[found.parents], torch.float64), expected)
        assert (found.images.double() - to_uint8(moved).double()).abs().max() <= 1
    assert not label[:, sorted(rest)].any()


def test_distributions():
    """Of many draws: their ranges, means and standard deviations."""
    x = pixels(2000, (1, 32, 64))
    found = {name: of_images(name, x, 10_000, 3).parameters for name in DRAWN}
    whole = found["translations"][:, 7:] * torch.tensor([8.0, 4.0])
    assert whole.amin(0).tolist() == [-8, -4]
    assert whole.amax(0).tolist() == [8, 4]
    for values, deviation in (
        (found["translations"][:, 7], 1 / math.sqrt(3)),
        (found["fractional translations"][:, 7], 1.0),
        (found["fractional translations"][:, 8], 1.0),
        (found["scalings"][:, 2], 1.0),
        (torch.atan2(found["rotations"][:, 4], found["rotations"][:, 3] + 1), math.pi / 3**0.5),
    ):
        assert values.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(values.mean().item()) < 0.05 * deviation
    assert not any(torch.signbit(values[values == 0]).any() for values in found.values())


@pytest.mark.parametrize(
    "name", ["horizontal_flips", "vertical_flips", "translations", "rotations", "scalings"]
)
def test_a_generator_may_stand_in_the_seed_s_place(name):
    make = getattr(augment, name)
    x = to_uint8(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    first, again, other = (
        make(x, 4, **given).images
        for given in (
            {"generator": torch.Generator().manual_seed(7)},
            {"seed": 7},
            {"seed": torch.Generator().manual_seed(8)},
        )
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(make(x, 4).images, make(x, 4, 0).images)
    with pytest.raises(ValueError, match="seed: got a generator, too, wanted one of the two"):
        make(x, 4, 0, generator=torch.Generator())


def test_repeated_draws_are_left_out():
    """Of shifts by −1, 0, 1 pixels there are nine, whatever the number of draws."""
    x = pixels(3, (1, 8, 8))
    found = augment.translations(x, draws=2000)
    assert len(found) == 27
    few = augment.translations(x)
    each = torch.cat([few.parents[:, None], few.parameters], 1).unique(dim=0)
    assert len(each) == len(few) < 60
    assert len(augment.rotations(x)) == 60
    assert len(augment.horizontal_flips(x)) == 3


@given(n=st.integers(1, 60), seed=st.integers(0, 99), name=st.sampled_from(list(FUNCTIONS)))
def test_smaller_sets_are_balanced_and_the_beginning_of_larger_ones(n, seed, name):
    x = pixels(7, (1, 32, 32))
    recipe = of_images(name, x, None, seed)
    n = min(n, len(recipe.parents))
    counts = recipe.parents[:n].bincount(minlength=7)
    if name != "translations":  # of which some have fewer that differ
        assert counts.max() - counts.min() <= 1
    assert counts.max() == -(-n // 7) or n > 7
    fewer = of_images(name, x, n, seed)
    assert torch.equal(fewer.parents, recipe.parents[:n])
    assert torch.equal(fewer.parameters, recipe.parameters[:n])


def test_subsets_are_the_beginning():
    found = augment.rotations(pixels(), 9)
    few = found.subset(5)
    assert torch.equal(few.images, augment.rotations(pixels(), 5).images)
    assert few.images.data_ptr() == found.images.data_ptr()
    assert len(few) == len(few.parents) == len(few.parameters) == 5
    with pytest.raises(ValueError, match="n: got 10, wanted between 1 and 9"):
        found.subset(10)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_image_depends_on_what_is_made_with_it(name):
    x = pixels(5, (3, 32, 32))
    n = 5 if name in FLIPS else 40
    large, small = (of_images(name, x, n, budget=size) for size in (2**30, 1))
    assert small.piece == 1 < large.piece
    assert torch.equal(large.made().images, small.made().images)
    assert torch.equal(large.made().images, FUNCTIONS[name](x, n).images)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seeds_decide_everything(name):
    x = pixels(9)
    first, again, other = (FUNCTIONS[name](x, 9, seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.parents, again.parents)
    assert not torch.equal(first.images, other.images)
    drawn = FUNCTIONS[name](x, 9, torch.Generator().manual_seed(1))
    assert torch.equal(first.images, drawn.images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_device_changes_nothing(name):
    x = pixels(9)
    there = FUNCTIONS[name](x.cuda(), 9)
    assert torch.equal(there.images.cpu(), FUNCTIONS[name](x, 9).images)


def test_arrays_are_images_too(tmp_path):
    x = pixels()
    np.save(tmp_path / "images.npy", x.numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(augment.rotations(mapped, 5).images, augment.rotations(x, 5).images)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_are_no_images_is_an_error(name):
    make, x = FUNCTIONS[name], pixels()
    with pytest.raises(TypeError, match=r"images: got torch\.float32, wanted uint8 pixel values"):
        make(x.float())
    with pytest.raises(TypeError, match="images: got ndarray, wanted uint8 pixel values"):
        make(x.double().numpy())
    with pytest.raises(ValueError, match=r"images: got shape \(3, 12, 10\), wanted \(n, c, h, w\)"):
        make(x[0])
    with pytest.raises(ValueError, match="n: got 0, wanted between 1 and"):
        make(x, 0)
    with pytest.raises(ValueError, match="n: got 1000, wanted between 1 and"):
        make(x, 1000)
    with pytest.raises(TypeError, match=r"n: got 1\.5, wanted a whole number"):
        make(x, 1.5)
    if name in DRAWN:
        with pytest.raises(ValueError, match="draws: got 0, wanted at least 1"):
            make(x, draws=0)


def gaussian(z, sigma):
    """The denoiser of N(0, ¼)."""
    return z * (0.25 / (0.25 + sigma**2))


def test_synthetic_images_are_a_networks_samples():
    found = augment.synthetic(gaussian, 70, shape=(1, 4, 4))
    assert found.images.shape == (70, 1, 4, 4)
    assert (found.parents == -1).all()
    assert not found.parameters.any()
    assert to_float(found.images).std().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(augment.synthetic(gaussian, 7, shape=(1, 4, 4)).images, found.images[:7])
    other = augment.synthetic(gaussian, 7, 1, shape=(1, 4, 4))
    assert not torch.equal(other.images, found.images[:7])


def test_synthetic_images_start_from_seeds_of_their_own(monkeypatch):
    """PyTorch's generator takes 32 bits of a seed: those of all sets are different in them."""
    taken = []

    def noise(n, shape, seed, sigma_max):
        taken.append(seed)
        return torch.zeros(n, *shape)

    monkeypatch.setattr("fpmc.augment.recipes.initial_noise", noise)
    for seed in (0, 1, 2047):
        of_network(gaussian, 2**20, seed, shape=(1, 1, 1)).make(0, 2)
        of_network(gaussian, 2**20, seed, shape=(1, 1, 1)).make(2**20 - 1, 2**20)
    assert len(set(taken)) == 9
    assert 2**31 == min(taken) < max(taken) == 2**32 - 1


def test_images_too_small_for_the_filter_are_an_error():
    with pytest.raises(ValueError, match=r"images: got 6 × 9 pixels, wanted at least 7 × 7"):
        augment.rotations(pixels(2, (1, 6, 9)))
    assert len(augment.translations(pixels(2, (1, 1, 1)))) == 2


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5,), {}, ValueError, "shape: got None, wanted"),
        ((0,), {"shape": (1, 2, 2)}, ValueError, "n: got 0, wanted between 1 and 1048576"),
        ((1, 2048), {"shape": (1, 2, 2)}, ValueError, "seed: got 2048, wanted between 0 and 2047"),
        ((1, None), {"shape": (1, 2, 2)}, TypeError, "seed: got None, wanted a whole number"),
    ],
)
def test_bad_synthetic_sets_are_an_error(arguments, options, error, message):
    with pytest.raises(error, match=message):
        augment.synthetic(gaussian, *arguments, **options)


def test_every_strategy_has_a_function():
    assert set(STRATEGIES) == set(FUNCTIONS)
    assert set(fpmc.augment.__all__) > {"Augmented", "synthetic", "rotations"}
