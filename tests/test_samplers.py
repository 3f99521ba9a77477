"""Denoisers in other packages' samplers: as these call them, and by them where installed."""

import importlib
import itertools

import pytest
import torch

from fpmc import Source, diffusion, methods, networks
from tests.helpers import images, relative
from tests.test_denoisers import ALL, SHAPE, Small

LEVELS = diffusion.edm_sigmas(7, 0.02, 20.0)


@pytest.fixture(params=["PSPC-Square", "ELS", "Wiener", "network"])
def denoiser(request):
    if request.param == "network":
        torch.manual_seed(0)
        return networks.Preconditioned(Small(), SHAPE).requires_grad_(False)
    return ALL[request.param](Source(images(12, SHAPE, 0)))


@pytest.fixture
def z():
    return diffusion.initial_noise(3, SHAPE, seed=0, sigma_max=20.0)


def by_level_per_image(model, x, sigmas, extra_args):
    """Heun's method as k-diffusion asks: a level for each image, keywords from the caller."""
    ones = x.new_ones([x.shape[0]])
    for sigma, lower in itertools.pairwise(sigmas):
        slope = (x - model(x, sigma * ones, **extra_args)) / sigma
        ahead = x + slope * (lower - sigma)
        if lower > 0:
            again = (ahead - model(ahead, lower * ones, **extra_args)) / lower
            ahead = x + (slope + again) / 2 * (lower - sigma)
        x = ahead
    return x


def test_levels_per_image_as_k_diffusion_passes_them(denoiser, z):
    sigmas = torch.cat([LEVELS, torch.zeros(1)]).float()
    expected = diffusion.sample(denoiser, z, LEVELS)
    for extra_args in ({}, {"class_labels": None}):
        found = by_level_per_image(denoiser, z, sigmas, extra_args)
        assert relative(found, expected) < 2e-6


def in_double(net, latents, class_labels=None, sigma_min=0.002, sigma_max=80.0, churn=0.0):
    """EDM's sampler: it reads the network's range, rounds levels, and computes in float64."""
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    position = torch.arange(7, dtype=torch.float64) / 6
    levels = (high ** (1 / 7) + position * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    levels = torch.cat([net.round_sigma(levels), torch.zeros_like(levels[:1])])
    generator = torch.Generator().manual_seed(0)
    x = latents.to(torch.float64) * levels[0]
    for sigma, lower in itertools.pairwise(levels):
        raised = net.round_sigma(sigma + churn * sigma)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + (raised**2 - sigma**2).sqrt() * noise
        slope = (x - net(x, raised, class_labels).to(torch.float64)) / raised
        ahead = x + (lower - raised) * slope
        if lower > 0:
            again = (ahead - net(ahead, lower, class_labels).to(torch.float64)) / lower
            ahead = x + (lower - raised) * (slope + again) / 2
        x = ahead
    return x


def test_ranges_rounding_labels_and_double_precision_as_edm_asks(denoiser, z):
    found = in_double(denoiser, z / 20, None, 0.02, 20.0)
    expected = diffusion.sample(denoiser, (z / 20).double() * 20, LEVELS)
    assert found.dtype == torch.float64
    assert relative(found, expected) < 1e-7
    stirred = in_double(denoiser, z / 20, None, 0.02, 20.0, churn=0.2)
    assert stirred.isfinite().all()
    assert relative(stirred, expected) > 1e-4


def test_time_steps_as_schedulers_of_diffusers_give_them(denoiser, z):
    """The scheduler knows the levels, one of which the caller reads as a 0-d tensor."""
    sigmas, x = torch.cat([LEVELS, torch.zeros(1)]).float(), z
    for step in range(len(LEVELS)):
        original = denoiser(x, sigmas[step])
        x = x + (x - original) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
    plain = z
    for sigma, lower in itertools.pairwise([*LEVELS.tolist(), 0.0]):
        plain = plain + (plain - denoiser(plain, sigma)) / sigma * (lower - sigma)
    assert relative(x, plain) < 2e-6


class Schedule:
    """α and σ of a time t from 0 to 1, as azula's schedules: here of the given levels."""

    def __init__(self, angle):
        self.levels, self.angle = LEVELS.flip(0), angle

    def __call__(self, t):
        sigma = self.levels[(t * (len(self.levels) - 1)).round().long()]
        alpha = torch.rsqrt(1 + sigma**2) if self.angle else torch.ones_like(sigma)
        return alpha, alpha * sigma


@pytest.mark.parametrize("preserving", [False, True])
def test_times_and_scaled_images_as_azula_has_them(denoiser, z, preserving):
    schedule, times = Schedule(preserving), torch.linspace(1, 0, len(LEVELS))

    def mean(x_t, t):
        alpha, sigma = schedule(t)
        return denoiser(x_t / alpha, sigma / alpha)

    x = schedule(times[0])[0] * z.double()
    for t, s in itertools.pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)

        def step(noise, x=x, a=alpha_t, b=alpha_s, step=sigma_s / alpha_s - sigma_t / alpha_t):
            return b / a * x + b * step * noise

        noise = (x - alpha_t * mean(x, t)) / sigma_t
        ahead = step(noise)
        x = step((noise + (ahead - alpha_s * mean(ahead, s)) / sigma_s) / 2)
    *_, at_sigma_min, _ = diffusion.steps(denoiser, z.double(), LEVELS)
    alpha, _ = schedule(torch.tensor(0.0))
    assert relative(x / alpha, at_sigma_min.z) < 1e-6


def installed(name):
    """A module, or a skip if it is not there or what it imports does not work."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # as a torchvision of another torch raises
        pytest.skip(f"{name}: {error}")


def test_k_diffusion_itself(denoiser, z):
    sampling = installed("k_diffusion.sampling")
    sigmas = sampling.get_sigmas_karras(7, 0.02, 20.0)
    found = sampling.sample_heun(denoiser, z, sigmas, disable=True)
    assert relative(found, diffusion.sample(denoiser, z, LEVELS)) < 2e-6
    for name in ("euler", "euler_ancestral", "dpm_2", "dpmpp_2m", "dpmpp_2s_ancestral", "lms"):
        sampler = getattr(sampling, f"sample_{name}")
        assert sampler(denoiser, z, sigmas, disable=True).isfinite().all()


def test_diffusers_itself(denoiser, z):
    diffusers = installed("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="sample", use_karras_sigmas=True, sigma_min=0.02, sigma_max=20.0
    )
    scheduler.set_timesteps(7)
    x, plain = z, z
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoiser(x, scheduler.sigmas[i]), t, x).prev_sample
    for sigma, lower in itertools.pairwise([*LEVELS.tolist(), 0.0]):
        plain = plain + (plain - denoiser(plain, sigma)) / sigma * (lower - sigma)
    assert relative(x, plain) < 2e-6


def by_schedulers_of_edm(made, denoiser, z, answer):
    scheduler = made(sigma_min=0.02, sigma_max=20.0)
    scheduler.set_timesteps(7)
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x_hat = denoiser(z, sigma)
        z = scheduler.step(*answer(x_hat, z, sigma, t)).prev_sample
    return z


def test_schedulers_of_diffusers_that_know_edm_s_preconditioning(denoiser, z):
    """Told x̂, or the output of a network inside the preconditioning, the multistep one comes
    nearer to the flow than Euler's."""
    diffusers = installed("diffusers")

    def told(x_hat, z, sigma, t):
        return x_hat, t, z, 0.0, 0.0, float("inf"), 1.0, None, True, x_hat

    def inside(x_hat, z, sigma, t):
        c_skip = 0.25 / (sigma**2 + 0.25)
        return (x_hat - c_skip * z) * (sigma**2 + 0.25).sqrt() / (0.5 * sigma), t, z

    plain = z
    for sigma, lower in itertools.pairwise([*LEVELS.tolist(), 0.0]):
        plain = plain + (plain - denoiser(plain, sigma)) / sigma * (lower - sigma)
    for answer in (told, inside):
        found = by_schedulers_of_edm(diffusers.EDMEulerScheduler, denoiser, z, answer)
        assert relative(found, plain) < 2e-5
    second = by_schedulers_of_edm(diffusers.EDMDPMSolverMultistepScheduler, denoiser, z, inside)
    fine = diffusion.sample(denoiser, z, diffusion.edm_sigmas(100, 0.02, 20.0))
    assert relative(second, fine) <= relative(plain, fine)


class Flow(torch.nn.Module):
    """The slope in u = ln σ, at a u that may require gradients, as torchdiffeq's does."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, u, z):
        return z - self.denoiser(z, u.detach().exp())


def at_the_lowest(denoiser, z, levels):
    """What our sampler has at the last of these levels, before its step to 0."""
    *_, last, _ = diffusion.steps(denoiser, z, levels)
    return last.z


def test_the_flow_in_the_logarithm_of_the_level(denoiser, z):
    """Heun's method in ln σ, at times that require gradients, ends where ours does, and so do
    gradients with respect to the noise."""
    flow, x = Flow(denoiser), z.double().requires_grad_()
    levels = diffusion.edm_sigmas(80, 0.5, 20.0)
    y = x
    for u, v in itertools.pairwise(levels.log().requires_grad_()):
        slope = flow(u, y)
        y = y + (slope + flow(v, y + (v - u) * slope)) / 2 * (v - u)
    assert relative(y, at_the_lowest(denoiser, x.detach(), levels)) < 1e-3
    (found,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(at_the_lowest(denoiser, x, levels).sum(), x)
    assert relative(found, expected) < 1e-2


def test_torchdiffeq_itself(denoiser, z):
    """Our sampler comes to where torchdiffeq's goes as levels become more, and so do both of its
    gradients to each other."""
    torchdiffeq = installed("torchdiffeq")
    ends = torch.tensor([20.0, 0.5], dtype=torch.float64).log()
    x = z.double().requires_grad_()
    found, gradients = None, []
    for solve, options in (
        (torchdiffeq.odeint_adjoint, {"adjoint_params": ()}),
        (torchdiffeq.odeint, {}),
    ):
        found = solve(Flow(denoiser), x, ends, rtol=1e-8, atol=1e-8, **options)[-1]
        gradients += torch.autograd.grad(found.sum(), x)
    assert relative(gradients[0], gradients[1]) < 1e-3
    few, many = (
        relative(at_the_lowest(denoiser, z.double(), diffusion.edm_sigmas(n, 0.5, 20.0)), found)
        for n in (40, 160)
    )
    assert many < min(few / 2, 1e-2)


def test_azula_itself(denoiser, z):
    azula = installed("azula")

    class Posterior(azula.denoise.Denoiser):
        def __init__(self, schedule):
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t, t):
            alpha, sigma = self.schedule(t)
            return azula.denoise.DiracPosterior(denoiser(x_t / alpha, sigma / alpha))

    sampler = azula.sample.HeunSampler(Posterior(Schedule(False)), steps=6, silent=True)
    *_, at_sigma_min, _ = diffusion.steps(denoiser, z.double(), LEVELS)
    assert relative(sampler(z.double()), at_sigma_min.z) < 1e-6
    for name in ("DDPM", "DDIM", "Euler", "zAB"):
        made = getattr(azula.sample, f"{name}Sampler")
        posterior = Posterior(azula.noise.VESchedule(0.02, 20.0))
        assert made(posterior, steps=6, silent=True)(z).isfinite().all()


def test_a_last_step_corrected_at_the_lowest_level_leaves_the_range():
    """What the page on other packages warns of: Heun's correction of a long step to σ_min."""
    denoiser = methods.pspc_square(Source(images(12, SHAPE, 0)), 3)
    z = images(1, SHAPE, 1, torch.float64)
    sigma, lower = 0.5, 0.001
    slope = (z - denoiser(z, sigma)) / sigma
    ahead = z + (lower - sigma) * slope
    corrected = z + (lower - sigma) * (slope + (ahead - denoiser(ahead, lower)) / lower) / 2
    assert ahead.abs().max() < 1.5
    assert corrected.abs().max() > 5
