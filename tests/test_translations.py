"""The paths of translated sources: their choice, exactness, memory and gradients."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion, engine
from fpmc.engine.cpu import compiled
from fpmc.engine.cpu.displacements import Displacements
from fpmc.engine.cpu.squares import Squares
from fpmc.engine.cuda.patches import covers
from fpmc.engine.precision import tolerance
from fpmc.engine.problem import Problem
from fpmc.engine.run import backend
from fpmc.engine.streaming import Streaming
from fpmc.engine.streaming.orbit import Orbit
from fpmc.engine.streaming.regions import boundary_classes
from fpmc.engine.streaming.translations import Translations, sizes
from fpmc.equivariant import Equivariant
from fpmc.operators import Box, Identity, Ones
from fpmc.source import union
from tests.helpers import PeakMemory, images, relative, threads
from tests.test_plan import noisy, recorded, sources
from tests.test_score_machines import local_machine

PIXELS = (8, 8)


def patches(h, w, p):
    """Q and R of ELS."""
    return Box((h, w), p, "clip"), Identity((h, w))


def els(source, p, **options):
    return Equivariant(lambda sigma: p, source, **options)


@given(
    c=st.sampled_from([1, 2, 3]), h=st.integers(1, 7), w=st.integers(1, 7), p=st.integers(1, 7),
    n=st.sampled_from([1, 3, 65]), sigma=st.sampled_from([0.002, 0.02, 0.3, 1.0, 5.0, 80.0]),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]), seed=st.integers(0, 999),
    cores=st.integers(1, 4), spread=st.sampled_from([1.0, 0.05]),
)  # fmt: skip
def test_displacements_agree_with_the_definition(c, h, w, p, n, sigma, dtype, seed, cores, spread):
    """ELS with its translated data set written out, for all shapes, borders, types and weights."""
    p = min(p, h, w)
    source = sources(n, (c, h, w), dtype, seed, spread)
    z = noisy(1, source, sigma, seed)
    with threads(cores):
        answer = Displacements(Problem(*patches(h, w, p), source, sigma, translated=True)).answer(z)
    assert answer.dtype == torch.float32
    x = source.read(slice(None), torch.float64)
    expected = local_machine(z.double(), sigma, x, p, True, source.log_weights)
    assert relative(answer, expected) < 0.2 * tolerance(sigma)


@pytest.mark.parametrize("process", ["forward", "reverse"])
def test_exact_on_photographs_at_every_step_of_the_sampler(photos, process):
    source = Source(photos.train[:80])
    denoiser, sigmas = fpmc.methods.els(source, "cifar10"), diffusion.edm_sigmas(9).tolist()
    if process == "forward":
        x = fpmc.source.to_float(photos.test[:1])
        points = [(sigma, diffusion.add_noise(x, sigma, 0)) for sigma in sigmas]
    else:
        start = diffusion.initial_noise(1, source.shape, 0)
        points = [(step.sigma, step.z) for step in diffusion.steps(denoiser, start, sigmas)][:-1]
    for sigma, z in points:
        gap = relative(denoiser(z, sigma), denoiser(z.double(), sigma))
        assert gap < 0.2 * tolerance(sigma), (sigma, gap)


@pytest.mark.parametrize("p", [1, 4, 7, 12])
def test_chunks_change_no_bit_and_threads_rounding_alone(p):
    source = Source(fpmc.source.to_uint8(images(150, (3, 12, 12), 0)))
    z = noisy(3, source, 1.0, 0)
    problem = Problem(*patches(12, 12, p), source, 1.0, translated=True)
    whole = Displacements(problem).answer(z)
    single = [Displacements(problem).answer(part) for part in z.split(1)]
    assert torch.equal(torch.cat(single), whole)
    for cores in (1, 2, 3, 7):
        with threads(cores):
            assert relative(Displacements(problem).answer(z), whole) < 1e-6


@pytest.mark.parametrize("p", [3, 7])
@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_parts_of_a_union_are_read_as_one_source(p, stored):
    """With a part that is left out, and two whose images do not fill their tiles."""
    x = images(150, (3, 7, 7), 0)
    x = fpmc.source.to_uint8(x) if stored == torch.uint8 else x
    ours = union(*(Source(part.clone()) for part in x.split([9, 70, 71]))).without(range(9))
    theirs = Source(x).without(range(9))
    z, direction = noisy(2, theirs, 0.7, 0), images(2, (3, 7, 7), 1)
    for cores in (1, 3):
        found = []
        for source in (ours, theirs):
            path = Displacements(Problem(*patches(7, 7, p), source, 0.7, translated=True))
            with threads(cores):
                answer = path.answer(z)
                found.append((answer, path.vjp(z, answer, direction)))
        assert relative(found[0][0], found[1][0]) < 1e-6
        assert relative(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize("p", [2, 5, 8])
@pytest.mark.parametrize("cores", [1, 3])
def test_the_budget_is_kept_there_and_back(p, cores):
    source = Source(fpmc.source.to_uint8(images(100, (3, *PIXELS), 0)))
    z = noisy(5, source, 0.5, 0)
    for budget in (2**18, 2**19, 2**21, 2**24):
        with threads(cores):
            problem = Problem(*patches(*PIXELS, p), source, 0.5, budget, translated=True)
            path = Displacements(problem)
            with PeakMemory() as memory:
                answer = path.answer(z)
            kept = sum(norm.nbytes for norm in path.log_norms)
            assert memory.peak <= budget + answer.nbytes + kept
            if path.fit(len(z), back=True):
                with PeakMemory() as memory:
                    path.vjp(z, answer, z)
                assert memory.peak <= budget + answer.nbytes + kept


@pytest.mark.parametrize("p", [3, 8, None])
@pytest.mark.parametrize("budget", [2**19, 2**21])
def test_the_budget_is_kept_by_what_is_not_compiled(p, budget):
    source = Source(fpmc.source.to_uint8(images(40, (3, *PIXELS), 0)))
    z = noisy(5, source, 0.5, 0).double()
    denoiser = Equivariant(None if p is None else lambda sigma: p, source, budget=budget)
    leaf = z.clone().requires_grad_()
    answer = denoiser(leaf, 0.5)
    with PeakMemory() as memory:
        torch.autograd.grad(answer, leaf, z)
    assert memory.peak <= budget + 4 * answer.nbytes


@pytest.mark.sweep
@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 4, 6)])
@pytest.mark.parametrize("p", [1, 2, 3, 4, None])
def test_gradients_are_those_of_finite_differences(shape, p):
    x = images(3, shape, 0, torch.float64)
    denoiser = Equivariant(None if p is None else lambda sigma: p, Source(x))
    z = diffusion.add_noise(x[:2], 0.7, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: denoiser(z, 0.7), (z,))


@given(
    c=st.sampled_from([1, 3]), h=st.integers(1, 9), w=st.integers(1, 9), p=st.integers(1, 9),
    n=st.sampled_from([1, 20, 130]), sigma=st.sampled_from([0.05, 0.6, 4.0]),
    seed=st.integers(0, 999), cores=st.integers(1, 3),
)  # fmt: skip
def test_displacements_go_back_as_products_do(c, h, w, p, n, sigma, seed, cores):
    denoiser = els(sources(n, (c, h, w), torch.uint8, seed), min(p, h, w))
    z, direction = noisy(2, denoiser.source, sigma, seed), images(2, (c, h, w), seed)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = z.to(dtype).requires_grad_()
        with threads(cores):
            answer = denoiser(leaf, sigma)
            gradients += torch.autograd.grad(answer, leaf, direction.to(dtype))
    scale = 1e-5 * max(gradients[1].norm().item(), 1e-2 / sigma)
    assert (gradients[0] - gradients[1]).norm() < scale


@pytest.mark.parametrize(("c", "p", "budget"), [(3, 3, 86_000), (1, 4, 53_000)])
def test_products_go_back_where_displacements_alone_would_fit(c, p, budget):
    source = sources(70, (c, *PIXELS), torch.uint8, 0)
    chosen = engine.plan(*patches(*PIXELS, p), source, 2, translated=True, budget=budget)
    assert (chosen.path, chosen.back) == ("displacements", "translations")
    z = noisy(2, source, 0.5, 0).requires_grad_()
    direction = images(2, (c, *PIXELS), 1)
    found, wanted = (
        torch.autograd.grad((els(source, p, budget=size)(z, 0.5) * direction).sum(), z)[0]
        for size in (budget, None)
    )
    assert relative(found, wanted) < 1e-5


class TestPatches:
    """The CUDA kernel, on a GPU if there is one, or in Triton's interpreter."""

    home = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.fixture(autouse=True)
    def triton(self):
        return pytest.importorskip("triton", reason="there is no Triton for this system")

    def answer(self, z, problem):
        asked = replace(problem, source=problem.source.to(self.home))
        return backend("patches", asked).answer(z.to(self.home)).cpu()

    @settings(max_examples=settings().max_examples // 2)  # an interpreter is slow
    @given(
        c=st.sampled_from([1, 2, 3]), h=st.integers(1, 5), w=st.integers(1, 5), p=st.integers(1, 5),
        n=st.sampled_from([1, 3]), sigma=st.sampled_from([0.002, 0.02, 0.3, 1.0, 5.0, 80.0]),
        dtype=st.sampled_from([torch.uint8, torch.float32]), seed=st.integers(0, 999),
        spread=st.sampled_from([1.0, 0.05]),
    )  # fmt: skip
    def test_they_agree_with_the_definition(self, c, h, w, p, n, sigma, dtype, seed, spread):
        p = min(p, h, w)
        source = sources(n, (c, h, w), dtype, seed, spread)
        z = noisy(2, source, sigma, seed)
        answer = self.answer(z, Problem(*patches(h, w, p), source, sigma, translated=True))
        assert answer.dtype == torch.float32
        x = source.read(slice(None), torch.float64)
        expected = local_machine(z.double(), sigma, x, p, True, source.log_weights)
        assert relative(answer, expected) < 0.2 * tolerance(sigma)

    def test_parts_of_the_source_and_of_the_batch_do_not_matter(self, monkeypatch):
        """Rows and columns that fill no tile, several splits, several noisy images at a time."""
        source = sources(5, (2, 6, 5), torch.uint8, 1)
        z = noisy(3, source, 0.5, 0)
        problem = Problem(*patches(6, 5, 2), source, 0.5, translated=True)
        whole = self.answer(z, problem)
        monkeypatch.setattr("fpmc.engine.cuda.patches.PROGRAMS", 1)
        one_split = self.answer(z, problem)
        small = self.answer(z, replace(problem, budget=60_000))
        assert relative(one_split, whole) < 2e-7
        assert relative(small, whole) < 2e-7

    def test_the_budget_is_kept(self):
        source = sources(3, (2, 6, 5), torch.uint8, 1)
        z = noisy(3, source, 0.5, 0)
        middle = next(boundary_classes(6, 5, 3))
        for budget in (2**17, 2**18):
            problem = Problem(*patches(6, 5, 3), source, 0.5, budget, translated=True)
            size = sizes(problem, 3, middle, self.home, back=False, fused=True)
            assert size.rows == size.b * middle.places
            with PeakMemory() as memory:
                self.answer(z, problem)
            assert memory.peak <= budget + 2 * z.nbytes

    def test_a_plan_has_them_on_cuda_alone_and_not_for_float64(self, monkeypatch):
        assert not covers(torch.device("cpu"), torch.float32)
        assert covers(torch.device("cuda"), torch.float32)
        assert not covers(torch.device("cuda"), torch.float64)
        source = sources(6, (2, 6, 5), torch.float16, 0)  # which is not compiled on a CPU
        z = noisy(2, source, 0.5, 0).requires_grad_()
        denoiser = els(source, 3)
        (wanted,) = torch.autograd.grad(denoiser(z, 0.5).sum(), z)
        monkeypatch.setattr("fpmc.engine.cuda.patches.covers", lambda *where: True)
        chosen = engine.plan(*patches(6, 5, 3), source, 2, translated=True)
        assert (chosen.path, chosen.back) == ("patches", "patches")
        least = engine.plan(*patches(6, 5, 3), source, 2, translated=True, budget=40_000)
        assert least.path == "translations"
        assert "budget" in least.reason
        ran = []
        monkeypatch.setattr(Translations, "answer", recorded(Translations.answer, "", "", ran))
        answer = denoiser(z, 0.5)
        (found,) = torch.autograd.grad(answer.sum(), z)
        assert ran
        assert relative(found, wanted) < 1e-5


def test_single_pixels_and_no_overlap_beyond_the_square():
    """With p = 1 every pixel sees every place; with p as the image's side, ELS is LS."""
    source = Source(images(70, (1, *PIXELS), 0))
    z = noisy(2, source, 0.4, 0)
    everywhere = source.images.flatten()
    weights = torch.softmax(-((z.flatten()[:, None] - everywhere) ** 2) / (2 * 0.4**2), 1)
    assert relative(els(source, 1)(z, 0.4), (weights @ everywhere).view_as(z)) < 1e-5
    assert relative(els(source, 8)(z, 0.4), fpmc.methods.ls(source, 8)(z, 0.4)) < 1e-6


@pytest.mark.parametrize("p", [1, 3, 4, 6, None])
@pytest.mark.parametrize("pixel", [(0, 0), (0, 3), (3, 5), (3, 3), (6, 2)])
def test_the_heaviest_places_make_up_the_answer(p, pixel):
    """All of them together are the answer's pixel; the first few are the largest."""
    source = Source(images(5, (3, 7, 6), 0), range(1, 6))
    z = noisy(2, source, 0.5, 3)
    denoiser = Equivariant(None if p is None else lambda _: p, source)
    posterior = denoiser.posterior(z, 0.5)
    with pytest.raises(ValueError, match="n: got 10000, wanted between 1 and") as caught:
        posterior.top(10_000, pixel)
    n = int(str(caught.value).split()[-1])
    found = posterior.top(n, pixel)
    assert torch.equal(found.weights, found.weights.sort(descending=True).values)
    values = source.images[found.images, :, found.rows, found.columns].double()
    mean = (found.weights[..., None] * values).sum(1)
    assert relative(mean, denoiser(z.double(), 0.5)[..., pixel[0], pixel[1]]) < 1e-9
    few = posterior.top(3, pixel)
    assert all(torch.equal(ours[:, :3], theirs) for ours, theirs in zip(found, few, strict=True))


@pytest.mark.usefixtures("as_users_do")
def test_pixels_that_are_none_are_named():
    posterior = els(Source(images(5, (1, *PIXELS), 0)), 3).posterior(images(1, (1, *PIXELS), 0), 1)
    with pytest.raises(TypeError, match="pixel: got 3, wanted a row and a column"):
        posterior.top(1, 3)
    with pytest.raises(ValueError, match="pixel's column: got 8, wanted between 0 and 7"):
        posterior.top(1, (0, 8))


class TestPlan:
    """What the engine chooses where the source is translated."""

    source = Source(fpmc.source.to_uint8(images(70, (3, *PIXELS), 0)))

    def plan(self, p=3, batch=2, source=None, **options):
        operators = (Ones(PIXELS),) * 2 if p is None else patches(*PIXELS, p)
        return engine.plan(*operators, source or self.source, batch, translated=True, **options)

    def test_structure_types_and_sizes_decide(self):
        assert (self.plan().path, self.plan().back) == ("displacements",) * 2
        assert (self.plan(None).path, self.plan(None).back) == ("orbit",) * 2
        for options in (
            {"dtype": torch.float64},
            {"p": 7, "budget": 45_000},
            {"sigma": 0.05, "largest": 1e7},
            {"source": Source(torch.zeros(3, 3, *PIXELS, dtype=torch.float16))},
        ):
            assert (self.plan(**options).path, self.plan(**options).back) == ("translations",) * 2

    def test_squares_that_cannot_move_are_those_of_ls(self):
        """As many displacements as one are not worth a path of their own."""
        assert self.plan(8).path == "squares"
        assert self.plan(8, dtype=torch.float64).path == "streaming"
        tall = Source(fpmc.source.to_uint8(images(70, (3, 9, 8), 0)))
        assert engine.plan(*patches(9, 8, 8), tall, 2, translated=True).path == "displacements"

    @pytest.mark.parametrize("p", [1, 3, 8, None])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("budget", [2**17, 2**18, 2**30])
    @pytest.mark.parametrize("missing", ["", "numba"])
    def test_the_path_that_runs_is_the_plan_s(self, p, dtype, budget, missing, monkeypatch):
        ran = []
        named = {"displacements": Displacements, "translations": Translations, "orbit": Orbit}
        named |= {"squares": Squares, "streaming": Streaming} if p == 8 else {}
        for (name, path), way in itertools.product(named.items(), ("answer", "vjp")):
            monkeypatch.setattr(path, way, recorded(getattr(path, way), name, way, ran))
        monkeypatch.setattr(compiled, "MISSING", missing)
        z = noisy(2, self.source, 0.5, 0).to(dtype).requires_grad_()
        chosen = self.plan(p, dtype=dtype, budget=budget)
        denoiser = Equivariant(None if p is None else lambda _: p, self.source, budget=budget)
        answer = denoiser(z, 0.5)
        answer.sum().backward()
        assert ran == [(chosen.path, "answer"), (chosen.back, "vjp")]
        if missing and p:
            assert chosen.path == ("streaming" if p == 8 else "translations")
            if dtype == torch.float32:
                assert missing in chosen.reason
        full = Equivariant(None if p is None else lambda _: p, self.source)(z.double(), 0.5)
        assert relative(answer.detach(), full.detach()) < (1e-6 if dtype == torch.float32 else 1e-9)

    def test_it_says_what_a_call_takes(self):
        chosen = self.plan()
        assert chosen.memory <= 2**30
        assert chosen.seconds(engine.Peaks(1e9, 1e9, 1e9)) > 0
        more = [self.plan(p).flops + self.plan(p).flops32 for p in range(1, 9)]
        assert more == sorted(more, reverse=True)

    @pytest.mark.usefixtures("as_users_do")
    def test_what_cannot_be_translated_is_named(self):
        for operators in ((Box(PIXELS, 3),) * 2, (Identity(PIXELS),) * 2):
            with pytest.raises(ValueError, match=r"translated: got True for .*, wanted clipped"):
                engine.plan(*operators, self.source, 1, translated=True)


def test_an_outlier_does_not_reach_squares_that_do_not_see_it():
    source = Source(images(20, (1, *PIXELS), 0))
    z = noisy(1, source, 0.05, 0)
    z[0, 0, 0, 0] = 1e7
    answer = els(source, 3)(z, 0.05)
    assert relative(answer[..., 4:, 4:], els(source, 3)(z.double(), 0.05)[..., 4:, 4:]) < 1e-6


def test_nothing_is_read_that_was_not_written(monkeypatch):
    source = Source(images(70, (3, 7, 6), 0))
    z, direction = noisy(2, source, 0.6, 0), images(2, (3, 7, 6), 1)
    empty = torch.empty

    def spoilt(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    for p in (1, 4):
        path = Displacements(Problem(*patches(7, 6, p), source, 0.6, translated=True))
        answer = path.answer(z)
        expected = answer, path.vjp(z, answer, direction)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", spoilt)
            found = path.answer(z), path.vjp(z, answer, direction)
        assert all(map(torch.equal, found, expected))
