"""When collections memorise: rows are what the definitions say, and bear the chapter out."""

import math

import pytest
import torch

import fpmc
from fpmc import data, diffusion, methods, metrics, results
from fpmc.experiments import memorisation as stage
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.operators import Dense
from fpmc.source import Source, to_float

LEVEL = 11


@pytest.fixture
def job(tmp_path):
    """Digits, nine points, two samples of three steps."""
    out = tmp_path / "digits"
    return Job(data="digits", out=out, points=9, samples=2, steps=18, level=(LEVEL,))


def table(job):
    """{(method, z, N): row}."""
    rows = results.read("digits", "memorisation", job.out.parent)
    return {(row["method"], row["z"], row["n_source"]): row for row in rows}


def test_rows_are_what_the_definitions_say(job):
    job = Job(**{**vars(job), "method": ("optimal", "ls")})
    stage.run(job, Clock())
    rows, sigma = table(job), job.levels[LEVEL]
    assert len(rows) == 2 * (1 + 3 + 3)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    largest, rest = (job.dataset.train[part] for part in (order[:750], order[750:]))
    x = to_float(largest[:9])
    z = diffusion.add_noise(x, sigma, stage.FIRST_SEED + LEVEL)
    some = torch.randperm(64, generator=torch.Generator().manual_seed(0))[: stage.ASKED]
    matrix = methods.ls(Source(largest), "digits").operators(sigma)[0].dense()[some]

    def densities(source):
        """By the weights of the images together with each image alone, (b, k)."""
        found = []
        for i in range(9):
            both = torch.cat([x[i : i + 1], source.read(slice(None), torch.float32)])
            local = fpmc.FPMC(Dense(matrix), Dense(matrix + 1), Source(both))
            weights = local.posterior(z[i : i + 1].double(), sigma).weights()[0]
            found.append((weights[:, 0] / weights[:, 1:].sum(1)).log() + math.log(len(source)))
        return torch.stack(found)

    by_reference = densities(Source(rest))
    row = rows["ls", "reference", 750]
    assert row["density"] == pytest.approx(by_reference.mean().item(), rel=1e-4)
    error = by_reference.mean(1).std().item() / 3
    assert row["density"].standard_error == pytest.approx(error, rel=0.01)
    for n in (75, 750):
        row, source = rows["ls", "forward", n], Source(largest[:n])
        local = fpmc.FPMC(Dense(matrix), Dense(matrix + 1), source)
        weights = local.posterior(z.double(), sigma).weights()
        own = weights[torch.arange(9), :, torch.arange(9)]
        assert row["own"] == pytest.approx(own.mean().item(), rel=1e-4)
        gap = own - 1 / (1 + (n - 1) * torch.exp(-by_reference))
        assert row["gap"] == pytest.approx(gap.mean().item(), abs=1e-5)
        assert row["gap"].standard_error == pytest.approx(gap.mean(1).std().item() / 3, rel=0.01)
        entropy = torch.special.entr(weights).sum(-1)
        assert row["information"] == pytest.approx(math.log(n) - entropy.mean().item(), rel=1e-4)
        answer = methods.ls(source, "digits")(z, sigma)
        apart = metrics.nearest(answer, source, Dense(matrix))[0]
        assert row["distance"] == pytest.approx(apart.mean().item(), rel=1e-4)
    blocks = [Source(largest[:7]), Source(largest[7:14])]
    own = [
        methods.optimal(block).posterior(z[i : i + 1], sigma).weights()[0, 0, i % 7]
        for i, block in ((i, blocks[i // 7]) for i in range(9))
    ]
    assert rows["optimal", "forward", 7]["own"] == pytest.approx(sum(own).item() / 9, rel=1e-4)
    assert rows["optimal", "sample", 75]["copied"] == 1
    assert rows["optimal", "sample", 75]["distance"] < 1e-6
    before = (job.out / "memorisation.csv").read_bytes()
    stage.run(job, Clock())
    assert (job.out / "memorisation.csv").read_bytes() == before, "nothing is left to compute"


def test_a_gaussian_has_at_least_the_information_that_is_found(job):
    job = Job(**{**vars(job), "method": ("pspc_square",)})
    stage.run(job, Clock())
    row = table(job)["pspc_square", "forward", 750]
    assert row["information"] < table(job)["pspc_square", "reference", 750]["gaussian"]


def test_a_job_s_precision_reaches_the_answers(job):
    job = Job(**{**vars(job), "precision": "float32"})
    made = stage.Questions(job).collection("ls", job.source)
    assert made.precision == "float32"


def test_photos_are_drawn_at_will():
    asked = stage.Questions(Job(data="photos"))
    largest, reference = asked.images
    assert torch.equal(largest, data.load("photos").train)
    assert (len(largest), len(reference)) == (10_000, 20_000)
    assert asked.sizes == [100, 1_000, 10_000]


def test_methods_without_filtered_posteriors_are_refused(job):
    with pytest.raises(ValueError, match="method: got 'els', wanted one of optimal"):
        stage.run(Job(**{**vars(job), "method": ("els",)}), Clock())


def stored(name):
    """The forward rows of a stored table, each with its reference row and the bound of I."""
    rows = results.read(name, "memorisation")
    by = {(row["method"], row["sigma"]): row for row in rows if row["z"] == "reference"}
    pairs = ((row, by[row["method"], row["sigma"]]) for row in rows if row["z"] == "forward")
    return [(a, b, min(b["density"], b["gaussian"])) for a, b in pairs]


class TestChapter:
    """What the chapter says of the stored tables."""

    @pytest.mark.parametrize("name", ["photos", "digits"])
    def test_theory_gives_the_mean_weights_up_to_a_tenth(self, name):
        gaps = {}
        for row, _, _ in stored(name):
            gaps.setdefault(row["n_source"], []).append(row["gap"])
        assert max(abs(gap) for every in gaps.values() for gap in every) < 0.1
        if name == "photos":
            assert max(abs(gap) for n in (1_000, 10_000) for gap in gaps[n]) < 0.05
        assert sum(gap > 0 for gap in gaps[min(gaps)]) > 0.8 * len(gaps[min(gaps)])

    def test_the_border_is_at_the_median_and_not_below_the_mean(self):
        for name, most in (("photos", 1.6), ("digits", 1.2)):
            for row, reference, mean in stored(name):
                log_n, clear = math.log(row["n_source"]), 2 * row["own"].standard_error
                if row["own"] > 0.5 + clear:
                    assert min(mean, reference["median"]) > log_n
                if row["own"] < 0.5 - clear:
                    assert reference["median"] < log_n
                    assert mean < most * log_n

    def test_on_photos_masks_stay_near_log_n_and_whole_images_do_not(self):
        bound = {(row["method"], row["sigma"]): mean for row, _, mean in stored("photos")}
        for (method, sigma), mean in bound.items():
            if method != "optimal" and sigma < 2:
                assert 0.48 < mean / math.log(10_000) < 1.6
        assert bound["optimal", 0.139516] > 20 * bound["optimal", 1.92334]

    def test_on_digits_the_lowest_level_is_the_exception(self):
        bound = {(row["method"], row["sigma"]): mean for row, _, mean in stored("digits")}
        local = ("pspc_square", "pspc_flex", "ls", "lukoianov")
        assert all(0.5 < bound[m, 0.585348] / math.log(1500) < 2 for m in local)
        assert all(bound[m, 0.139516] < math.log(1500) / 4 for m in ("pspc_flex", "ls"))

    @pytest.mark.parametrize("name", ["photos", "digits"])
    def test_samples_copy_the_less_the_more_images_there_are(self, name):
        rows = [row for row in results.read(name, "memorisation") if row["z"] == "sample"]
        for method in {row["method"] for row in rows}:
            copied = [row["copied"] for row in rows if row["method"] == method]
            if method == "optimal":
                assert copied == [1, 1, 1]
            else:
                assert copied == sorted(copied, reverse=True)
                assert copied[-1] < 0.1
