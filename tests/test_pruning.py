"""What is left out of the sum is provably negligible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fpmc
from fpmc import FPMC, Source, diffusion
from fpmc.engine.pruning import BLOCKS
from fpmc.operators import Dense, Ones, Window, Windowed
from tests.helpers import PeakMemory, collections, exact, images, relative

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9))
SIGMAS = st.sampled_from([0.02, 0.1, 0.3, 1.0, 5.0])
SEEDS = st.integers(0, 10_000)
STRUCTURES = list(collections((1, 4, 4), 0))


def adversarial(kind, n, shape, sigma, seed):
    """Sources that tempt a bound to be too tight."""
    x = 0.9 * images(n, shape, seed, torch.float64)
    if kind == "duplicates":
        x[n // 2 :] = x[: n - n // 2].clone()
    elif kind == "near ties":
        x = x[:1] + 0.05 * sigma * images(n, shape, seed + 1, torch.float64)
    elif kind == "constant":
        x[:] = x[:, :1, :1, :1].clone()
    elif kind == "outliers":
        x[0], x[-1] = 1, -1
    elif kind == "same block means":
        signs = torch.ones(shape)
        signs[:, ::2] *= -1
        signs[:, :, ::2] *= -1
        x = x[:, :1, :1, :1].abs() * signs * torch.linspace(-1, 1, n).view(-1, 1, 1, 1)
    weights = 10 ** (3 * images(n, (1,), seed + 2)[:, 0]) if seed % 2 else None
    return Source(x.clamp(-1, 1), weights)


@pytest.mark.parametrize("as_windows", [True, False])
def test_rows_of_other_numbers_than_zero_and_one_are_bounded_by_their_least(as_windows):
    """A row of one large entry: its block sums to as much as a block of ones."""
    rows = torch.zeros(1, 4, 4, dtype=torch.float64)
    rows[0, 0, 0] = 16
    window = Windowed((4, 4), rows.flatten(1), [Window(slice(0, 1), slice(0, 16))])
    queries = window if as_windows else Dense(rows)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0], x[1, 0, 1:] = 0.1, 0.9
    z = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    collection = FPMC(queries, Ones((4, 4)), Source(x))
    pruned = collection.pruned(z, 0.1, 1e-6)
    assert (pruned.x_hat - collection(z, 0.1)).abs().max() <= pruned.bound + 1e-12


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=30)
@given(
    kind=st.sampled_from(
        ["random", "duplicates", "near ties", "constant", "outliers", "same block means"]
    ),
    shape=SHAPES, n=st.integers(1, 40), sigma=SIGMAS, seed=SEEDS,
    eps=st.sampled_from([1e-8, 1e-3, 0.1, 1.0]),
)  # fmt: skip
def test_the_bound_is_never_exceeded(structure, kind, shape, n, sigma, seed, eps):
    queries, responses = collections(shape, seed)[structure]
    source = adversarial(kind, n, shape, sigma, seed)
    z = diffusion.add_noise(source[torch.arange(2) % n].double(), sigma, seed)
    result = FPMC(queries, responses, source).pruned(z, sigma, eps)
    truth = exact(z, sigma, queries, responses, source)
    worst = (result.x_hat - truth).abs().flatten(1).amax(1)
    assert (worst <= result.bound + 1e-9).all()
    assert (result.bound <= 2 * eps * len(BLOCKS)).all()
    assert (result.kept >= 1).all()
    assert (result.kept <= n).all()
    assert (result.bound[result.kept == n] == 0).all()


def test_at_low_noise_nearly_everything_is_left_out(photos):
    source = Source(photos.train)
    z = diffusion.add_noise(fpmc.source.to_float(photos.test[:3]), 0.05, 0)
    denoiser = fpmc.methods.optimal(source)
    result = denoiser.pruned(z, 0.05, 1e-6)
    assert (result.kept < 0.2 * len(source)).all()
    assert (result.bound <= 4e-6).all()
    assert relative(result.x_hat, denoiser(z, 0.05)) < 1e-5


def test_at_high_noise_nothing_is():
    source = Source(images(50, (3, 8, 8), 0))
    z = diffusion.add_noise(source[:2], 50.0, 0)
    denoiser = fpmc.methods.pspc_square(source, 3)
    result = denoiser.pruned(z, 50.0, 1e-6)
    assert (result.kept == 50).all()
    assert (result.bound == 0).all()
    torch.testing.assert_close(result.x_hat, denoiser(z, 50.0))


def test_images_that_do_not_fit_the_budget_are_all_summed_over():
    source = Source(images(3_000, (3, 16, 16), 0))
    z = diffusion.add_noise(source[:1], 0.5, 0)
    denoiser = fpmc.methods.ls(source, 3, budget=2**21)
    result = denoiser.pruned(z, 0.5, 1e-300)
    assert result.kept.item() == 3_000
    torch.testing.assert_close(result.x_hat, denoiser(z, 0.5))


@pytest.mark.parametrize(
    ("eps", "error"), [(0, ValueError), (2, ValueError), (-1.0, ValueError), ("a", TypeError)]
)
def test_bad_shares_are_errors(eps, error, as_users_do):
    source = Source(images(3, (1, 4, 4), 0))
    denoiser = FPMC(Ones((4, 4)), Ones((4, 4)), source)
    with pytest.raises(error, match="eps"):
        denoiser.pruned(images(1, (1, 4, 4), 1), 1.0, eps)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_memory_stays_below_the_budget(structure):
    shape, budget = (3, 12, 12), 2**24
    queries, responses = collections(shape, 0)[structure]
    x = images(5_000, (3, 1, 1), 0) + 0.1 * images(5_000, shape, 1)
    source = Source(fpmc.source.to_uint8(x))
    z = diffusion.add_noise(source[:2], 0.1, 0)
    with PeakMemory() as memory:
        result = FPMC(queries, responses, source, budget=budget).pruned(z, 0.1, 1e-3)
    assert memory.peak <= budget + z.nbytes
    if structure in ("optimal", "PSPC-Square", "LS"):
        assert (result.kept < 5_000).all()
