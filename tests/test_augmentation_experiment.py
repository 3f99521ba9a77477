"""What a larger source gains: rows are what the definition says, and a run goes on."""

import math
from dataclasses import replace

import pytest
import torch

import fpmc
from fpmc import augment, data, diffusion, methods, results
from fpmc.experiments import augmentation
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.source import to_float
from tests.helpers import exact
from tests.small_jobs import digits_job, untrained

LEVELS = [2.0, 0.3]
POINTS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An untrained network and its maps."""
    folder = tmp_path_factory.mktemp("network")
    untrained(folder, LEVELS)
    return folder


@pytest.fixture
def job(files, tmp_path, monkeypatch):
    """Digits, six points, 60 source images, of which flips are made."""
    monkeypatch.setattr(Job, "levels", LEVELS)
    return digits_job(
        files,
        tmp_path,
        points=POINTS,
        sources={"pspc_flex": 60, "pspc_square": 60},
        strategy=("horizontal flips",),
    )


def table(job):
    """What a run leaves."""
    augmentation.run(job, Clock())
    return results.read("digits", "augmentation", job.out.parent)


def errors(job, images, level, mask):
    """Squared errors to the network, from the reference in float64."""
    seen = job.seen_by("pspc_flex")
    flex = methods.pspc_flex(seen, job.sensitivity, "digits")
    seed = augmentation.FIRST_SEED + level
    z = diffusion.add_noise(to_float(job.dataset.test[:POINTS]), LEVELS[level], seed)
    answer = exact(z, LEVELS[level], *flex.operators(LEVELS[mask]), fpmc.Source(images))
    with torch.no_grad():
        target = job.reference(z, LEVELS[level])
    return (answer - target).double().square().flatten(1).mean(1)


@pytest.mark.parametrize("strategy", ["horizontal flips", "translations", "synthetic"])
def test_a_row_is_the_change_of_the_error_on_the_same_noisy_images(job, strategy):
    rows = table(replace(job, strategy=(strategy,), size=(0.5, 1.0)))
    assert [(row["sigma"], row["size"]) for row in rows] == [
        (sigma, size) for sigma in reversed(LEVELS) for size in (0.5, 1)
    ]
    d = job.seen_by("pspc_flex").images
    made = {
        "horizontal flips": lambda: augment.horizontal_flips(d),
        "translations": lambda: augment.translations(d, draws=augmentation.DRAWS_OF_SHIFTS),
        "synthetic": lambda: augment.synthetic(job.reference, 60, sigmas=LEVELS),
    }[strategy]()
    for row in rows:
        n, level = round(60 * row["size"]), LEVELS.index(row["sigma"])
        both = torch.cat([d, made.images[:n]])
        before, after = (errors(job, images, level, level) for images in (d, both))
        assert (row["n_source"], row["n_augmented"], row["n"]) == (60, n, POINTS)
        new = len(both.flatten(1).unique(dim=0)) - len(d.flatten(1).unique(dim=0))
        assert row["n_distinct"] == new
        assert row["given"] == pytest.approx(before.mean().item(), rel=1e-4)
        assert row["mse"] == pytest.approx(after.mean().item(), rel=1e-4)
        change = 100 * (after.mean() / before.mean() - 1).item()
        assert row["change"] == pytest.approx(change, rel=1e-3, abs=1e-2)
        assert row["mask_level"] == row["sigma"]


def test_masks_may_be_those_of_another_level(job):
    rows = table(replace(job, size=(1.0,), level=(0,), mask_level=(0, 1)))
    assert [row["mask_level"] for row in rows] == LEVELS
    d = job.seen_by("pspc_flex").images
    both = torch.cat([d, augment.horizontal_flips(d).images])
    for mask, row in enumerate(rows):
        assert row["given"] == pytest.approx(errors(job, d, 0, mask).mean().item(), rel=1e-4)
        assert row["mse"] == pytest.approx(errors(job, both, 0, mask).mean().item(), rel=1e-4)


def test_the_error_of_a_change_is_that_of_pairs():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(200, generator=generator).double() + 0.1
    after = before * (0.9 + 0.1 * torch.rand(200, generator=generator).double())
    found = augmentation.relative_change(before, after)
    draws = torch.randint(200, (4000, 200), generator=generator)
    again = 100 * (after[draws].mean(1) / before[draws].mean(1) - 1)
    assert found == pytest.approx(100 * (after.mean() / before.mean() - 1).item())
    assert found.standard_error == pytest.approx(again.std().item(), rel=0.1)
    assert augmentation.relative_change(before, 1.5 * before) == pytest.approx(50)
    assert augmentation.relative_change(before, 1.5 * before).standard_error < 1e-10


def test_a_run_that_was_stopped_goes_on_to_the_same_table(job, monkeypatch):
    job = replace(job, size=(0.2, 1.0), method=("pspc_square", "pspc_flex"))
    whole = table(replace(job, out=job.out.with_name("whole") / "digits"))
    row, calls = augmentation._row, iter(range(3))

    def stop(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return row(*arguments)

    monkeypatch.setattr(augmentation, "_row", stop)
    with pytest.raises(KeyboardInterrupt):
        augmentation.run(job, Clock())
    assert len(results.read("digits", "augmentation", job.out.parent)) == 3
    monkeypatch.setattr(augmentation, "_row", row)
    after = table(job)
    before = (job.out / "augmentation.csv").read_bytes()
    told = [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in after]
    assert told == [{k: v for k, v in r.items() if k not in ("seconds", "date")} for r in whole]
    monkeypatch.setattr(augmentation, "_row", None)  # which nothing calls any more
    assert table(job) == after
    assert (job.out / "augmentation.csv").read_bytes() == before
    with pytest.raises(ValueError, match="with n = 6, wanted 5"):
        augmentation.run(replace(job, points=5), Clock())


def test_synthetic_images_start_from_seeds_that_no_evaluation_uses(job, monkeypatch):
    used = {"noise": set(), "start": set()}
    noise, start = diffusion.add_noise, augment.recipes.initial_noise

    def spy(name, seed):
        used[name].add(seed)

    monkeypatch.setattr(
        augmentation.diffusion,
        "add_noise",
        lambda x, sigma, seed: (spy("noise", seed), noise(x, sigma, seed))[1],
    )
    monkeypatch.setattr(
        augment.recipes,
        "initial_noise",
        lambda n, shape, seed, sigma: (spy("start", seed), start(n, shape, seed, sigma))[1],
    )
    table(replace(job, strategy=("synthetic",), size=(0.2,)))
    assert used["noise"] == {augmentation.FIRST_SEED, augmentation.FIRST_SEED + 1}
    assert len(used["start"]) == 12
    assert max(used["noise"]) < 2**31 <= min(used["start"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"size": (1.0, 2.0)},
            r"--size: got 2 for horizontal flips of 60 images, .* 0.017 to 1",
        ),
        ({"strategy": ("translations",), "size": (20.0,)}, "got 20 for translations .* to 9"),
        ({"size": (0.001,)}, "--size: got 0.001"),
        ({"size": (-1.0,)}, "--size: got -1"),
        ({"size": (math.nan,)}, "--size: got nan"),
        ({"strategy": ("fresh",)}, "--strategy: got fresh for digits, wanted it for .* photos"),
        ({"method": ("ls",)}, "method: got 'ls', wanted one of pspc_flex, pspc_square"),
        ({"level": (2,)}, "--level: got 2"),
        ({"mask_level": (-1,)}, "--mask-level: got -1"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_leaves_nothing(job, changes, told):
    with pytest.raises(ValueError, match=told):
        augmentation.run(replace(job, **changes), Clock())
    assert not (job.out / "augmentation.csv").exists()


def test_where_nothing_is_said_a_strategy_has_the_sizes_that_it_can_have(job):
    def sizes(strategy):
        return augmentation.Sets(replace(job, strategy=()), "pspc_flex", strategy).sizes

    assert sizes("vertical flips") == [0.2, 0.5, 1]
    assert sizes("translations") == [0.2, 0.5, 1, 2, 5]  # of 9 shifts at a side of 8
    assert sizes("rotations") == list(augmentation.SIZES)
    assert sizes("fresh") == []


def test_fresh_images_are_the_draw_s_next():
    job = Job(data="photos", sources={"pspc_flex": 40})
    sets = augmentation.Sets(job, "pspc_flex", "fresh")
    sets.make(2.0)
    both = sets.union(0.5)
    assert len(both) == 60
    assert torch.equal(both.images[40:60], data.load("photos", n_train=10_020).train[10_000:])
    assert both.parents[40:].eq(-1).all()
