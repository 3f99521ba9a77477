"""What the tests share."""

import os
from contextlib import contextmanager, nullcontext

import chapters

# Workers side by side get one thread each; set before numba and torch are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(chapters.ENVIRONMENT)

import pytest
import torch
from hypothesis import is_hypothesis_test, settings
from jaxtyping import config as jaxtyping_config

from tests import checker  # noqa: F401  jaxtyping takes it from its package, where it must be

# Triton's kernels run on a CPU then, one instruction at a time; set before any is compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TOGETHER = ("test_distributed.py", "test_finetuning_ranks.py")
"""Files whose tests look at what a few processes found together, which takes long to begin."""

for profile, examples in {"fpmc": 10, "deep": 100}.items():
    settings.register_profile(profile, deadline=None, derandomize=True, max_examples=examples)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fpmc"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Take as many workers for ``-n auto`` as for the book."""
    return chapters.WORKERS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give a notebook's cells to one worker, and what processes found to one: found but once.

    A test's parameters go to one worker, too. xdist looks through all groups after each test, and
    starts the largest first.

    pytest-xdist 3.8 has ``--dist loadgroup`` for that, which with pytest 9.2 has no effect: it
    renames tests by an attribute that pytest no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if file.endswith((".ipynb", *TOGETHER)) else nodeid.split("[")[0]

    return ByWhatIsShared(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_modifyitems(items):
    """Start what takes long first, so that no worker ends alone with it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionstart(session):
    """Make the cache's database before workers that would make it at the same time."""
    if session.config.getoption("numprocesses", None):
        chapters.get_cache(chapters.CACHE).db.dispose()


@contextmanager
def unchecked():
    """Switch the tests' shape checks off."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def as_users_do():
    """No shape checks, so that a wrong call meets the package's own errors."""
    with unchecked():
        yield


@pytest.fixture(autouse=True)
def examples_cost_little(request):
    """No shape checks in Hypothesis's examples and in sweeps; all other tests have them."""
    many = is_hypothesis_test(request.function) or request.node.get_closest_marker("sweep")
    with unchecked() if many else nullcontext():
        yield


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
