"""Processes that share a run of tuning find what one alone finds."""

from datetime import timedelta

import pytest
import torch
from torch import distributed

import fpmc
from fpmc.finetuning import finetune
from fpmc.operators import Dense, Identity
from tests.helpers import images, matrix, relative, side_by_side

SHAPE = (1, 4, 4)
SIGMA = 0.6
RANKS = 3


def run(share, folder=None, steps=9, batch=7, **options):
    """A short run, on images that the source has, of which there are copies in it."""
    x = images(40, SHAPE, 0)
    source = fpmc.Source(torch.cat([x, x[:9]]))
    q, r = (Dense(matrix(16, SHAPE[1:], seed) + 0.1) for seed in (1, 2))
    network = fpmc.FPMC(Dense(matrix(16, SHAPE[1:], 3) + 0.1), Identity(SHAPE[1:]), source)
    held_out = {"validation": images(11, SHAPE, 5), "test": images(10, SHAPE, 6)}
    return finetune(
        fpmc.FPMC(q, r, source), network, None, SIGMA, **held_out, share=share, out=folder,
        steps=steps, batch=batch, every=3, cut=0.0, progress=False, save_minutes=0, **options,
    )  # fmt: skip


def outcome(found):
    operators = [op.dense().double() for op in found.denoiser.operators(SIGMA)]
    return operators, found.history, found.card["test"]["tuned"]


def work(rank, folder):
    """What one of the processes does."""
    torch.set_num_threads(1)
    place, wait = f"file://{folder}/store", timedelta(seconds=60)
    distributed.init_process_group("gloo", place, rank=rank, world_size=RANKS, timeout=wait)
    found = {share: outcome(run(share)) for share in ("images", "source")}
    run("images", folder / "resumed", steps=4)
    found["resumed"] = outcome(run("images", folder / "resumed"))
    for name, options in {
        "batch": {"share": "images", "batch": 2},
        "subset": {"share": "source", "subset": 20},
        "share": {"share": "queries"},
    }.items():
        try:
            run(**options)
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    side_by_side(work, folder, RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
class TestRanks:
    @pytest.mark.parametrize("share", ["images", "source"])
    def test_they_find_what_one_process_finds(self, outcomes, share):
        operators, history, test = outcome(run(None))
        got, rows, tuned = outcomes[0][share]
        for found, wanted in zip(got, operators, strict=True):
            assert relative(found, wanted) < 1e-5
        assert [row["step"] for row in rows] == [row["step"] for row in history]
        for found, wanted in zip(rows, history, strict=True):
            assert found["validation"] == pytest.approx(wanted["validation"], rel=1e-5)
            assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5, nan_ok=True)
        assert tuned == pytest.approx(test, rel=1e-5)

    @pytest.mark.parametrize("share", ["images", "source"])
    def test_all_have_the_same_bits(self, outcomes, share):
        first = outcomes[0][share]
        for other in outcomes[1:]:
            for a, b in zip(first[0], other[share][0], strict=True):
                assert torch.equal(a, b)
            assert repr(first[1:]) == repr(other[share][1:])

    def test_a_run_that_is_taken_up_again_is_the_run_that_was_not_stopped(self, outcomes):
        for a, b in zip(outcomes[0]["images"][0], outcomes[0]["resumed"][0], strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("batch", "batch: got 2, wanted at least as many images as the 3 processes"),
            ("subset", "subset: got 20 with a shared source, wanted None"),
            ("share", "share: got 'queries', wanted one of images, source"),
        ],
    )
    def test_what_cannot_be_shared_is_an_error_on_all(self, outcomes, name, says):
        assert all(found[name].startswith(says) for found in outcomes)
