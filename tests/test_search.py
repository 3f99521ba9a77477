"""The search for patch sizes and thresholds."""

import weakref

import pytest
import torch

import fpmc
from fpmc import Source, diffusion, metrics
from fpmc.methods import ls, lukoianov, pspc_flex, search_patch_sizes, search_thresholds
from fpmc.source import to_float

SIGMAS = (0.05, 0.5, 5.0)


@pytest.fixture(scope="module")
def source(digits):
    return Source(digits.train[:100])


@pytest.fixture(scope="module")
def x(digits):
    return to_float(digits.test[:10])


def test_a_schedule_that_made_the_network_is_found_again(source, x):
    hidden = {0.05: 3, 0.5: 5, 5.0: 7}
    found = search_patch_sizes(source, ls(source, hidden), x, SIGMAS, ls, progress=False)
    assert found.best == hidden
    for sigma, row in found.errors.items():
        assert list(row) == [3, 5, 7]
        assert row[hidden[sigma]] == 0
        assert all(error > 0 for p, error in row.items() if p != hidden[sigma])
    z = diffusion.add_noise(x, 0.5, 1)
    assert torch.equal(ls(source, found.best)(z, 0.5), ls(source, 5)(z, 0.5))


def test_thresholds_are_found_again(source, x):
    gaussian = fpmc.methods.wiener(source)

    def method(source, tau):
        return lukoianov(source, tau, gaussian=gaussian)

    hidden = {0.05: 0.3, 0.5: 0.05, 5.0: 0.02}
    network = method(source, hidden)
    found = search_thresholds(source, network, x, SIGMAS, method, hidden.values(), progress=False)
    assert found.best == hidden

    maps = torch.eye(64).view(-1, 8, 8) * 0.5 + 0.5 / 64
    found = search_thresholds(
        source,
        pspc_flex(source, maps, 0.4),
        x,
        [0.3],
        lambda source, tau: pspc_flex(source, maps, tau),
        [0.2, 0.4, 0.8],
        progress=False,
    )
    assert found.best == {0.3: 0.2}, "of equally good thresholds the first"


def test_errors_are_those_on_the_same_noisy_images(source, x):
    network = fpmc.methods.wiener(source)
    generator = torch.Generator().manual_seed(3)
    found = search_patch_sizes(source, network, x, SIGMAS, ls, [2, 8], seed=3, progress=False)
    for sigma in SIGMAS:
        z = diffusion.add_noise(x, sigma, generator)
        for p in (2, 8):
            error = metrics.mse(ls(source, p)(z, sigma), network(z, sigma))
            assert found.errors[sigma][p] == error
            assert found.errors[sigma][p].standard_error == error.standard_error


def test_every_odd_side_from_three_is_tried(x):
    for side, sizes in ((9, [3, 5, 7, 9]), (8, [3, 5, 7]), (3, [3]), (2, [2]), (1, [1])):
        images = torch.zeros(2, 1, side, side + 1)
        found = search_patch_sizes(
            Source(images), lambda z, sigma: z, images, [1.0], ls, progress=False
        )
        assert list(found.errors[1.0]) == sizes


def test_progress_is_shown(source, x, capsys):
    search_patch_sizes(source, fpmc.methods.wiener(source), x, [1.0], ls, [3, 5])
    assert "sizes: 100%" in capsys.readouterr().err


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"source": torch.zeros(2, 1, 4, 4)}, TypeError, "source: got Tensor"),
        ({"network": None}, TypeError, "network: got NoneType, wanted a function"),
        ({"network": lambda z, s: z[:1]}, ValueError, "network: gave shape (1, 1, 4, 4)"),
        ({"network": lambda z, s: None}, TypeError, "network: gave NoneType, wanted a torch"),
        ({"method": lambda s, p: lambda z, sigma: 0}, TypeError, "method: gave int"),
        ({"x": torch.zeros(2, 1, 4, 5)}, ValueError, "x: got shape (2, 1, 4, 5)"),
        ({"sigmas": []}, ValueError, "sigmas: got an empty sequence"),
        ({"sigmas": [0]}, ValueError, "sigmas: got 0"),
        ({"sigmas": 1.0}, TypeError, "sigmas: got 1.0, wanted a sequence"),
        ({"method": "ls"}, TypeError, "method: got str, wanted a function"),
        ({"sizes": [5]}, ValueError, "sizes: got 5, wanted between 1 and 4"),
        ({"sizes": []}, ValueError, "sizes: got an empty sequence"),
        ({"seed": "x"}, TypeError, "seed: got 'x'"),
    ],
)
def test_bad_input_is_named(change, error, says):
    arguments = {
        "source": Source(torch.zeros(2, 1, 4, 4)),
        "network": lambda z, sigma: z,
        "x": torch.zeros(2, 1, 4, 4),
        "sigmas": [1.0],
        "method": ls,
        "progress": False,
    }
    with pytest.raises(error) as caught:
        search_patch_sizes(**(arguments | change))
    assert says in str(caught.value)


@pytest.mark.usefixtures("as_users_do")
def test_bad_thresholds_are_named(source, x):
    for thresholds in ([0.5, 1.5], [-0.1]):
        with pytest.raises(ValueError, match="thresholds: got"):
            search_thresholds(source, lambda z, sigma: z, x, [1.0], lukoianov, thresholds)
    with pytest.raises(TypeError, match=r"thresholds: got 0\.5, wanted a sequence"):
        search_thresholds(source, lambda z, sigma: z, x, [1.0], lukoianov, 0.5)


def test_one_denoiser_is_held_at_a_time(source, x):
    alive = weakref.WeakSet()

    def method(source, p):
        assert not alive
        denoiser = ls(source, p)
        alive.add(denoiser)
        return denoiser

    found = search_patch_sizes(
        source, lambda z, s: z, x, [1.0, 0.5], method, [3, 5], progress=False
    )
    assert [list(row) for row in found.errors.values()] == [[3, 5], [3, 5]]
