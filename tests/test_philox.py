"""Philox against its published vectors, and the noise of EDM's seeds."""

import math

import numpy as np
import pytest
import torch

from fpmc import diffusion
from fpmc.philox import philox

KNOWN = {
    "00000000 00000000 00000000 00000000  00000000 00000000": "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff": "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0": "d16cfe09 94fdcceb 5001e420 24126ea1",
}
"""Random123's known answers for philox4x32-10: counter and key, and the words (kat_vectors)."""

PUBLISHED_THREADS = 288 * 256
PUBLISHED = {
    0: -0.9246624112129211,
    1: -0.42534393072128296,
    2: -2.643845796585083,
    3: 0.14518386125564575,
    12287: 1.0832571983337402,
    73727: 0.39988577365875244,
    73728: 0.9911377429962158,
    147456: -0.4820687472820282,
    221184: -0.6176088452339172,
    294912: 0.18082581460475922,
    393215: -1.6095972061157227,
}
"""Values of the noise behind EDM's published grids of AFHQv2 and FFHQ, by a computation apart from
this package: 32 images of 3 × 64 × 64 drawn at once from seed 0, on a card of 72 multiprocessors.
The correlation with the images is 0.16 to 0.25, and at most 0.12 for another number of threads."""


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("given", "expected"), KNOWN.items())
def test_philox_gives_the_published_words(given, expected):
    given = words(given)
    assert (philox(given[:4], given[4:]) == words(expected)).all()


def test_counters_go_through_at_once_as_one_by_one():
    given = np.stack([words(text) for text in KNOWN], axis=1)
    answers = philox(given[:4], given[4:])
    assert answers.shape == (4, 3)
    assert answers.dtype == np.uint32
    for answer, expected in zip(answers.T, KNOWN.values(), strict=True):
        assert (answer == words(expected)).all()


def test_the_noise_behind_edms_published_grids():
    noise = diffusion.edm_noise([0], (96, 64, 64), threads=PUBLISHED_THREADS).flatten()
    for i, value in PUBLISHED.items():
        assert abs(noise[i] - value) < 1e-6
    alone = diffusion.edm_noise([0], (3, 64, 64)).flatten()
    assert torch.equal(alone, noise[: len(alone)])


def test_the_classes_of_edms_published_grid():
    """Those of the 32 pictures of CIFAR-10 in EDM's repository, drawn at once after their noise."""
    shape = (96, 32, 32)
    labels = diffusion.edm_labels([0], shape, 10, each=32, threads=PUBLISHED_THREADS)
    assert "".join(map(str, labels.tolist())) == "40340011593495211035078436638835"


def test_classes_are_drawn_seed_by_seed():
    shape = (3, 8, 9)
    labels = diffusion.edm_labels(range(5, 9), shape, 10)
    assert labels.shape == (4,)
    assert labels.dtype == torch.int64
    for seed, label in zip(range(5, 9), labels, strict=True):
        assert diffusion.edm_labels([seed], shape, 10, each=3)[0] == label
    assert (diffusion.edm_labels(range(4), shape, 1) == 0).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [({"classes": 0}, "classes: got 0"), ({"classes": 3, "each": 0}, "each: got 0")],
)
def test_classes_that_cannot_be_drawn(given, says):
    with pytest.raises(ValueError, match=says):
        diffusion.edm_labels([0], (3, 8, 8), **given)


def test_an_image_is_the_same_whatever_is_drawn_beside_it():
    shape = (3, 8, 9)
    noise = diffusion.edm_noise(range(5, 9), shape)
    assert noise.shape == (4, *shape)
    assert noise.dtype == torch.float32
    for seed, image in zip(range(5, 9), noise, strict=True):
        assert torch.equal(diffusion.edm_noise(torch.tensor([seed]), shape)[0], image)
    wrapped = diffusion.edm_noise([2**32 + 5, np.uint64(2**33 + 6)], shape)
    assert torch.equal(wrapped, noise[:2])


def test_more_threads_than_values_change_nothing_and_fewer_do():
    noise = diffusion.edm_noise([3], (3, 64, 64))
    for threads in (12_288, 221_184):
        assert torch.equal(diffusion.edm_noise([3], (3, 64, 64), threads=threads), noise)
    fewer = diffusion.edm_noise([3], (3, 64, 64), threads=8_192)
    same = (fewer == noise).flatten()
    assert same[:8_192].all()
    assert not same[8_192:].any()


def test_it_is_standard_normal_and_finite():
    for threads in (256, None):  # all four values of a draw, and the first alone
        noise = diffusion.edm_noise(range(40), (3, 64, 64), threads=threads).double().flatten()
        moments = [noise.pow(power).mean().item() for power in (1, 2, 3, 4)]
        for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
            assert abs(moment - expected) < 4 * math.sqrt(variance / len(noise))
        assert noise.abs().max() < math.sqrt(66 * math.log(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (96, 64, 64)])
def test_a_gpu_draws_the_same(shape):
    """Within 6.8 · (2⁻²⁰·⁵ + 2⁻²¹): the longest radius, the fast sine's error, a last bit of v."""
    gpu = torch.cuda.get_device_properties(0)
    threads = gpu.multi_processor_count * gpu.max_threads_per_multi_processor
    seeds = [0, 1, 123_456_789, 2**32 - 1]
    for seed, ours in zip(seeds, diffusion.edm_noise(seeds, shape, threads=threads), strict=True):
        generator = torch.Generator("cuda").manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device="cuda").cpu()
        torch.testing.assert_close(ours, drawn, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((0, (3, 8, 8)), {}, TypeError, "seeds: got int, wanted whole numbers"),
        (("0-63", (3, 8, 8)), {}, TypeError, "seeds: got str"),
        (([0.5], (3, 8, 8)), {}, TypeError, "seeds: got 0.5"),
        (([-1], (3, 8, 8)), {}, ValueError, "seeds: got -1"),
        (([], (3, 8, 8)), {}, ValueError, "seeds: got none"),
        (([0], (8, 8)), {}, ValueError, "shape: got (8, 8), wanted (c, h, w)"),
        (([0], (3, 0, 8)), {}, ValueError, "shape: got 0"),
        (([0], (3, 128, 128)), {}, ValueError, "threads: left out for 49,152 values an image"),
        (([0], (3, 8, 8)), {"threads": 300}, ValueError, "threads: got 300, wanted a multiple"),
        (([0], (3, 8, 8)), {"threads": 0}, ValueError, "threads: got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, says):
    with pytest.raises(error) as caught:
        diffusion.edm_noise(*arguments, **options)
    assert says in str(caught.value)
