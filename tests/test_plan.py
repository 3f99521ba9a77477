"""How the engine chooses a backend, and the compiled ones against the reference."""

import errno
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba.core import caching, config

import fpmc
from fpmc import FPMC, Source, diffusion, engine
from fpmc.engine.choices import FEW
from fpmc.engine.cpu import compiled, running_sums
from fpmc.engine.cpu.buffers import buffers
from fpmc.engine.cpu.compiled import LANES
from fpmc.engine.cpu.squares import Squares, safe
from fpmc.engine.cpu.threads import ranges
from fpmc.engine.cpu.whole_image import WholeImage
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.engine.streaming import Streaming
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import PeakMemory, collections, exact, images, matrix, relative, threads

CHANNELS = st.sampled_from([1, 2, 3])
SIDES = st.integers(1, 9)
SIZES = st.sampled_from([1, 2, 63, 64, 65, 130])
SIGMAS = st.sampled_from([0.002, 0.02, 0.3, 1.0, 5.0, 80.0])
TYPES = st.sampled_from([torch.uint8, torch.float32, torch.float64])
SEEDS = st.integers(0, 10_000)


def sources(n, shape, dtype, seed, spread=1.0):
    """n images no further than the spread from one of them, half of the time with weights."""
    x = 0.5 * images(1, shape, seed) + 0.5 * spread * images(n, shape, seed + 1)
    x = fpmc.source.to_uint8(x) if dtype == torch.uint8 else x.to(dtype)
    return Source(x, 2 + images(n, (1,), seed)[:, 0] if seed % 2 else None)


def noisy(b, source, sigma, seed):
    """Noisy versions of source images, float32."""
    return diffusion.add_noise(source[torch.arange(b) % len(source)], sigma, seed)


def squares(side_h, side_w, p, kind):
    """Q and R with squares."""
    pixels = (side_h, side_w)
    clipped = Box(pixels, p, "clip")
    return {
        "PSPC-Square": (Box(pixels, p), Box(pixels, p)),
        "LS": (clipped, Identity(pixels)),
        "clipped": (clipped, Box(pixels, min(p + 1, *pixels), "clip")),
        "single pixels": (Box(pixels, 1), Identity(pixels)),
    }[kind]


KINDS = ["PSPC-Square", "LS", "clipped", "single pixels"]


@pytest.mark.parametrize("kind", KINDS)
@given(
    c=CHANNELS, h=SIDES, w=SIDES, p=SIDES, n=SIZES, sigma=SIGMAS, dtype=TYPES, seed=SEEDS,
    cores=st.integers(1, 3), spread=st.sampled_from([1.0, 0.05]),
)  # fmt: skip
def test_squares_agree_with_the_reference(kind, c, h, w, p, n, sigma, dtype, seed, cores, spread):
    queries, responses = squares(h, w, min(p, h, w), kind)
    source = sources(n, (c, h, w), dtype, seed, spread)
    z = noisy(2, source, sigma, seed)
    assert Squares.covers(queries, responses, source, z.device)
    with threads(cores):
        answer = Squares(Problem(queries, responses, source, sigma)).answer(z)
    assert answer.dtype == torch.float32
    assert relative(answer, exact(z, sigma, queries, responses, source)) < 0.2 * tolerance(sigma)


@given(
    c=CHANNELS, h=SIDES, w=SIDES, n=SIZES, sigma=SIGMAS, dtype=TYPES, seed=SEEDS,
    cores=st.integers(1, 3), spread=st.sampled_from([1.0, 0.05]),
)  # fmt: skip
def test_the_whole_image_agrees_with_the_reference(c, h, w, n, sigma, dtype, seed, cores, spread):
    source = sources(n, (c, h, w), dtype, seed, spread)
    z = noisy(2, source, sigma, seed).double()
    ones = Ones((h, w))
    assert WholeImage.covers(ones, Ones((c, h, w)), source, z.device)
    with threads(cores):
        answer = WholeImage(Problem(ones, ones, source, sigma)).answer(z)
    assert relative(answer, exact(z, sigma, ones, ones, source)) < 1e-9


@pytest.mark.parametrize("process", ["forward", "reverse"])
@pytest.mark.parametrize(("method", "n"), [("ls", 500), ("pspc_square", 1_000), ("optimal", 2_000)])
def test_exact_on_photographs_at_every_step_of_the_sampler(photos, method, n, process):
    source = Source(photos.train[:n], dataset="cifar10")
    denoiser = getattr(fpmc.methods, method)(source)
    sigmas = diffusion.edm_sigmas(18).tolist()
    if process == "forward":
        x = fpmc.source.to_float(photos.test[:1])
        points = [(sigma, diffusion.add_noise(x, sigma, 0)) for sigma in sigmas]
    else:
        start = diffusion.initial_noise(1, source.shape, 0)
        points = [(step.sigma, step.z) for step in diffusion.steps(denoiser, start, sigmas)][:-1]
    for sigma, z in points:
        queries, responses = denoiser.operators(sigma)
        chosen = engine.plan(queries, responses, source, 1)
        assert chosen.path == ("whole image" if queries.k == 1 else "squares")
        gap = relative(denoiser(z, sigma), exact(z, sigma, queries, responses, source))
        assert gap < 0.2 * tolerance(sigma), (sigma, gap)


def test_a_tie_is_a_tie():
    """z halfway between two images: each has half of the weight, however small σ."""
    x = images(2, (3, 8, 8), 0).mul(128).round().div(128)
    z = x.mean(0, keepdim=True)
    for operators in (squares(8, 8, 3, "PSPC-Square"), squares(8, 8, 5, "LS"), (Ones((8, 8)),) * 2):
        for sigma in (0.002, 0.02, 1.0):
            torch.testing.assert_close(FPMC(*operators, Source(x))(z, sigma), z)


def test_duplicates_and_constant_images():
    pixels = (6, 6)
    constant = torch.linspace(-1, 1, 70).view(-1, 1, 1, 1).expand(-1, 3, *pixels)
    source = Source(torch.cat([constant, constant[:30]]))
    z = torch.full((1, 3, *pixels), 0.2)
    for kind in KINDS:
        queries, responses = squares(*pixels, 4, kind)
        for sigma in (0.02, 0.2, 2.0):
            answer = FPMC(queries, responses, source)(z, sigma)
            assert relative(answer, exact(z, sigma, queries, responses, source)) < 2e-6


def test_an_outlier_does_not_reach_squares_that_do_not_see_it():
    """A running sum would carry what is left of it along; such an image is streamed."""
    queries, responses = squares(9, 9, 3, "LS")
    source = Source(images(100, (1, 9, 9), 0))
    z = noisy(2, source, 0.05, 0)
    z[0, 0, 0, 0] = 1e7
    assert not safe(1e7, 0.05, queries, 1)
    chosen = engine.plan(queries, responses, source, 2, sigma=0.05, largest=1e7)
    assert (chosen.path, chosen.back) == ("streaming", "streaming")
    assert engine.plan(queries, responses, source, 2, sigma=0.05, largest=1.2).path == "squares"
    answer = FPMC(queries, responses, source)(z, 0.05)
    assert relative(answer, exact(z, 0.05, queries, responses, source)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_rounding_alone(kind):
    queries, responses = squares(12, 12, 5, kind)
    source = Source(fpmc.source.to_uint8(images(1_000, (3, 12, 12), 0)))
    for sigma in (0.05, 1.0, 20.0):
        z = noisy(3, source, sigma, 0)
        answers = []
        for cores in (1, 2, 3, 7):
            with threads(cores):
                answers.append(Squares(Problem(queries, responses, source, sigma)).answer(z))
        for answer in answers[1:]:
            assert relative(answer, answers[0]) < 1e-6


def test_threads_change_nothing_for_the_whole_image():
    source = Source(images(500, (3, 9, 9), 0))
    z = noisy(3, source, 2.0, 0).double()
    answers, ones = [], Ones((9, 9))
    for cores in (1, 2, 5):
        with threads(cores):
            answers.append(WholeImage(Problem(ones, ones, source, 2.0)).answer(z))
    for answer in answers[1:]:
        assert relative(answer, answers[0]) < 1e-13


@pytest.mark.parametrize("size", [1, 5, 64, 65, 1000])
@pytest.mark.parametrize("cores", [1, 2, 3, 50])
def test_ranges_cover_the_source_once(size, cores):
    for lanes in (1, 64):
        parts = ranges(size, cores, lanes)
        assert [n for part in parts for n in range(*part)] == list(range(size))
        assert all(begin % lanes == 0 and begin < end for begin, end in parts)
        assert len(parts) <= cores


@given(t=st.floats(-87, 0))
def test_the_exponential(t):
    t = torch.tensor(t, dtype=torch.float32)
    expected = t.double().exp().item()
    assert abs(compiled.exp(t.numpy()[()]) - expected) < 3e-7 * expected


def test_the_exponential_of_what_is_far_is_negligible():
    for t in (-87.5, -1e10, -float("inf")):
        assert 0 <= compiled.exp(torch.tensor(t).numpy()[()]) < 2e-38


def test_where_no_machine_code_can_be_kept_it_is_made_anew(monkeypatch):
    def njit(cache=False, **_):
        def decorator(function):
            if cache:
                raise RuntimeError("cannot cache function 'f': no locator available")
            return function

        return decorator

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(abs)(-1) == 1


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Compile a kernel as a new session does, whose machine code is kept in a folder of its own."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    x = images(LANES, (1, 8, 8), 0)
    own = buffers(Box((8, 8), 3), x.numpy())
    running_sums.load(x.numpy(), 0, own.tile)
    z, over = images(1, (8, 8), 1, torch.float64), running_sums.whole(own.tile)
    expected = (z[0, 0, :, None] - x[:, 0, 0].T).square()

    def compile_and_call():
        own.column[:] = 0
        enter = compiled.compiled(running_sums.enter.py_func)
        enter(z.numpy(), 0, over, own)
        torch.testing.assert_close(torch.from_numpy(own.column), expected)
        return enter.stats

    return compile_and_call


def test_where_there_is_no_space_to_keep_machine_code_there_is_an_answer(kept, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    for _ in range(2):
        assert not kept().cache_hits


def test_machine_code_of_an_older_version_is_made_anew(kept, tmp_path):
    """Its index names classes, which may have other names by now."""
    assert not kept().cache_hits
    assert kept().cache_hits
    for index in tmp_path.rglob("*.nbi"):
        index.write_bytes(index.read_bytes().replace(b"Buffers", b"Shields"))
    assert not kept().cache_hits
    assert kept().cache_hits


class TestGradients:
    """The compiled paths answer; the streaming engine goes back."""

    @pytest.mark.parametrize("kind", [*KINDS, "optimal"])
    def test_they_are_the_streaming_engine_s(self, kind):
        operators = (Ones((7, 6)),) * 2 if kind == "optimal" else squares(7, 6, 3, kind)
        source = Source(images(100, (3, 7, 6), 0))
        z, direction = noisy(2, source, 0.6, 0), images(2, (3, 7, 6), 1)
        leaf = z.clone().requires_grad_()
        answer = engine.denoise(leaf, 0.6, *operators, source)
        (ours,) = torch.autograd.grad((answer * direction).sum(), leaf)
        expected = Streaming(Problem(*operators, source, 0.6)).vjp(z, answer.detach(), direction)
        torch.testing.assert_close(ours, expected)

    @pytest.mark.parametrize("border", ["valid", "clip"])
    def test_nothing_is_read_that_was_not_written(self, border, monkeypatch):
        """Single pixels have no running sums, whose buffer is left as it comes."""
        pixel = Box((7, 6), 1, border)
        source = Source(images(100, (3, 7, 6), 0))
        z, direction = noisy(2, source, 0.6, 0), images(2, (3, 7, 6), 1)
        expected = Streaming(Problem(pixel, pixel, source, 0.6)).vjp(z, z, direction)
        empty = torch.empty

        def spoilt(*shape, **options):
            made = empty(*shape, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        squares = Squares(Problem(pixel, pixel, source, 0.6))
        monkeypatch.setattr(torch, "empty", spoilt)
        answer = squares.answer(z)
        torch.testing.assert_close(squares.vjp(z, z, direction), expected)
        assert answer.isfinite().all()


NAMES = {Squares: "squares", WholeImage: "whole image", Streaming: "streaming"}


def recorded(method, path, way, ran):
    """The method, which says that it ran."""

    def call(self, *arguments):
        ran.append((path, way))
        return method(self, *arguments)

    return call


class TestPlan:
    """What the engine chooses, and what it says of it."""

    source = Source(torch.zeros(300, 3, 8, 8, dtype=torch.uint8))

    def path(self, queries, responses, batch=4, **options):
        return engine.plan(queries, responses, self.source, batch, **options).path

    def test_structure_decides(self):
        ones, dense = Ones((8, 8)), Dense(matrix(64, (8, 8), 0))
        assert self.path(ones, ones) == "whole image"
        assert self.path(Box((8, 8), 8), Box((8, 8), 8)) == "whole image"
        for kind in KINDS:
            assert self.path(*squares(8, 8, 3, kind)) == "squares"
        assert self.path(dense, Identity((8, 8))) == "streaming"
        assert self.path(Box((8, 8), 3, "clip"), dense) == "streaming"
        assert self.path(Identity((8, 8)), Identity((8, 8))) == "streaming"

    def test_types_and_devices_decide(self, monkeypatch):
        monkeypatch.setattr(
            sys.modules["fpmc.engine.plan"], "as_device", torch.device
        )  # this machine may have no other
        operators = squares(8, 8, 3, "LS")
        assert self.path(*operators, dtype=torch.float64) == "streaming"
        assert self.path(*operators, device="meta") == "streaming"
        half = Source(torch.zeros(3, 3, 8, 8, dtype=torch.float16))
        assert engine.plan(*operators, half, 1).path == "streaming"

    @pytest.mark.parametrize("structure", ["optimal", "PSPC-Square", "LS", "dense", "mixed"])
    @pytest.mark.parametrize("batch", [2, FEW + 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("precision", ["exact", "float32"])
    @pytest.mark.parametrize("missing", ["", "numba"])
    def test_the_path_that_runs_is_the_plan_s(
        self, structure, batch, dtype, precision, missing, monkeypatch
    ):
        ran = []
        for path in (Squares, WholeImage, Streaming):
            for way in ("answer", "vjp"):
                monkeypatch.setattr(path, way, recorded(getattr(path, way), NAMES[path], way, ran))
        monkeypatch.setattr(compiled, "MISSING", missing)
        operators = collections((3, 8, 8), 0)[structure]
        source = Source(fpmc.source.to_uint8(images(70, (3, 8, 8), 0)))
        for budget in (2**19 if structure == "mixed" else 2**17, 2**30):
            z = noisy(batch, source, 0.5, 0).to(dtype).requires_grad_()
            options = {"dtype": dtype, "budget": budget, "precision": precision}
            largest = z.detach().abs().max().item()
            chosen = engine.plan(*operators, source, batch, sigma=0.5, largest=largest, **options)
            assert "numba" not in missing or chosen.path == "streaming"
            denoiser = FPMC(*operators, source, budget=budget).with_precision(precision)
            ran.clear()
            denoiser(z, 0.5).sum().backward()
            assert ran == [(chosen.path, "answer"), (chosen.back, "vjp")]

    def test_what_float32_cannot_hold_is_planned_as_it_runs(self):
        operators = (Dense(matrix(5, (8, 8), 0)),) * 2
        near, far = (
            engine.plan(*operators, self.source, 4, sigma=1.0, largest=largest, precision="float32")
            for largest in (3.0, 1e16)
        )
        assert near.flops == 0
        assert far == engine.plan(*operators, self.source, 4)

    def test_many_noisy_images_make_matrix_products_worth_while(self):
        ones = Ones((8, 8))
        assert self.path(ones, ones, batch=1_000) == "streaming"

    @pytest.mark.parametrize("batch", [1, 1_000])
    def test_a_square_as_large_as_the_image_is_the_whole_image(self, batch):
        ones, square = Ones((8, 8)), Box((8, 8), 8)
        plans = [engine.plan(op, op, self.source, batch) for op in (ones, square)]
        assert plans[0] == plans[1]

    def test_the_budget_decides(self):
        operators = squares(8, 8, 3, "PSPC-Square")
        plans = [
            engine.plan(*operators, self.source, 500, budget=budget)
            for budget in (2**15, 2**20, 2**21, 2**30)
        ]
        assert plans[0].path == "streaming"
        assert [plan.path for plan in plans[1:]] == ["squares"] * 3
        assert plans[1].b < plans[2].b < plans[3].b == 500
        assert all(plan.memory <= 2**30 for plan in plans)

    def test_too_small_a_budget_is_an_error(self):
        with pytest.raises(ValueError, match="budget: got 10 bytes, wanted at least"):
            self.path(*squares(8, 8, 3, "LS"), budget=10)

    def test_it_explains_itself(self):
        peaks = engine.Peaks(flops=1e9, flops32=2e9, bytes=1e8)
        for operators in (
            squares(8, 8, 3, "LS"),
            (Ones((8, 8)),) * 2,
            (Dense(matrix(5, (8, 8), 0)),) * 2,
        ):
            plan = engine.plan(*operators, self.source, 2)
            assert plan.seconds(peaks) == max(
                plan.flops / 1e9 + plan.flops32 / 2e9, plan.bytes / 1e8
            )
            assert plan.path in str(plan)
            assert plan.reason in str(plan)

    def test_the_cost_of_squares_hardly_depends_on_their_side(self):
        costs = [engine.plan(*squares(8, 8, p, "LS"), self.source, 2).flops for p in (1, 3, 8)]
        assert len(set(costs)) == 1


@pytest.mark.parametrize("kind", [*KINDS, "optimal"])
def test_memory_is_what_the_plan_says(kind):
    operators = (Ones((16, 16)),) * 2 if kind == "optimal" else squares(16, 16, 5, kind)
    for n, b, dtype in ((300, 4, torch.uint8), (3_000, 30, torch.uint8), (300, 4, torch.float64)):
        source = sources(n, (3, 16, 16), dtype, 0)
        z = noisy(b, source, 1.0, 0)
        plan = engine.plan(*operators, source, b, budget=2**22)
        assert plan.path != "streaming"
        with PeakMemory() as memory:
            FPMC(*operators, source, budget=2**22)(z, 1.0)
        assert plan.memory / 3 < memory.peak <= plan.memory + z.nbytes
        assert plan.memory <= 2**22


def test_the_expected_time_follows_from_the_machine_s_measured_peaks():
    source = Source(torch.zeros(20, 1, 8, 8, dtype=torch.uint8))
    peaks = engine.measure_peaks("cpu")
    for b in (1, 16):
        plan = engine.plan(Box((8, 8), 3, "clip"), Identity((8, 8)), source, b)
        arithmetic = plan.flops / peaks.flops + plan.flops32 / peaks.flops32
        expected = max(arithmetic, plan.bytes / peaks.bytes)
        assert plan.seconds(peaks) == pytest.approx(expected)
