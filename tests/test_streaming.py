"""The streaming backend: what is kept between its passes, and how precise they are."""

import pytest
import torch

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.engine.problem import Problem
from fpmc.engine.streaming import Streaming, sizes
from fpmc.operators import Box, Dense, Identity, Ones
from fpmc.source import to_float
from tests.helpers import PeakMemory, exact, images, matrix, relative

SHAPE = (3, 7, 6)
SIGMAS = [0.02, 0.1, 0.5, 2.0, 20.0]


def operators(kind, seed=0):
    """Dense Q with either kind of R."""
    h, w = SHAPE[1:]
    queries = Dense(matrix(h * w, (h, w), seed))
    return {
        "dense": (queries, Dense(matrix(h * w, (h, w), seed + 1) + 0.01)),
        "one-hot": (queries, Identity((h, w))),
        "local": (Dense(Box((h, w), 3, "clip").dense()),) * 2,
    }[kind]


def similar(n, sigma, seed=0):
    """A source of images a few σ apart."""
    base = 0.5 * images(1, SHAPE, seed)
    return Source(base + min(sigma / 3, 0.5) * images(n, SHAPE, seed + 1))


@pytest.mark.parametrize("kind", ["dense", "one-hot", "local"])
def test_answers_and_gradients_are_float64_s_whatever_is_kept(kind):
    source = similar(700, 0.3)
    z = diffusion.add_noise(source[:3], 0.3, 0)
    expected = everything(kind, source, z.double(), 2**26)
    for kept, dtype, tolerance in (
        (False, torch.float64, 1e-10),
        (False, torch.float32, 1e-5),
        (True, torch.float32, 1e-5),
    ):
        found = everything(kind, source, z.to(dtype), 2**26 if kept else 2**20)
        for ours, theirs in zip(found, expected, strict=True):
            assert relative(ours, theirs) < tolerance


def everything(kind, source, z, budget):
    """The answer, and gradients of z, Q and R if it has a matrix."""
    queries, responses = operators(kind)
    streaming = Streaming(Problem(queries, responses, source, 0.3, budget))
    size = streaming.size(len(z), z, back=True)
    assert size.kept == (budget > 2**20)
    x_hat, gradient = streaming.answer(z), images(3, SHAPE, 9).to(z)
    to_q = torch.zeros_like(queries.matrix)
    to_r = torch.zeros_like(responses.matrix) if isinstance(responses, Dense) else None
    to_z = streaming.vjp(z, x_hat, gradient, to_q, to_r)
    return [x_hat, to_z, to_q] + ([] if to_r is None else [to_r])


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_without_any_weight_add_nothing_to_gradients(channels):
    """All but the first images are far away, and lie in tiles of their own."""
    x = 0.1 * images(600, (channels, 6, 6), 0, torch.float64) - 0.9
    x[:5] += 1.8
    source, z = Source(x.clamp(-1, 1)), images(2, (channels, 6, 6), 1, torch.float64)
    q, r = (Dense(matrix(36, (6, 6), seed).requires_grad_()) for seed in (0, 1))

    def gradients(source, budget=None):
        answer = FPMC(q, r, source, budget=budget)(0.05 * z + 0.9, 0.05)
        return torch.autograd.grad(answer.square().sum(), (q.matrix, r.matrix))

    near = Source(source.images[:5])
    for ours, theirs in zip(gradients(source, 400_000), gradients(near), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_kept_is_what_saves_a_product():
    source = similar(100, 0.3)
    z = source[:2]
    for (queries, responses), forth, back in (
        (operators("dense"), True, True),
        (operators("one-hot"), False, True),
        ((Ones(SHAPE[1:]),) * 2, False, False),
        ((Box(SHAPE[1:], 3),) * 2, False, False),
    ):
        streaming = Streaming(Problem(queries, responses, source, 0.3))
        assert streaming.size(2, z, back=False).kept == forth
        assert streaming.size(2, z, back=True).kept == back


@pytest.mark.parametrize("sigma", SIGMAS)
def test_images_without_weight_may_be_left_out_of_the_mix(sigma):
    """At low noise the second pass sees few images; the answer is the reference's."""
    queries, responses = operators("dense")
    source = Source(images(300, SHAPE, 0))
    z = diffusion.add_noise(source[:2], sigma, 0)
    answer = Streaming(Problem(queries, responses, source, sigma)).answer(z)
    assert relative(answer, exact(z, sigma, queries, responses, source)) < 1e-6


class TestPrecision:
    """Exact unless asked otherwise by name."""

    def test_exact_is_the_default(self, photos):
        denoiser, z = self.dense(photos)
        assert denoiser.precision == "exact"
        assert torch.equal(denoiser(z, 0.5), denoiser.with_precision("exact")(z, 0.5))
        assert denoiser.with_precision("float32").precision == "float32"
        assert denoiser.precision == "exact"

    @pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
    def test_on_a_cpu_the_error_is_float32_s(self, photos, precision):
        denoiser, x = self.dense(photos)
        for sigma in SIGMAS:
            z = diffusion.add_noise(x, sigma, 0)
            answer = denoiser.with_precision(precision)(z, sigma)
            assert 0 < relative(answer, denoiser(z.double(), sigma)) < 1e-4

    def test_gradients_stay_exact(self, photos):
        denoiser, z = self.dense(photos)
        slopes = []
        for precision in ("exact", "float32"):
            leaf = z.clone().requires_grad_()
            denoiser.with_precision(precision)(leaf, 0.5).sum().backward()
            slopes.append(leaf.grad)
        assert relative(*slopes) < 1e-5

    def test_unknown_names_are_an_error(self, photos):
        denoiser, _ = self.dense(photos)
        with pytest.raises(ValueError, match="precision: got 'half', wanted one of exact, float32"):
            denoiser.with_precision("half")

    @staticmethod
    def dense(photos):
        """Squares of 7 pixels, as if they were any matrix; a noisy image."""
        masks = Dense(Box((16, 16), 7, "clip").dense())
        return FPMC(masks, masks, Source(photos.train[:500])), to_float(photos.test[:1])


@pytest.mark.parametrize("kind", ["squares", "optimal"])
def test_compiled_paths_go_back_within_the_budget(kind):
    pixels, budget = (16, 16), 2**21
    op = Ones(pixels) if kind == "optimal" else Box(pixels, 5)
    source = Source(fpmc.source.to_uint8(images(500, (3, *pixels), 0)))
    z = diffusion.add_noise(source[:20], 1.0, 0).requires_grad_()
    answer = FPMC(op, op, source, budget=budget)(z, 1.0)
    with PeakMemory() as memory:
        answer.backward(torch.ones_like(answer))
    assert budget / 20 < memory.peak <= budget + 3 * z.nbytes


def test_products_take_a_budget_s_worth_of_pairs():
    """Tiles with what is kept are never so small that products crawl."""
    for b in (1, 8, 64):
        size = sizes.tile(b, 50_000, (3, 32, 32), operators("dense"), keep=4)
        assert size.b * size.n >= sizes.FEWEST_PAIRS
