"""The maze with two ways: geometry, demonstrations, networks that know the ends, and the stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fpmc import data, maze, networks, results
from fpmc.data import demonstrations, fingerprint
from fpmc.experiments import paths, stages
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.networks.recipes import recipe
from fpmc.networks.train import train
from fpmc.networks.training.batches import NoisyBatches
from fpmc.networks.training.loss import edm_loss, energy_loss
from fpmc.source import to_float


def through(*corners, steps=64):
    """A path at even speed through places in cells, as an image."""
    corners = torch.tensor(corners, dtype=torch.float64)
    along = torch.cat([torch.zeros(1), corners.diff(dim=0).norm(dim=1).cumsum(0)]).numpy()
    at = np.linspace(0, along[-1], steps)
    axes = [np.interp(at, along, axis.numpy()) for axis in corners.T]
    return torch.tensor(np.stack(axes) / maze.EXTENT)[None, :, None]


LOW = through((-3, 0), (-3, -2), (3, -2), (3, 0))
HIGH = LOW * torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1)


class TestMaze:
    def test_a_path_along_corridors_succeeds_and_one_through_the_block_does_not(self):
        straight = through((-3, 0), (3, 0))
        assert maze.succeeds(torch.cat([LOW, HIGH, straight])).tolist() == [True, True, False]

    def test_the_sign_of_the_angle_tells_the_way(self):
        assert maze.above(torch.cat([LOW, HIGH])).tolist() == [False, True]
        there_and_back = through((-3, 0), (-3, -2), (0, -2), (-3, -2), (-3, 2), (3, 2), (3, 0))
        assert maze.above(there_and_back).tolist() == [True]

    def test_mirroring_a_path_mirrors_its_way_and_keeps_its_success(self):
        generator = torch.Generator().manual_seed(0)
        wild = 0.8 * (2 * torch.rand(200, 2, 1, 6, generator=generator) - 1)
        mirrored = wild * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        assert torch.equal(maze.succeeds(wild), maze.succeeds(mirrored))
        assert torch.equal(maze.above(wild), ~maze.above(mirrored))

    def test_lines_and_walls_meet_where_a_thousand_places_of_the_line_say_so(self):
        generator = torch.Generator().manual_seed(1)
        start = 7 * torch.rand(300, 1, 2, generator=generator) - 3.5
        step = 2 * torch.rand(300, 1, 2, generator=generator) - 1
        lower, upper = maze.walls()
        on = start + torch.linspace(0, 1, 1000)[:, None] * step  # (300, 1000, 2)
        inside = ((on[:, :, None] > lower) & (on[:, :, None] < upper)).all(-1).any(1)
        met = maze._meets(start, step)[:, 0]
        assert (met | ~inside).all()  # where a place is inside, the line meets the wall
        assert (met ^ inside).sum() <= 3  # corners that are cut between two of the places

    @pytest.mark.parametrize(
        ("corners", "reached"),
        [
            (((-2.55, 0), (-2.51, 0)), True),
            (((-2.55, 0), (-2.49, 0)), False),
            (((-3, 0), (-3, 0)), True),
            (((0, 0), (0, 0)), False),
            (((-3.4, 0), (-3.6, 0)), False),
            (((-2.6, 1.45), (-2.4, 1.6)), True),
            (((-2.6, 1.3), (-2.35, 1.55)), False),  # both ends are free, the corner is between
            (((-2.51, -1), (-2.51, 1)), False),  # one step, which is too long
        ],
    )
    def test_a_step_succeeds_off_the_walls_and_if_it_is_short(self, corners, reached):
        assert maze.succeeds(through(*corners, steps=2)).tolist() == [reached]

    def test_a_step_of_the_longest_length_is_taken_and_a_longer_one_is_not(self):
        lengths = (maze.LONGEST - 1e-6, maze.LONGEST + 1e-6)
        images = torch.cat([through((-3, 0), (-3, y), steps=2) for y in lengths])
        assert maze.succeeds(images).tolist() == [True, False]

    def test_different_is_the_probability_over_all_pairs_of_draws(self):
        generator = torch.Generator().manual_seed(2)
        works, high = (torch.rand(5, 40, generator=generator) < p for p in (0.7, 0.5))
        wanted = torch.zeros(40)
        for i in range(5):
            for j in range(5):
                if i != j:
                    wanted += (works[i] & works[j] & (high[i] != high[j])).float() / 20
        assert torch.allclose(maze.different(works, high), wanted)

    def test_the_map_is_mirrored_and_surrounded_by_walls(self):
        rows = np.array(maze.MAP)
        assert np.array_equal(rows, rows[::-1])
        assert np.array_equal(rows, rows[:, ::-1])
        assert rows[0].all()
        assert rows[:, 0].all()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: maze.cells(torch.zeros(1, 2, 1, 1)), "images: got shape"),
            (lambda: maze.cells(torch.full((1, 2, 1, 4), torch.nan)), "images: .*NaN"),
            (
                lambda: maze.different(torch.ones(1, 3).bool(), torch.ones(1, 3).bool()),
                "works, high: got shapes .* m ≥ 2",
            ),
        ],
    )
    def test_what_is_no_path_is_an_error(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestDemonstrations:
    @pytest.mark.parametrize("high", [True, False])
    @pytest.mark.parametrize("start", [1, 3, 5])
    @pytest.mark.parametrize("goal", [1, 2, 5])
    def test_a_route_goes_from_cell_to_cell_through_free_ones(self, start, goal, high):
        cells = demonstrations.route((start, 1), (goal, 7), high)
        assert cells[-1] == (goal, 7)
        before = (start, 1)
        for cell in cells:
            assert sum(abs(a - b) for a, b in zip(cell, before, strict=True)) == 1
            assert not maze.MAP[cell[0]][cell[1]]
            before = cell
        assert ((1, 4) in cells) == high

    def test_resampling_keeps_both_ends_and_even_steps(self):
        even = np.linspace([-3.0, 1.0], [3.0, 2.0], 301)
        found = demonstrations.resampled(even)
        assert found.shape == (64, 2)
        assert np.allclose(found, np.linspace([-3.0, 1.0], [3.0, 2.0], 64))

    def test_resampling_follows_time_and_not_length(self):
        slow_then_fast = np.array([[0.0, 0.0]] * 50 + [[float(i), 0.0] for i in range(51)])
        found = demonstrations.resampled(slow_then_fast, 3)
        assert np.allclose(found[:, 0], [0.0, 1.0, 50.0], atol=1)

    def test_rounding_is_to_half_a_pixel_value_and_inverted_by_cells(self):
        places = np.random.default_rng(0).uniform(-4, 4, (64, 2))
        image = to_float(torch.from_numpy(demonstrations.rounded(places))[None])
        apart = maze.cells(image)[0] - torch.from_numpy(places)
        assert apart.abs().max() <= maze.EXTENT / 255 + 1e-6

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: demonstrations.route((2, 2), (2, 7), True), "start: got"),
            (lambda: demonstrations.route((2, 1), (0, 7), True), "goal: got"),
            (lambda: demonstrations.resampled(np.zeros((1, 2))), "places: got 1 for 64"),
            (lambda: demonstrations.rounded(np.full((3, 2), 4.1)), "places: got some beyond 4"),
            (lambda: demonstrations.rounded(np.full((3, 2), np.nan)), "places: got some beyond 4"),
        ],
    )
    def test_what_fits_not_is_an_error(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_data_that_were_not_made_are_an_error_that_says_how(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"python -m fpmc\.data\.demonstrations"):
            data.load("maze", tmp_path)

    def test_without_the_extra_the_error_says_what_to_install(self, monkeypatch, tmp_path):
        def missing(name):
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(demonstrations, "import_module", missing)
        with pytest.raises(ImportError, match=r"pip install 'fpmc\[maze\]'"):
            demonstrations.make(1)
        with pytest.raises(SystemExit, match="error: maze: no gymnasium-robotics"):
            demonstrations.main(["--root", str(tmp_path)])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train": np.zeros((3, 2, 1, 64), np.float32)}, "got float32"),
            ({"train": np.zeros((3, 2, 1, 32), np.uint8)}, "wanted uint8"),
            ({"test_ways": np.zeros(7, np.int64)}, "got ways of shape"),
        ],
    )
    def test_a_file_of_something_else_is_an_error(self, tmp_path, change, message):
        arrays = toy_arrays() | change
        np.savez(tmp_path / demonstrations.FILE, **arrays)
        with pytest.raises(ValueError, match=message):
            data.load("maze", tmp_path)
        (tmp_path / demonstrations.FILE).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a file of demonstrations"):
            data.load("maze", tmp_path)

    def test_demonstrations_succeed_by_both_ways_and_are_those_of_their_numbers(self):
        pytest.importorskip(
            "gymnasium_robotics", reason="the extra maze is not installed: no simulator"
        )
        images, ways = demonstrations.make(12)
        x = to_float(torch.from_numpy(images))
        assert maze.succeeds(x).all()
        assert torch.equal(~maze.above(x), torch.from_numpy(ways).bool())
        assert 0 < ways.sum() < 12
        again, _ = demonstrations.make(3, first=9)
        assert np.array_equal(again, images[9:])
        other, _ = demonstrations.make(3, seed=1)
        assert not np.array_equal(other, images[:3])


def toy_arrays(n=24, m=8):
    """Paths around the block at random heights, which look like demonstrations."""
    rng = np.random.default_rng(0)
    both = {}
    for part, count in (("train", n), ("test", m)):
        ways = rng.integers(2, size=count)
        made = []
        for way in ways:
            y, (start, end) = (-2 if way else 2) + rng.uniform(-0.2, 0.2), rng.uniform(-1, 1, 2)
            made.append(through((-3, start), (-3, y), (3, y), (3, end)))
        pixels = ((torch.cat(made) + 1) * 127.5).round().byte()
        both |= {part: pixels.numpy(), f"{part}_ways": ways.astype(np.int64)}
    return both


@pytest.fixture
def toy(tmp_path) -> Path:
    np.savez(tmp_path / demonstrations.FILE, **toy_arrays())
    return tmp_path


def test_the_file_is_read_as_a_dataset_whose_classes_are_the_ways(toy):
    dataset = data.load("maze", toy)
    assert dataset.train.shape == (24, 2, 1, 64)
    assert torch.equal(~maze.above(to_float(dataset.test)), dataset.test_labels.bool())
    again = data.load("maze", toy)
    assert fingerprint(again.train) == fingerprint(dataset.train)


TINY = {"waves": 6, "width": 8, "depth": 1}


def knowing(xi=False, **options):
    """A network that knows the ends, whose last layer says something."""
    network = networks.build("path", (2, 1, 64), xi=xi, **TINY | options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


class TestNetwork:
    def test_an_answer_has_the_ends_it_was_told_and_depends_on_them(self):
        network, generator = knowing(), torch.Generator().manual_seed(1)
        z = torch.randn(3, 2, 1, 64, generator=generator)
        other = z.clone()
        other[..., -1] += 0.1
        with torch.no_grad():
            first, second = network(z, 50.0), network(other, 50.0)
        assert torch.equal(first[..., [0, -1]], z[..., [0, -1]])
        assert torch.equal(second[..., [0, -1]], other[..., [0, -1]])
        line = torch.linspace(0, 1, 64)[1:-1] * 0.1
        apart = (second - first)[..., 1:-1] - line
        assert apart.abs().amax() > 1e-4  # unlike noise of z, ends count at high noise, too

    def test_an_untrained_answer_is_the_straight_line_between_the_ends(self):
        network = networks.build("path", (2, 1, 64), **TINY)
        z = torch.randn(2, 2, 1, 64, generator=torch.Generator().manual_seed(0))
        ends = z[..., [0]] + torch.linspace(0, 1, 64) * (z[..., [-1]] - z[..., [0]])
        assert torch.allclose(network(z, 2.0), ends, atol=1e-6)

    def test_an_answer_is_smooth_it_has_no_more_sines_than_it_may(self):
        z = 3 * torch.randn(2, 2, 1, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            answer = knowing()(z, 3.0)[:, :, 0].double()
        straight = torch.lerp(answer[..., :1], answer[..., -1:], torch.linspace(0, 1, 64).double())
        place = torch.arange(64).double() * torch.pi / 63
        sines = torch.stack([(k * place).sin() for k in range(1, 63)])
        heights = (answer - straight) @ sines.mT
        assert heights[..., :6].abs().amax() > 1e-2
        assert heights[..., 6:].abs().amax() < 1e-4

    def test_in_training_the_ends_have_no_noise_and_cost_nothing(self):
        network, generator = knowing(xi=True), torch.Generator().manual_seed(2)
        x, noise = torch.randn(2, 4, 2, 1, 64, generator=generator)
        sigma, xi = torch.full((4,), 3.0), torch.randn(4, 2, 2, 1, 64, generator=generator)
        z = network.noisy(x, sigma, noise)
        assert torch.equal(z[..., [0, -1]], x[..., [0, -1]])
        assert torch.equal(z[..., 1:-1], (x + 3 * noise)[..., 1:-1])
        elsewhere = noise.clone()
        elsewhere[..., [0, -1]] = 1e6
        score = {"xi": xi, "beta": 1.0, "repulsion": 1.0}
        same = [energy_loss(network, x, sigma, e, **score) for e in (noise, elsewhere)]
        assert same[0] == same[1]
        plain = knowing()
        assert edm_loss(plain, x, sigma, elsewhere) == edm_loss(plain, x, sigma, noise)

    def test_in_the_loss_every_noise_level_starts_equal(self):
        network = networks.build("path", (2, 1, 64), **TINY)
        x = torch.cat([LOW, HIGH]).float()
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        losses = [edm_loss(network, x, torch.full((2,), s), noise) for s in (0.01, 1.0, 80.0)]
        line = torch.lerp(x[..., :1], x[..., -1:], torch.linspace(0, 1, 64))
        wanted = 4 * (line - x).square().mean()  # of the untrained answer, over σ_d²
        assert all(loss.item() == pytest.approx(wanted.item(), rel=1e-5) for loss in losses)

    def test_a_network_of_whole_images_knows_nothing(self):
        network = networks.build("dit", (1, 8, 8), patch=4, width=16, depth=1, heads=2)
        x = torch.ones(2, 1, 8, 8)
        assert network.known is None
        assert torch.equal(network.noisy(x, torch.tensor([1.0, 2.0]), x)[1], 3 * x[1])

    @pytest.mark.parametrize(
        ("shape", "options", "error", "message"),
        [
            ((2, 8, 8), {}, ValueError, r"shape: got \(2, 8, 8\), wanted \(c, 1, t\)"),
            ((2, 1, 2), {}, ValueError, "shape: got"),
            ((2, 1, 64), {"waves": 63}, ValueError, "waves: got 63"),
            ((2, 1, 64), {"width": 10}, ValueError, "width: got 10, wanted a multiple of 4"),
            ((2, 1, 64), {"depth": 0}, ValueError, "depth: got 0"),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, shape, options, error, message):
        with pytest.raises(error, match=message):
            networks.build("path", shape, **TINY | options)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"flips": True}, "flips: got True"), ({"target": "posterior"}, "target: got 'poster")],
    )
    def test_training_that_would_move_the_ends_is_an_error(self, toy, changes, message):
        chosen = recipe("maze", "path", options=TINY, images=8, batch=4, **changes)
        with pytest.raises(ValueError, match=f"{message}.* where ends are known"):
            train(chosen, toy / "run", root=toy, progress=False)

    def test_it_is_saved_and_loaded_with_what_it_knows(self, toy):
        chosen = recipe("maze", "path", options=TINY, images=16, batch=8, levels=(0.0, 1.0))
        network = train(chosen, toy / "run", root=toy, precision="float32", progress=False)
        loaded = networks.load(toy / "run" / "network.safetensors")
        z = torch.randn(2, 2, 1, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded.known, network.known)
        assert torch.allclose(loaded(z, 1.0), network(z, 1.0), atol=1e-2)
        batch = NoisyBatches(chosen, data.load("maze", toy).train).at(0)
        assert torch.isfinite(edm_loss(network, *batch))

    def test_the_recipe_of_a_network_that_draws_has_no_dropout_to_switch_off(self):
        chosen = recipe("maze", "path", objective="energy")
        assert chosen.options == {"xi": True}
        assert networks.build("path", (2, 1, 64), **chosen.options).model.embed.in_features == 68


@pytest.fixture
def job(toy, monkeypatch):
    tiny = {"SETS": 2, "ANSWERS": 32, "BATCH": 8, "CALLS": (1, 2), "EACH": 3, "PICTURED": 2}
    for name, value in tiny.items():
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setattr(paths, "OPTIONS", TINY)
    return Job(data="maze", root=str(toy), out=toy / "results" / "maze", runs=toy / "runs")


class TestStage:
    def test_it_fills_its_table_once(self, job, toy, monkeypatch):
        stages.run("paths", job, Clock())
        rows = results.read("maze", "paths", toy / "results")
        places = [(row["network"], row["sampler"], row["calls"]) for row in rows]
        wanted = [("demonstrations", "none", 0.0)]
        wanted += [(*pair, n) for pair in paths.SAMPLERS for n in (1.0, 2.0)]
        assert places == wanted
        assert rows[0]["success"] == 1
        assert all(row["energy"].n == 2 for row in rows)
        drawn = results.images("maze", toy / "results", table="paths")
        assert drawn["draws, bridge, 8"].shape == (2, 2, 1, 64)
        ends = drawn["demonstration"][..., [0, -1]]
        assert all(torch.allclose(x[..., [0, -1]], ends) for x in drawn.values())
        monkeypatch.setattr(paths, "_worth", None)
        monkeypatch.setattr(paths, "trained", lambda *given: job_file(job, given[-1]))
        stages.run("paths", job, Clock())  # nothing is left to do

    def test_both_networks_compute_as_many_answers_and_differ_in_the_score_alone(self, job):
        means, draws = (paths.recipe_of(job, name) for name in ("means", "draws"))
        assert means.images * means.population == draws.images * draws.population
        assert means.batch * means.population == draws.batch * draws.population
        assert means.options == draws.options | {"xi": False}
        assert (means.levels, means.rate, means.seed) == (draws.levels, draws.rate, 0)

    def test_paths_start_and_end_where_they_were_told_whatever_the_sampler(self):
        ends = torch.cat([LOW, HIGH]).float()
        for xi, sampler in ((False, "heun"), (False, "bridge"), (True, "bridge")):
            found = paths.pictures(knowing(xi), sampler, ends, 3, 0)
            assert torch.equal(found[..., [0, -1]], ends[..., [0, -1]])
            again = paths.pictures(knowing(xi), sampler, ends, 3, 0)
            assert torch.equal(found, again)

    def test_a_sampler_of_demonstrations_has_their_worth(self):
        both = torch.stack([LOW, HIGH]).float().expand(2, 5, -1, -1, -1)
        worth = paths._worth(both, torch.cat([LOW, HIGH]).float())
        assert worth["success"] == 1
        assert worth["both"] == 1  # two draws, one of each way
        assert worth["above"] == 0.5

    def test_images_are_an_error(self, tmp_path):
        other = Job(data="digits", out=tmp_path / "digits", runs=tmp_path)
        with pytest.raises(ValueError, match="data: got digits, wanted paths"):
            stages.run("paths", other, Clock())


def job_file(job, name):
    return str(job.runs / "maze-distributional" / name / f"{name}.safetensors")
