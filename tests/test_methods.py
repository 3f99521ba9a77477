"""The methods against transcriptions of their own papers' equations, and their schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion
from fpmc.methods.schedules import PUBLISHED, patch_schedule, published
from tests.helpers import images, relative


def composite_of_crops(z, sigma, x, p):
    """PSPC as its paper writes it: crop, patch posterior mean, put back, divide by coverage."""
    total, cover = torch.zeros_like(z), torch.zeros_like(z)
    for i in range(z.shape[-2] - p + 1):
        for j in range(z.shape[-1] - p + 1):
            for b in range(len(z)):
                patch = z[b, :, i : i + p, j : j + p]
                patches = x[:, :, i : i + p, j : j + p]
                log_p = torch.stack([-((patch - y) ** 2).sum() / (2 * sigma**2) for y in patches])
                weights = (log_p - log_p.logsumexp(0)).exp()
                mean = sum(w * y for w, y in zip(weights, patches, strict=True))
                total[b, :, i : i + p, j : j + p] += mean
                cover[b, :, i : i + p, j : j + p] += 1
    return total / cover


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 40.0])
def test_pspc_square_is_the_composite_of_patch_posterior_means(p, sigma):
    x = images(12, (3, 8, 9), 0, torch.float64)
    z = diffusion.add_noise(x[:2], sigma, 1)
    ours = fpmc.methods.pspc_square(Source(x), p)(z, sigma)
    assert relative(ours, composite_of_crops(z, sigma, x, p)) < 1e-10


@given(st.integers(1, 12), st.floats(0.01, 80), st.integers(0, 99))
def test_optimal_is_the_softmax_average_of_the_training_images(n, sigma, seed):
    x = images(n, (3, 4, 4), seed, torch.float64)
    z = diffusion.add_noise(x[:1], sigma, seed)
    distances = ((z - x) ** 2).sum((1, 2, 3))
    expected = (torch.softmax(-distances / (2 * sigma**2), 0)[:, None, None, None] * x).sum(0)
    assert relative(fpmc.methods.optimal(Source(x))(z, sigma), expected) < 1e-8


def test_pspc_square_with_the_whole_image_is_the_optimal_denoiser(photos):
    source = Source(photos.train)
    z = diffusion.add_noise(source[:4], 2.0, 0)
    square = fpmc.methods.pspc_square(source, 16)(z, 2.0)
    assert relative(square, fpmc.methods.optimal(source)(z, 2.0)) < 1e-6


def test_pspc_square_with_single_pixels_denoises_each_on_its_own():
    x = images(30, (3, 4, 4), 0, torch.float64)
    z = images(1, (3, 4, 4), 1, torch.float64)
    ours = fpmc.methods.pspc_square(Source(x), 1)(z, 0.4)
    for i in range(4):
        for j in range(4):
            pixel = fpmc.methods.optimal(Source(x[..., i : i + 1, j : j + 1]))
            expected = pixel(z[..., i : i + 1, j : j + 1], 0.4)
            torch.testing.assert_close(ours[..., i : i + 1, j : j + 1], expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schedules_are_those_of_the_sampler(name):
    """The tables give σ rounded: three digits, fewer for the lowest levels."""
    steps = 18 if name == "cifar10" else 40
    for sigma, level in zip(published(name, "ls"), diffusion.edm_sigmas(steps), strict=True):
        assert abs(sigma - level) < 0.006 * level + 0.0005


def test_published_schedules_hold_the_papers_numbers():
    assert published("cifar10", "pspc_square")[5.32] == 23
    assert published("cifar10", "els")[3.26] == 19
    assert published("ffhq64", "pspc_flex")[14.1] == 0.8
    assert published("afhqv2-64", "ls")[38.3] == 55
    assert published("afhqv2-64", "lukoianov")[80.0] == 0.02


def test_a_published_schedule_scales_with_the_side():
    full, half = (patch_schedule("cifar10", "pspc_square", side) for side in (32, 16))
    assert [full(s) for s in (80, 5.32, 3.26, 1.92, 0.002)] == [32, 23, 15, 11, 3]
    assert [half(s) for s in (80, 5.32, 3.26, 1.92, 0.002)] == [16, 12, 8, 6, 3]
    assert [patch_schedule("ffhq64", "pspc_square", 8)(s) for s in (80, 0.002)] == [8, 3]
    assert patch_schedule("cifar10", "pspc_square", 2)(0.002) == 2


def test_pspc_square_uses_the_schedule_at_its_noise_level(photos):
    source = Source(photos.train[:50])
    z = images(1, source.shape, 0)
    by_name = fpmc.methods.pspc_square(source, "cifar10")
    by_table = fpmc.methods.pspc_square(source, {80: 16, 5: 12, 0.002: 3})
    for sigma, p in ((80, 16), (5, 12), (0.002, 3)):
        expected = fpmc.methods.pspc_square(source, p)(z, sigma)
        assert torch.equal(by_name(z, sigma), expected)
        assert torch.equal(by_table(z, sigma), expected)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("patch_sizes", "error", "says"),
    [
        (0, ValueError, "patch_sizes: got 0, wanted between 1 and 4"),
        (5, ValueError, "patch_sizes: got 5, wanted between 1 and 4"),
        (2.5, TypeError, "patch_sizes: got 2.5, wanted a whole number"),
        ({1.0: 9}, ValueError, "patch_sizes: got 9"),
        ({}, ValueError, "patch_sizes: got an empty mapping"),
        ("imagenet", ValueError, "patch_sizes: got 'imagenet', wanted a number"),
        ([3], TypeError, "patch_sizes: got [3]"),
        (None, ValueError, "patch_sizes: left out, but there is no schedule for images of no"),
    ],
)
def test_bad_patch_sizes_are_named(patch_sizes, error, says):
    source = Source(torch.zeros(2, 1, 4, 6))
    with pytest.raises(error) as caught:
        fpmc.methods.pspc_square(source, patch_sizes)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_a_dataset_s_own_schedule_is_the_default(name):
    data = fpmc.data.load(name, n_train=100) if name == "photos" else fpmc.data.load(name)
    source, (h, w) = data.source(), data.train.shape[2:]
    assert source.dataset == name
    assert torch.equal(source.images, data.train)
    z = diffusion.add_noise(source[:1], 0.5, 0)
    maps = torch.full((h * w, h, w), 1 / (h * w))
    for maker in (
        fpmc.methods.pspc_square,
        fpmc.methods.ls,
        fpmc.methods.els,
        fpmc.methods.lukoianov,
        lambda source, *schedule: fpmc.methods.pspc_flex(source, maps, *schedule),
    ):
        few = source.without(range(50, len(source)))
        assert torch.equal(maker(few)(z, 0.5), maker(few, name)(z, 0.5))


def test_a_source_keeps_its_dataset_in_all_that_is_made_of_it(digits):
    source = digits.source()
    assert source.labels is not None
    for made in (source.of_class(3), source.without([0]), source.unweighted(), source.to("cpu")):
        assert made.dataset == "digits"
    assert Source(digits.train).dataset is None
    assert Source(digits.train[:9], dataset="digits").dataset == "digits"


@pytest.mark.usefixtures("as_users_do")
def test_without_a_schedule_an_error_names_the_choices_and_the_search():
    own, photos32 = (Source(torch.zeros(2, 3, 4, 4), dataset=d) for d in (None, "photos32"))
    makers = {
        "patch_sizes": [fpmc.methods.pspc_square, fpmc.methods.ls, fpmc.methods.els],
        "thresholds": [
            fpmc.methods.lukoianov,
            lambda source: fpmc.methods.pspc_flex(source, torch.eye(16).view(16, 4, 4)),
        ],
    }
    search = {"patch_sizes": "search_patch_sizes", "thresholds": "search_thresholds"}
    for name, denoisers in makers.items():
        for maker in denoisers:
            for source, of in ((own, "images of no named dataset"), (photos32, "'photos32'")):
                with pytest.raises(ValueError, match=f"{name}: left out, .* for {of}; ") as caught:
                    maker(source)
                assert all(each in str(caught.value) for each in (search[name], "cifar10, "))
                assert "fpmc.data.load(name).source()" in str(caught.value)
    with pytest.raises(TypeError, match="dataset: got int, wanted a dataset's name"):
        Source(torch.zeros(2, 3, 4, 4), dataset=3)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("method", [fpmc.methods.optimal, fpmc.methods.pspc_square])
def test_a_tensor_is_not_a_source(method):
    with pytest.raises(TypeError, match=r"source: got Tensor, wanted an fpmc\.Source"):
        method(torch.zeros(2, 1, 4, 4))


def test_published_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        published("cifar10", "ls")[0.002] = 99


def test_unknown_tables_and_columns_are_named():
    with pytest.raises(ValueError, match="schedule: got 'mnist'"):
        published("mnist", "ls")
    with pytest.raises(ValueError, match="column: got 'els', wanted one of pspc_square, ls,"):
        published("ffhq64", "els")
