"""What every analytical denoiser has in common: gradients or an error, autocast, pickle, limits."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import fpmc
from fpmc import Source, methods, networks
from fpmc.diffusion import add_noise
from fpmc.engine import plan
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import images, matrix

SHAPE = (2, 5, 5)
MAPS = {s: matrix(25, (5, 5), seed).float() + 0.1 for seed, s in enumerate((0.1, 10.0))}
MAPS = {sigma: maps / maps.sum((1, 2), keepdim=True) for sigma, maps in MAPS.items()}

ALL = {
    "optimal": methods.optimal,
    "PSPC-Square": lambda source: methods.pspc_square(source, {0.1: 3, 10.0: 5}),
    "PSPC-Flex": lambda source: methods.pspc_flex(source, MAPS, {0.1: 0.5, 10.0: 1.0}),
    "LS": lambda source: methods.ls(source, 3),
    "ELS": lambda source: methods.els(source, "cifar10"),
    "ES": methods.es,
    "Lukoianov": lambda source: methods.lukoianov(source, 0.3),
    "Wiener": methods.wiener,
}


@pytest.fixture(params=ALL)
def denoiser(request):
    return ALL[request.param](Source(images(12, SHAPE, 0), range(1, 13)))


@pytest.fixture(params=[*ALL, "network"])
def any_denoiser(request):
    """Each analytical denoiser, and a network that was never trained."""
    if request.param != "network":
        return ALL[request.param](Source(images(12, SHAPE, 0), range(1, 13)))
    return networks.Preconditioned(Small(), SHAPE)


class Small(torch.nn.Module):
    """A network of one layer, to which it adds the noise level."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, z, condition):
        return self.layer(z) + condition.view(-1, 1, 1, 1)


@pytest.fixture
def x():
    return images(3, SHAPE, 1)


CALLS = {
    "int": lambda s: int(s) or 1,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "0-d float32": torch.tensor,
    "0-d float64": lambda s: torch.tensor(s, dtype=torch.float64),
    "0-d bfloat16": lambda s: torch.tensor(s, dtype=torch.bfloat16),
    "0-d array": np.array,
    "(1,)": lambda s: torch.tensor([s]),
    "(1, 1, 1, 1)": lambda s: torch.full((1, 1, 1, 1), s),
    "(b,)": lambda s: torch.full((3,), s),
    "(b,) float64": lambda s: torch.full((3,), s, dtype=torch.float64),
    "(b,) array": lambda s: np.full(3, s, np.float32),
    "(b, 1, 1, 1)": lambda s: torch.full((3, 1, 1, 1), s),
    "(b,) whole numbers": lambda s: torch.full((3,), int(s) or 1),
}


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize("call", CALLS)
def test_a_noise_level_may_come_as_any_package_gives_it(any_denoiser, x, call):
    sigma = CALLS[call](0.75)
    level = torch.as_tensor(sigma).flatten()[0].item()
    plain = any_denoiser(x, level)
    for answer in (
        any_denoiser(x, sigma),
        any_denoiser(x, sigma, None),
        any_denoiser(x, sigma, class_labels=None),
    ):
        assert torch.equal(answer, plain)


@pytest.mark.usefixtures("as_users_do")
def test_images_of_several_noise_levels_are_answered_by_level_in_their_places(any_denoiser, x):
    x, levels = torch.cat([x, x[:1] / 2]), [2.0, 0.25, 2.0, 0.5]
    apart, gradients = [], []
    for i, sigma in enumerate(levels):
        alone = x[[i]].requires_grad_()
        apart.append(any_denoiser(alone, sigma))
        gradients += torch.autograd.grad(apart[-1].square().sum(), alone)
    for shape in ((4,), (4, 1, 1, 1)):
        leaf = x.clone().requires_grad_()
        answer = any_denoiser(leaf, torch.tensor(levels).view(shape))
        torch.testing.assert_close(answer, torch.cat(apart))
        answer.square().sum().backward()
        torch.testing.assert_close(leaf.grad, torch.cat(gradients))


def test_images_of_one_noise_level_are_answered_at_once(x):
    denoiser, calls = methods.optimal(Source(images(12, SHAPE, 0))), []
    alone = denoiser._answer
    denoiser._answer = lambda z, sigma: (calls.append(len(z)), alone(z, sigma))[1]
    denoiser(x, torch.full((3,), 0.5))
    denoiser(x, torch.tensor([0.5, 1.0, 0.5]))
    assert calls == [3, 2, 1]


@pytest.mark.usefixtures("as_users_do")
def test_no_images_have_an_empty_answer(any_denoiser, x):
    for sigma in (1.0, torch.tensor(1.0), torch.ones(0), torch.ones(0, 1, 1, 1), torch.ones(1)):
        z = x[:0].requires_grad_()
        answer = any_denoiser(z, sigma)
        assert answer.shape == z.shape
        assert answer.dtype == z.dtype
        answer.sum().backward()
    with pytest.raises(ValueError, match=r"z: got shape \(0, 2, 5, 4\), wanted \(b, 2, 5, 5\)"):
        any_denoiser(torch.zeros(0, 2, 5, 4), 1.0)
    with pytest.raises(ValueError, match="sigma: got 0"):
        any_denoiser(x[:0], 0)


@pytest.mark.usefixtures("as_users_do")
def test_class_labels_are_refused_and_wrong_numbers_of_levels_named(any_denoiser, x):
    with pytest.raises(ValueError, match=r"class_labels: got torch.int64, wanted None"):
        any_denoiser(x, 1.0, torch.zeros(3, dtype=torch.int64))
    for shape in ((2,), (3, 1), (1, 3), (3, 1, 1), (3, 2, 5, 5)):
        with pytest.raises(ValueError, match=r"sigma: got shape .*, wanted one noise level, or"):
            any_denoiser(x, torch.ones(shape))
    with pytest.raises(ValueError, match=r"sigma: got 0.0, wanted a positive number"):
        any_denoiser(x, torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="sigma: got a tensor that requires gradients"):
        any_denoiser(x, torch.ones(3, requires_grad=True))


def test_what_samplers_read_of_a_denoiser(any_denoiser, x):
    low, high = any_denoiser.sigma_min, any_denoiser.sigma_max
    assert 0 < low < 1e-20
    assert 1e10 < high < math.inf
    for sigma in (1.1 * low, 0.9 * high):
        assert any_denoiser(x.double() * sigma, sigma).isfinite().all()
    for sigma in (0.3, torch.tensor(0.3, dtype=torch.float64), torch.linspace(1, 2, 5)):
        rounded = any_denoiser.round_sigma(sigma)
        assert torch.equal(rounded, torch.as_tensor(sigma))
        assert rounded.dtype == torch.as_tensor(sigma).dtype
    assert any_denoiser.shape == SHAPE


def test_a_denoiser_moves_to_a_device(any_denoiser, x, device):
    plain = any_denoiser(x, 0.7)
    moved = any_denoiser.to(device)
    torch.testing.assert_close(moved(x.to(device), 0.7).cpu(), plain)
    if not isinstance(any_denoiser, torch.nn.Module):
        assert type(moved) is type(any_denoiser)
        assert moved is not any_denoiser
        with pytest.raises(ValueError, match="device: got 'nowhere', which cannot be used"):
            any_denoiser.to("nowhere")


def test_a_copy_by_pickle_gives_the_same_answers(denoiser, x):
    for other in (pickle.loads(pickle.dumps(denoiser)), copy.deepcopy(denoiser)):
        for sigma in (0.1, 1.0, 10.0):
            z = add_noise(x, sigma, 0)
            assert torch.equal(other(z, sigma), denoiser(z, sigma))


def test_autocast_does_not_change_answers_or_gradients(denoiser, x):
    def ask(leaf):
        answer = denoiser(leaf, 0.7)
        answer.square().sum().backward()
        return answer.detach(), leaf.grad

    z = add_noise(x, 0.7, 0)
    plain = ask(z.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        cast = ask(z.clone().requires_grad_())
    assert torch.equal(plain[0], cast[0])
    if plain[1] is not None:
        assert torch.equal(plain[1], cast[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_are_finite_at_every_noise_level_and_distance(denoiser, x, dtype):
    x = x.to(dtype)
    for sigma in (1e-90, 1e-30, 1e-9, 1e9, 1e30):
        assert denoiser(x, sigma).isfinite().all()
    assert denoiser(1e7 * x, 0.002).isfinite().all()


@pytest.mark.parametrize("sigma", [1e-30, 1e-21, 1e21, 1e30])
def test_what_float32_does_not_hold_is_exact_in_any_precision(sigma, x):
    for name in ("LS", "PSPC-Flex", "Lukoianov"):
        denoiser = ALL[name](Source(images(12, SHAPE, 0), range(1, 13)))
        fast = denoiser.with_precision("float32")
        for z in (x, x * max(sigma, 1.0)):
            torch.testing.assert_close(fast(z, sigma), denoiser(z, sigma))


def test_without_noise_the_optimal_denoiser_answers_with_the_nearest_image(x):
    source = Source(images(12, SHAPE, 0))
    nearest = torch.cdist(x.flatten(1).double(), source[:].flatten(1).double()).argmin(1)
    for sigma in (1e-9, 1e-60):
        assert torch.equal(methods.optimal(source)(x, sigma), source[nearest])


def test_distances_and_numbers_of_images_do_not_overflow_in_half_precision():
    source, ones = Source(torch.zeros(70_000, 1, 1, 1)), Ones((1, 1))
    z = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)
    assert fpmc.FPMC(ones, ones, source).posterior(z, 1.0).effective_number().item() > 69_999
    assert fpmc.metrics.nearest(z, source)[0].item() == 300


def no_gradient(value, leaf):
    with pytest.raises(RuntimeError, match="not differentiable, got a call for its gradient"):
        (leaf.sum() + value.sum()).backward()


@pytest.mark.parametrize("ask", ["weights", "mean", "effective_number"])
@pytest.mark.parametrize("of", ["z", "matrix"])
def test_posteriors_have_no_gradients(ask, of, x):
    op = Dense(matrix(4, SHAPE[1:], 0) + 0.1)
    leaf = {"z": x, "matrix": op.matrix}[of].requires_grad_()
    denoiser = fpmc.FPMC(op, op, Source(images(12, SHAPE, 0)))
    found = getattr(denoiser.posterior(x, 1.0), ask)
    no_gradient(found(), leaf)


def test_what_was_asked_in_inference_mode_can_be_differentiated_later(denoiser, x):
    with torch.inference_mode():
        inside = denoiser(x, 0.7)
        made = methods.wiener(Source(images(12, SHAPE, 0)))
    assert torch.equal(inside, denoiser(x, 0.7))
    for each in (made, denoiser):
        leaf = x.clone().requires_grad_()
        each(leaf, 0.7).sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.usefixtures("as_users_do")
def test_a_noise_level_that_requires_gradients_is_an_error(denoiser, x):
    sigma = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match="sigma: got a tensor that requires gradients"):
        denoiser(x, sigma)
    with torch.no_grad():
        assert torch.equal(denoiser(x, sigma), denoiser(x, 1.0))


@pytest.mark.usefixtures("as_users_do")
def test_what_is_no_gaussian_and_no_schedule_is_named():
    source = Source(images(2, SHAPE, 0))
    with pytest.raises(TypeError, match="gaussian: got str"):
        methods.lukoianov(source, 0.1, gaussian="x")
    with pytest.raises(TypeError, match="patch_sizes: got 5, wanted a function of sigma"):
        fpmc.equivariant.Equivariant(5, source)


@pytest.mark.usefixtures("as_users_do")
def test_a_plan_is_refused_for_devices_and_sources_that_are_none():
    source, ones = Source(images(2, SHAPE, 0)), Ones((5, 5))
    with pytest.raises(ValueError, match="device: got 'meta', whose tensors hold no values"):
        plan(ones, ones, source, 1, device="meta")
    with pytest.raises(ValueError, match="device: got 'nowhere', which cannot be used"):
        plan(ones, ones, source, 1, device="nowhere")
    with pytest.raises(TypeError, match="source: got Tensor"):
        plan(ones, ones, source.images, 1)


@pytest.mark.parametrize(
    ("queries", "responses", "says"),
    [
        (Box((5, 5), 3), Identity((5, 5)), "responses: got 25 estimators, wanted 9"),
        (Ones((4, 4)), Ones((5, 5)), "queries: got Ones"),
        (Ones((5, 5)), Ones((3, 5, 5)), "responses: got Ones"),
    ],
)
def test_a_plan_is_refused_for_operators_that_a_call_refuses(queries, responses, says):
    source = Source(images(2, SHAPE, 0))
    with pytest.raises(ValueError, match=says):
        plan(queries, responses, source, 1)
    with pytest.raises(ValueError, match=says):
        fpmc.FPMC(queries, responses, source)(images(1, SHAPE, 1), 1.0)


def test_modules_that_are_imported_later_are_attributes_of_the_package():
    for name in ("kernels", "plotting", "results", "widths"):
        assert getattr(fpmc, name).__name__ == f"fpmc.{name}"
    with pytest.raises(AttributeError, match="module 'fpmc' has no attribute 'plots'"):
        _ = fpmc.plots
