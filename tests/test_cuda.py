"""The CUDA kernels against the reference: on a GPU if there is one, or in Triton's interpreter."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion
from fpmc.engine.cuda import Cuda, has_kernel
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.engine.units import from_units
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import PeakMemory, exact, images, matrix, relative

pytest.importorskip("triton", reason="there is no Triton for this system")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

CHANNELS = st.sampled_from([1, 2, 3])
SIDES = st.integers(1, 9)
SIGMAS = st.sampled_from([0.002, 0.02, 0.3, 1.0, 5.0, 80.0])
TYPES = st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64])
SEEDS = st.integers(0, 10_000)

SQUARES = ["PSPC-Square", "LS", "clipped"]
MATRICES = ["one-hot", "one-hot per dimension", "mixed", "both", "both per dimension"]


REDUCED = {"tf32": 2e-3, "bf16": 2e-2}
"""What the reduced precisions may be off, relative to the answer, as their documentation says."""


@pytest.fixture(autouse=True, scope="module")
def products_of_bfloat16():
    """The interpreter multiplies the bits of bfloat16 as whole numbers; decode them before."""
    from triton import knobs
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def decoded(a):
        if a.dtype.scalar != tl.bfloat16:
            return a
        return TensorHandle((a.data.astype("uint32") << 16).view("float32"), tl.float32)

    def dot(self, a, b, *others):
        return whole_numbers(self, decoded(a), decoded(b), *others)

    whole_numbers = InterpreterBuilder.create_dot
    with pytest.MonkeyPatch.context() as patch:
        if knobs.runtime.interpret:
            patch.setattr(InterpreterBuilder, "create_dot", dot)
        yield


def sources(n, shape, dtype, seed, spread=1.0):
    """n images no further than the spread from one of them, half of the time with weights."""
    x = 0.5 * images(1, shape, seed) + 0.5 * spread * images(n, shape, seed + 1)
    x = fpmc.source.to_uint8(x) if dtype == torch.uint8 else x.to(dtype)
    return Source(x.to(DEVICE), 2 + images(n, (1,), seed)[:, 0] if seed % 2 else None)


def noisy(b, source, sigma, seed):
    """Noisy versions of source images, float32."""
    clean = source[torch.arange(b) % len(source)].cpu()
    return diffusion.add_noise(clean, sigma, seed)


def squares(kind, h, w, p):
    """Q and R with squares."""
    pixels, clipped = (h, w), Box((h, w), p, "clip")
    return {
        "PSPC-Square": (Box(pixels, p), Box(pixels, p)),
        "LS": (clipped, Identity(pixels)),
        "clipped": (clipped, Box(pixels, min(p + 1, *pixels), "clip")),
    }[kind]


def matrices(kind, shape, k, seed):
    """Q and R with matrices; k estimators if both are."""
    c, h, w = shape
    pixels, r_seed = (h, w), seed + 1
    return {
        "one-hot": (Dense(matrix(h * w, pixels, seed)), Identity(pixels)),
        "one-hot per dimension": (Dense(matrix(c * h * w, shape, seed)), Identity(shape)),
        "mixed": (Dense(matrix(h * w, shape, seed)), Identity(pixels)),
        "both": (Dense(matrix(k, pixels, seed)), Dense(matrix(k, pixels, r_seed) + 0.01)),
        "both per dimension": (
            Dense(matrix(k, shape, seed)), Dense(matrix(k, shape, r_seed).float() + 0.01),
        ),
    }[kind]  # fmt: skip


def problem(operators, source, sigma=1.0, budget=None, precision="exact"):
    """What the kernels are asked."""
    return Problem(*operators, source, sigma, budget, precision)


def denoise(z, sigma, queries, responses, source, sizes=None, **options):
    """The kernels' answer, on the CPU."""
    asked = problem((queries, responses), source, sigma, **options)
    return Cuda(asked).answer(z.to(DEVICE), sizes).cpu()


def error(z, sigma, queries, responses, source, **options):
    """How far the kernels' answer is from the reference."""
    answer = denoise(z, sigma, queries, responses, source, **options)
    assert answer.dtype == z.dtype
    weights = source.log_weights
    on_cpu = Source(source.images.cpu(), None if weights is None else weights.exp())
    return relative(answer, exact(z, sigma, queries, responses, on_cpu))


@pytest.mark.parametrize("kind", SQUARES)
@settings(max_examples=settings().max_examples // 2)  # an interpreter is slow
@given(
    c=CHANNELS, h=SIDES, w=SIDES, p=SIDES, n=st.sampled_from([1, 2, 7, 20]), sigma=SIGMAS,
    dtype=TYPES, seed=SEEDS, spread=st.sampled_from([1.0, 0.05]),
)  # fmt: skip
def test_squares_agree_with_the_reference(kind, c, h, w, p, n, sigma, dtype, seed, spread):
    operators = squares(kind, h, w, min(p, h, w))
    source = sources(n, (c, h, w), dtype, seed, spread)
    assert has_kernel(*operators, source)
    assert error(noisy(2, source, sigma, seed), sigma, *operators, source) < 0.2 * tolerance(sigma)


@pytest.mark.parametrize("kind", MATRICES)
@settings(max_examples=settings().max_examples // 2)  # an interpreter is slow
@given(
    c=CHANNELS, h=SIDES, w=SIDES, k=st.sampled_from([1, 5, 65]), b=st.sampled_from([1, 3, 9]),
    n=st.sampled_from([1, 2, 8, 63, 70]), sigma=SIGMAS, dtype=TYPES, seed=SEEDS,
    spread=st.sampled_from([1.0, 0.05]),
)  # fmt: skip
def test_matrices_agree_with_the_reference(kind, c, h, w, k, b, n, sigma, dtype, seed, spread):
    operators = matrices(kind, (c, h, w), k, seed)
    source = sources(n, (c, h, w), dtype, seed, spread)
    assert has_kernel(*operators, source)
    assert error(noisy(b, source, sigma, seed), sigma, *operators, source) < 0.2 * tolerance(sigma)


@pytest.mark.parametrize("precision", ["exact", *REDUCED])
@pytest.mark.parametrize("kind", ["one-hot", "mixed", "mixed, in parts"])
def test_tiles_of_zeros_are_not_read_and_change_nothing(kind, precision):
    from fpmc.engine.cuda import dense, inputs, precisions

    pixels, sigma, how = (20, 20), 0.5, precisions.named(precision)
    band = Box(pixels, 3, "clip").dense().double()
    if kind == "one-hot":
        band[: how.tiles.columns] = 0  # all of a block's estimators see nothing
    operators = Dense(band.to(DEVICE)), Identity(pixels) if kind == "one-hot" else Dense(band)
    source = sources(6, (2, *pixels), torch.uint8, 0, 0.3)
    z = noisy(1, source, sigma, 0).to(DEVICE)
    wanted = exact(z.cpu(), sigma, *operators, Source(source.images.cpu()))
    sizes = Cuda(problem(operators, source, precision=precision)).sizes(1, DEVICE)
    if kind == "mixed, in parts":
        sizes = replace(sizes, n=4)

    matrices = dense.Matrices(*operators, DEVICE, how)
    poison(matrices.q, *matrices.q_tiles, how.tiles)
    if kind != "one-hot":
        poison(matrices.r, *matrices.r_tiles, how.tiles)
    prepared = inputs.prepare(z, sigma, source, operators[0].shape, how)
    mean = dense.mean(prepared, matrices, sizes, how)
    limit = {"exact": 0.2 * tolerance(sigma), **REDUCED}[precision]
    assert relative(from_units(mean, z, source).cpu(), wanted) < limit


def poison(a, starts, counts, tiles):
    """Write NaN where a matrix should not be read; that is a good part of it."""
    assert counts.sum() < 0.75 * starts.numel()
    for block, (row, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        rows = slice(block * tiles.columns, (block + 1) * tiles.columns)
        for first in row[count:]:
            tile = a[rows, first : first + tiles.inner]
            assert not tile.any()
            tile.fill_(torch.nan)


@pytest.mark.parametrize("p", [1, 5])
def test_the_smallest_and_the_largest_square(p):
    source = sources(9, (1, 5, 9), torch.uint8, 0)
    z = noisy(1, source, 0.5, 0)
    for operators in (squares("PSPC-Square", 5, 9, p), squares("LS", 5, 9, p)):
        assert error(z, 0.5, *operators, source) < 2e-6


def test_more_rows_than_a_program_holds():
    source = sources(3, (1, 40, 18), torch.uint8, 0)
    z = noisy(1, source, 2.0, 0)
    for kind in SQUARES:
        assert error(z, 2.0, *squares(kind, 40, 18, 5), source) < 2e-6


def test_a_weight_on_an_image_is_copies_of_it():
    x = images(3, (2, 5, 6), 0).to(DEVICE)
    weighted, copies = Source(x, [2.0, 1.0, 1.0]), Source(x[[0, 0, 1, 2]])
    z = noisy(1, copies, 1.0, 0)
    for operators in (squares("LS", 5, 6, 3), matrices("both", (2, 5, 6), 5, 0)):
        answers = (denoise(z, 1.0, *operators, source) for source in (weighted, copies))
        torch.testing.assert_close(*answers)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("left_out", [[2, 19], range(19), range(1, 20)])
def test_left_out_images_are_as_if_they_were_not_there(left_out, precision):
    """Splits and tiles hold nothing but images without weight, the first ones or the last."""
    shape, sigma = (2, 5, 6), 0.5
    source, kept = sources(20, shape, torch.uint8, 1, 0.3), torch.ones(20, dtype=torch.bool)
    kept[list(left_out)] = False
    ours = source.without(list(left_out))
    theirs = Source(source.images[kept.to(DEVICE)], source.log_weights[kept].exp())
    z = noisy(2, theirs, sigma, 0)
    for operators in (
        squares("LS", 5, 6, 3), squares("PSPC-Square", 5, 6, 3),
        matrices("one-hot", shape, 1, 0), matrices("both", shape, 5, 0),
    ):  # fmt: skip
        wanted = denoise(z, sigma, *operators, theirs, precision=precision)
        planned = Cuda(problem(operators, ours, precision=precision)).sizes(len(z), DEVICE)
        for sizes in (planned, replace(planned, splits=1, n=7 if planned.n else 0)):
            answer = denoise(z, sigma, *operators, ours, sizes=sizes, precision=precision)
            limit = 0.2 * tolerance(sigma) if precision == "exact" else REDUCED[precision]
            assert relative(answer, wanted) < limit


def test_a_tie_is_a_tie():
    """z halfway between two images: each has half of the weight, however small σ."""
    x = images(2, (3, 8, 8), 0).mul(128).round().div(128)
    z, source = x.mean(0, keepdim=True), Source(x.to(DEVICE))
    for operators in (
        squares("PSPC-Square", 8, 8, 3), squares("LS", 8, 8, 5),
        matrices("one-hot", x.shape[1:], 1, 0), matrices("both", x.shape[1:], 5, 0),
    ):  # fmt: skip
        for sigma in (0.002, 1.0):
            torch.testing.assert_close(denoise(z, sigma, *operators, source), z)


def test_an_image_far_from_all_others_does_not_overflow():
    source = sources(20, (1, 6, 6), torch.float32, 0)
    z = torch.full((1, 1, 6, 6), 1e3)
    for operators in (squares("LS", 6, 6, 3), matrices("both", (1, 6, 6), 5, 0)):
        assert error(z, 0.02, *operators, source) < 1e-5


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("sigma", [0.02, 0.5, 2.0, 80.0])
def test_reduced_precisions_are_off_by_what_is_documented(precision, sigma, photos):
    source = Source(photos.train[:40, :, ::2, ::2].contiguous().to(DEVICE))
    z = diffusion.add_noise(fpmc.source.to_float(photos.test[:2, :, ::2, ::2]), sigma, 0)
    shape = source.shape
    for operators in (
        (Dense(Box((8, 8), 5, "clip").dense()), Identity((8, 8))),
        (Dense(Box((8, 8), 5, "clip").dense()), Dense(matrix(64, (8, 8), 0) + 0.01)),
        matrices("one-hot per dimension", shape, 1, 0),
    ):
        off = error(z, sigma, *operators, source, precision=precision)
        assert off < REDUCED[precision]
        assert sigma < 0.5 or off > 2 * error(z, sigma, *operators, source)


@pytest.mark.parametrize("precision", REDUCED)
def test_reduced_precisions_of_squares(precision):
    source = sources(12, (3, 8, 7), torch.uint8, 0, 0.3)
    z = noisy(1, source, 0.5, 0)
    for kind in SQUARES:
        operators = squares(kind, 8, 7, 3)
        assert error(z, 0.5, *operators, source, precision=precision) < REDUCED[precision]


def test_splits_do_not_matter_and_nor_do_chunks():
    shape, sigma = (2, 5, 6), 0.5
    source = sources(40, shape, torch.uint8, 1)
    z = noisy(3, source, sigma, 0)
    for operators in (
        squares("LS", 5, 6, 3), squares("PSPC-Square", 5, 6, 3),
        matrices("one-hot", shape, 1, 0), matrices("both", shape, 5, 0),
    ):  # fmt: skip
        few = Source(source.images[:6]) if isinstance(operators[0], Box) else source
        planned = Cuda(problem(operators, few)).sizes(len(z), DEVICE)
        whole = replace(planned, splits=1)
        answer = denoise(z.double(), sigma, *operators, few, sizes=whole)
        again = denoise(z.double(), sigma, *operators, few, sizes=whole)
        assert torch.equal(answer, again)
        for sizes in (replace(whole, splits=5), replace(whole, b=2, n=33)):
            other = denoise(z.double(), sigma, *operators, few, sizes=sizes)
            assert relative(other, answer) < 2e-7


@pytest.mark.parametrize(
    ("kind", "precision", "n", "b", "budgets"),
    [
        ("LS", "exact", 5, 3, (2**14, 2**18)),
        ("PSPC-Square", "exact", 5, 3, (2**14, 2**18)),
        ("one-hot", "exact", 40, 9, (2**16, 2**20)),
        ("one-hot", "tf32", 40, 9, (2**18, 2**20)),
        ("both", "exact", 200, 2, (2**16, 2**18, 2**20)),
    ],
)
def test_memory_is_what_the_sizes_say(kind, precision, n, b, budgets):
    shape = (2, 6, 5)
    source = sources(n, shape, torch.uint8, 1)
    operators = squares(kind, 6, 5, 3) if kind in SQUARES else matrices(kind, shape, 40, 0)
    z = noisy(b, source, 1.0, 0).to(DEVICE)
    for budget in budgets:
        kernels = Cuda(problem(operators, source, 1.0, budget, precision))
        sizes = kernels.sizes(b, DEVICE)
        assert sizes.memory <= budget
        with PeakMemory() as memory:
            kernels.answer(z, sizes)
        assert memory.peak <= sizes.memory + z.nbytes


class TestSizes:
    """What is held at a time follows from the budget."""

    shape = (3, 16, 16)

    def sizes(self, kind, budget, batch=64, n=5_000, precision="exact"):
        source = Source(torch.zeros(n, *self.shape, dtype=torch.uint8))
        operators = matrices(kind, self.shape, 256, 0)
        kernels = Cuda(problem(operators, source, 1.0, budget, precision))
        return kernels.sizes(batch, torch.device("cpu"))

    def test_all_log_weights_are_kept_if_those_of_an_image_fit(self):
        per_image = 5_000 * 256 * 8
        small, large = self.sizes("both", 2 * per_image), self.sizes("both", 30 * per_image)
        assert (small.b, small.n) == (1, 5_000)
        assert (large.b, large.n) == (24, 5_000)
        assert 24 * per_image < large.memory <= 30 * per_image

    def test_otherwise_those_of_a_chunk(self):
        sizes = self.sizes("both", 2**23)
        assert 0 < sizes.n < 5_000
        assert sizes.memory <= 2**23

    def test_float32_takes_half(self):
        assert self.sizes("both", 2**25, precision="tf32").b >= 2 * self.sizes("both", 2**25).b

    def test_one_hot_responses_keep_none(self):
        sizes = self.sizes("one-hot", None)
        assert (sizes.b, sizes.n) == (64, 0)

    def test_the_least_budget_is_enough_and_less_is_not(self):
        assert self.sizes("both", 100) is None
        source = sources(10, self.shape, torch.uint8, 0)
        operators, z = matrices("both", self.shape, 5, 0), torch.zeros(1, *self.shape)
        with pytest.raises(ValueError, match="budget: got 100 bytes, wanted at least") as caught:
            denoise(z, 1.0, *operators, source, budget=100)
        least = int(re.search(r"at least ([\d,]+)", str(caught.value))[1].replace(",", ""))
        assert error(z, 1.0, *operators, source, budget=least) < 1e-5
        with pytest.raises(ValueError, match="budget"):
            denoise(z, 1.0, *operators, source, budget=least - 1)


class TestCoverage:
    """What there are kernels for."""

    source = Source(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))

    def test_what_is_covered(self):
        for operators in (
            *(squares(kind, 8, 8, 3) for kind in SQUARES),
            *(matrices(kind, (3, 8, 8), 5, 0) for kind in MATRICES),
        ):
            assert has_kernel(*operators, self.source)
            assert not Cuda.covers(*operators, self.source, torch.device("cpu"))

    def test_what_is_not(self):
        dense = Dense(matrix(36, (8, 8), 0))
        square = Box((8, 8), 3)
        for operators in ((Ones((8, 8)),) * 2, (square, dense), (dense, square)):
            assert not has_kernel(*operators, self.source)
        large = Source(torch.zeros(1, 1, 65, 65, dtype=torch.uint8))
        assert not has_kernel(*squares("LS", 65, 65, 3), large)
        turned = Source(torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
        assert not has_kernel(square, square, turned)

    def test_an_unknown_precision_is_an_error(self):
        z = torch.zeros(1, 3, 8, 8)
        with pytest.raises(ValueError, match="precision: got 'half', wanted one of 'exact', "):
            denoise(z, 1.0, *squares("LS", 8, 8, 3), self.source, precision="half")


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
def test_a_source_on_the_gpu_fits_and_one_elsewhere_does_not():
    operators, on_cpu = squares("LS", 8, 8, 3), Source(torch.zeros(2, 3, 8, 8))
    on_gpu = Source(on_cpu.images.cuda())
    assert Cuda.covers(*operators, on_gpu, on_gpu.images.device)
    assert not Cuda.covers(*operators, on_cpu, on_gpu.images.device)
