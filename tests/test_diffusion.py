"""Noise levels, the forward process, Tweedie's formula and the sampler."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fpmc
from fpmc import Source, diffusion
from fpmc.source import to_float, to_uint8
from tests.helpers import images

VARIANCE = torch.linspace(0.01, 1, 32, dtype=torch.float64).view(1, 2, 4, 4)


def gaussian(z, sigma):
    """The posterior mean for independent Gaussian data."""
    return VARIANCE / (VARIANCE + sigma**2) * z


@given(st.integers(2, 60), st.floats(1e-3, 0.1), st.floats(1, 100), st.floats(0.5, 10))
def test_noise_levels_fall_from_the_highest_to_the_lowest(n, low, high, rho):
    sigmas = diffusion.edm_sigmas(n, low, high, rho)
    assert sigmas.shape == (n,)
    assert sigmas[0] == high
    assert sigmas[-1] == low
    assert (sigmas.diff() < 0).all()
    roots = sigmas ** (1 / rho)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(n - 1))


def test_eighteen_steps_are_thirty_five_evaluations():
    for n, evaluations in ((18, 35), (40, 79)):
        calls = []

        def counted(z, sigma, calls=calls):
            calls.append(sigma)
            return gaussian(z, sigma)

        diffusion.sample(counted, 80 * torch.ones_like(VARIANCE), diffusion.edm_sigmas(n))
        assert len(calls) == evaluations


def test_heun_converges_at_second_order_to_the_known_solution():
    start = 80 * torch.ones_like(VARIANCE)
    errors = []
    for n in (40, 80, 160, 320):
        *_, last, _ = diffusion.steps(gaussian, start, diffusion.edm_sigmas(n))
        exact = start * ((VARIANCE + last.sigma**2) / (VARIANCE + 80**2)).sqrt()
        errors.append((last.z - exact).norm() / exact.norm())
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


def test_the_last_step_is_eulers_and_ends_in_the_denoisers_answer():
    start = 80 * torch.ones_like(VARIANCE)
    *_, last, end = diffusion.steps(gaussian, start, diffusion.edm_sigmas(10))
    torch.testing.assert_close(end.z, last.x_hat)
    assert end.sigma == 0
    assert torch.equal(diffusion.sample(gaussian, start, diffusion.edm_sigmas(10)), end.z)


def test_a_closing_zero_may_be_given():
    start = 80 * torch.ones_like(VARIANCE)
    sigmas = diffusion.edm_sigmas(10).tolist()
    open_ended, closed = (diffusion.sample(gaussian, start, s) for s in (sigmas, [*sigmas, 0.0]))
    assert torch.equal(open_ended, closed)


def test_tweedie_is_the_gradient_of_the_log_density():
    x = images(6, (1, 3, 3), 0, torch.float64)
    z = images(2, (1, 3, 3), 1, torch.float64).requires_grad_()
    sigma = 0.6
    log_p = (-((z[:, None] - x) ** 2).flatten(2).sum(-1) / (2 * sigma**2)).logsumexp(1)
    (expected,) = torch.autograd.grad(log_p.sum(), z)
    score = diffusion.score(fpmc.methods.optimal(Source(x)), z, sigma)
    torch.testing.assert_close(score, expected)


def test_the_optimal_denoisers_samples_are_training_images(digits):
    source = Source(digits.train)
    z = diffusion.initial_noise(16, source.shape, 0)
    samples = diffusion.sample(fpmc.methods.optimal(source), z, diffusion.edm_sigmas(18))
    _, index = fpmc.metrics.nearest(samples, source)
    assert torch.equal(to_uint8(samples), digits.train[index[:, 0]])


def test_noise_has_the_standard_deviation_it_is_asked_for():
    x = torch.zeros(64, 3, 16, 16)
    assert diffusion.add_noise(x, 0.3, 0).std() == pytest.approx(0.3, rel=0.01)
    assert diffusion.initial_noise(64, (3, 16, 16), 0).std() == pytest.approx(80, rel=0.01)


def test_a_seed_or_a_generator_decides_every_draw():
    x = torch.zeros(2, 1, 4, 4)
    for draw in (
        lambda seed: diffusion.add_noise(x, 1.0, seed),
        lambda seed: diffusion.initial_noise(2, (1, 4, 4), seed),
    ):
        assert torch.equal(draw(3), draw(torch.Generator().manual_seed(3)))
        assert not torch.equal(draw(3), draw(4))


def test_a_generator_may_take_the_seeds_place_wherever_noise_is_drawn(digits):
    x = to_float(digits.test[:2])
    source, network = Source(digits.train[:20]), fpmc.methods.wiener(Source(digits.train[:20]))

    def search(**draws):
        arguments = (source, network, x, [0.5], fpmc.methods.ls, [3])
        return fpmc.methods.search_patch_sizes(*arguments, progress=False, **draws).errors[0.5][3]

    for draw in (
        lambda **draws: diffusion.add_noise(x, 1.0, **draws),
        lambda **draws: diffusion.initial_noise(2, (1, 4, 4), **draws),
        lambda **draws: fpmc.sensitivity.maps(network, 1.0, x[:1], **draws),
        lambda **draws: torch.tensor(search(**draws)),
    ):
        by_seed = draw(seed=3)
        assert torch.equal(draw(generator=torch.Generator().manual_seed(3)), by_seed)
    with pytest.raises(ValueError, match="generator: got one, and a cache, which keeps maps by"):
        fpmc.sensitivity.maps(network, 1.0, x, generator=torch.Generator(), cache="nowhere")


def test_noise_and_scores_of_a_level_for_each_image():
    x, levels = VARIANCE.expand(3, -1, -1, -1), torch.tensor([0.5, 2.0, 0.5])
    noise = diffusion.add_noise(torch.zeros_like(x), 1.0, 0)
    z = diffusion.add_noise(x, levels, 0)
    torch.testing.assert_close(z, x + levels.view(-1, 1, 1, 1) * noise)
    assert torch.equal(diffusion.add_noise(x, levels[[0, 0, 0]], 0), diffusion.add_noise(x, 0.5, 0))
    found = diffusion.score(lambda z, sigma: gaussian(z, sigma.view(-1, 1, 1, 1)), z, levels)
    for i, sigma in enumerate(levels.tolist()):
        torch.testing.assert_close(found[[i]], diffusion.score(gaussian, z[[i]], sigma))


def test_levels_come_with_a_closing_zero_if_asked_for():
    sigmas = diffusion.edm_sigmas(5, zero=True)
    assert torch.equal(sigmas[:-1], diffusion.edm_sigmas(5))
    assert sigmas[-1] == 0
    z = diffusion.initial_noise(1, (2, 4, 4), 0)
    same = diffusion.sample(gaussian, z, diffusion.edm_sigmas(5))
    assert torch.equal(diffusion.sample(gaussian, z, sigmas), same)


def test_progress_is_shown_when_asked_for(capsys):
    diffusion.sample(gaussian, torch.ones_like(VARIANCE), [2.0, 1.0])
    assert "sampling" not in capsys.readouterr().err
    diffusion.sample(gaussian, torch.ones_like(VARIANCE), [2.0, 1.0], progress=True)
    assert "sampling" in capsys.readouterr().err


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: diffusion.edm_sigmas(1), ValueError, "n: got 1, wanted at least 2"),
        (lambda: diffusion.edm_sigmas(2.5), TypeError, "n: got 2.5"),
        (lambda: diffusion.edm_sigmas(5, 2.0, 1.0), ValueError, "sigma_min: got 2.0"),
        (lambda: diffusion.edm_sigmas(5, rho=0), ValueError, "rho: got 0"),
        (
            lambda: diffusion.sample(gaussian, VARIANCE, [1.0, 2.0]),
            ValueError,
            "sigmas: got [1.0, 2.0]",
        ),
        (lambda: diffusion.sample(gaussian, VARIANCE, []), ValueError, "sigmas: got []"),
        (lambda: diffusion.sample(gaussian, VARIANCE, [1.0, -1.0]), ValueError, "sigmas: got -1.0"),
        (lambda: diffusion.sample(gaussian, VARIANCE[0], [1.0]), ValueError, "z: got shape"),
        (lambda: diffusion.add_noise(VARIANCE, 0.0, 0), ValueError, "sigma: got 0.0"),
        (lambda: diffusion.add_noise(VARIANCE, 1.0, -1), ValueError, "seed: got -1"),
        (lambda: diffusion.add_noise(VARIANCE, 1.0), ValueError, "seed: got none and no generator"),
        (lambda: diffusion.add_noise(VARIANCE, 1.0, "x"), TypeError, "seed: got 'x'"),
        (
            lambda: diffusion.add_noise(VARIANCE, 1.0, 1, generator=torch.Generator()),
            ValueError,
            "seed: got a generator, too",
        ),
        (
            lambda: diffusion.initial_noise(1, (1, 2, 2), generator=1),
            TypeError,
            "generator: got int, wanted a torch.Generator",
        ),
        (lambda: diffusion.initial_noise(0, (1, 2, 2), 0), ValueError, "n: got 0"),
        (lambda: diffusion.initial_noise(2, (2, 2), 0), ValueError, "shape: got (2, 2)"),
        (lambda: diffusion.initial_noise(2, (1, 0, 2), 0), ValueError, "shape: got 0"),
        (lambda: diffusion.sample(gaussian, VARIANCE, 5), TypeError, "sigmas: got 5"),
        (lambda: diffusion.steps(gaussian, None, [1.0]), TypeError, "z: got NoneType"),
        (lambda: diffusion.sample(lambda z, s: z[:, :1], VARIANCE, [1.0]), ValueError, "denoiser"),
        (lambda: diffusion.edm_sigmas(5, rho=1e-3), ValueError, "rho: got 0.001"),
        (
            lambda: diffusion.score(lambda z, s: z.sum(), VARIANCE, 1.0),
            ValueError,
            "denoiser: gave shape ()",
        ),
        (lambda: diffusion.edm_sigmas(5, 1, 1e40, 0.1), ValueError, "rho: got 0.1, too small"),
        (
            lambda: diffusion.sample(lambda z, s: 0, VARIANCE, [1.0]),
            TypeError,
            "denoiser: gave int",
        ),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def test_noise_that_a_type_cannot_hold_is_an_error():
    with pytest.raises(ValueError, match=r"sigma: got 1e\+39, wanted at most 2\.1e\+37"):
        diffusion.add_noise(torch.zeros(1, 1, 2, 2), 1e39, 0)
    with pytest.raises(ValueError, match=r"sigma_max: got 1e\+39"):
        diffusion.initial_noise(1, (1, 2, 2), 0, 1e39)
    assert diffusion.add_noise(torch.zeros(1, 1, 2, 2).double(), 1e39, 0).isfinite().all()
