"""What the tests share."""

import os

import chapters

# Workers side by side get one thread each; set before numba and torch are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(chapters.ENVIRONMENT)

import pytest
import torch
from hypothesis import settings
from jaxtyping import config as jaxtyping_config

# Triton's kernels run on a CPU then, one instruction at a time; set before any is compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

for profile, examples in {"fpmc": 10, "deep": 100}.items():
    settings.register_profile(profile, deadline=None, derandomize=True, max_examples=examples)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fpmc"))


def pytest_xdist_auto_num_workers(config):
    """Take as many workers for ``-n auto`` as for the book."""
    return chapters.WORKERS


def pytest_sessionstart(session):
    """Make the cache's database before workers that would make it at the same time."""
    if session.config.getoption("numprocesses"):
        chapters.get_cache(chapters.CACHE).db.dispose()


@pytest.fixture
def as_users_do():
    """Switch the tests' shape checks off, so that a wrong call meets the package's own errors."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits."""
    import fpmc

    return fpmc.data.load("digits")


@pytest.fixture(scope="session")
def photos():
    """2,000 colour crops."""
    import fpmc

    return fpmc.data.load("photos", n_train=2_000, n_test=64)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device that is there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
