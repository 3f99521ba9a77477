"""Truncations and thinned collections of the benchmark, at limits where they are exact."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from fpmc import FPMC, Source, diffusion, methods
from fpmc.operators import Box, Dense, Identity, Ones
from tests import helpers

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
SHAPE = (3, 6, 8)
WHOLE = Ones(SHAPE[1:]), Ones(SHAPE[1:])
SQUARES = Box(SHAPE[1:], 3), Box(SHAPE[1:], 3)
PAIRS = pytest.mark.parametrize("pair", [WHOLE, SQUARES], ids=["optimal", "squares"])


@pytest.fixture
def module(monkeypatch):
    """Import a module of the folder of benchmarks, and forget it again."""
    monkeypatch.syspath_prepend(SCRIPTS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def neighbours(module):
    return module("neighbours")


@pytest.fixture
def source():
    return Source(helpers.images(60, SHAPE, 1))


@pytest.fixture
def z():
    return diffusion.add_noise(helpers.images(3, SHAPE, 2), 0.7, 3)


def brute(z, source):
    """Positions in rising distance, in float64."""
    away = z.double().flatten(1)[:, None] - source[:].double().flatten(1)
    return away.square().sum(2).argsort(1)


class TestFaiss:
    """FAISS's neighbours are the nearest images."""

    @pytest.fixture(autouse=True)
    def faiss(self):
        pytest.importorskip("faiss", reason="FAISS is optional")

    @pytest.mark.parametrize("k", [1, 7, 60])
    def test_its_neighbours_are_those_of_brute_force(self, neighbours, source, z, k):
        found = neighbours.Nearest(source, k)(z, 0.7)
        assert torch.equal(torch.stack(found), brute(z, source)[:, :k])

    @pytest.mark.parametrize("k", [1, 7])
    def test_all_lists_hold_the_nearest_images(self, neighbours, source, z, k):
        found = neighbours.Nearest(source, 1, lists=4, probes=4).of(k)(z, 0.7)
        assert torch.equal(torch.stack(found), brute(z, source)[:, :k])

    def test_one_list_holds_some_images_and_none_twice(self, neighbours, source, z):
        for row in neighbours.Nearest(source, 60, lists=4, probes=1)(z, 0.7):
            assert 0 < len(row) < 60
            assert len(row.unique()) == len(row)
            assert row.min() >= 0

    @PAIRS
    @pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
    def test_truncation_to_all_images_is_the_full_answer(self, neighbours, source, z, pair, sigma):
        cut = neighbours.Truncated(partial(FPMC, *pair), source, neighbours.Nearest(source, 60))
        assert helpers.relative(cut(z, sigma), FPMC(*pair, source)(z, sigma)) < 1e-5

    def test_one_neighbour_is_the_answer(self, neighbours, source, z):
        cut = neighbours.Truncated(partial(FPMC, *WHOLE), source, neighbours.Nearest(source, 1))
        nearest = source[brute(z, source)[:, 0]]
        assert helpers.relative(cut(z, 0.7), nearest) < 1e-6

    @pytest.mark.parametrize("k", [1, 5, 30, 59])
    @pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
    def test_the_certificate_bounds_every_pixel(self, neighbours, source, z, k, sigma):
        """The optimal denoiser's answer to the nearest images is as near as is promised.

        Sums over 60 images in float64 round by much less than 1e-12.
        """
        choose = neighbours.Nearest(source, k)
        cut = neighbours.Truncated(partial(FPMC, *WHOLE), source, choose)(z.double(), sigma)
        moved = (cut - FPMC(*WHOLE, source)(z.double(), sigma)).abs().max().item()
        bound = neighbours.certificate(z, sigma, source, choose(z, sigma))
        assert moved <= bound + 1e-12
        assert bound < 2
        assert moved > 1e-3 or sigma < 3 or k == 59

    @pytest.mark.parametrize("k", [0, 61])
    def test_a_size_out_of_range_is_an_error(self, neighbours, source, k):
        with pytest.raises(ValueError, match=f"k: got {k}, wanted 1 to 60"):
            neighbours.Nearest(source, k)


def test_a_missing_faiss_is_said_with_what_to_install(neighbours, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    says = r"faiss: not installed, wanted pip install 'fpmc\[neighbours\]'"
    with pytest.raises(ImportError, match=says):
        neighbours.Nearest(source, 1)


class TestGolden:
    """GoldDiff's rule at its limits."""

    @PAIRS
    @pytest.mark.parametrize("drawn", [False, True])
    def test_with_all_images_it_is_the_full_answer(self, neighbours, source, z, pair, drawn):
        rule = neighbours.Golden(source, 60, 60, drawn=drawn)
        cut = neighbours.Truncated(partial(FPMC, *pair), source, rule)
        assert helpers.relative(cut(z, 0.7), FPMC(*pair, source)(z, 0.7)) < 1e-5

    def test_sizes_go_from_few_of_all_to_all_of_some(self, neighbours, source):
        """Low noise: k_min of N candidates. High noise: k_max of k_max, by blocks alone."""
        rule = neighbours.Golden(source, 3, 6)
        assert rule.sizes(1e-6) == (60, 3)
        assert rule.sizes(1e6) == (6, 6)
        m, k = zip(*map(rule.sizes, (0.1, 0.5, 1, 2, 10)), strict=True)
        assert list(m) == sorted(m, reverse=True)
        assert list(k) == sorted(k)

    def test_at_low_noise_the_nearest_in_pixels_stay(self, neighbours, source, z):
        for drawn in (False, True):
            rule = neighbours.Golden(source, 5, 60, drawn=drawn)
            for own, order in zip(rule(z, 1e-6), brute(z, source), strict=True):
                assert set(own.tolist()) == set(order[:5].tolist())

    def test_at_high_noise_the_nearest_in_blocks_stay(self, neighbours, source, z):
        coarse = [torch.nn.functional.avg_pool2d(x, 2) for x in (z, source[:])]
        order = brute(coarse[0], Source(coarse[1]))
        for own, nearest in zip(neighbours.Golden(source, 3, 6)(z, 1e6), order, strict=True):
            assert set(own.tolist()) == set(nearest[:6].tolist())

    def test_what_is_drawn_is_some_of_all_images_and_follows_the_seed(self, neighbours, source, z):
        first, again, other = (
            neighbours.Golden(source, 3, 6, drawn=True, seed=seed)(z, 5.0) for seed in (0, 0, 1)
        )
        assert all(map(torch.equal, first, again))
        assert not all(
            set(a.tolist()) == set(b.tolist()) for a, b in zip(first, other, strict=True)
        )

    @pytest.mark.parametrize(("least", "most"), [(0, 5), (6, 5), (5, 61)])
    def test_sizes_out_of_range_are_an_error(self, neighbours, source, least, most):
        with pytest.raises(ValueError, match=f"sizes: got {least} and {most}, wanted 1 ≤ least"):
            neighbours.Golden(source, least, most)

    def test_odd_sides_are_an_error(self, neighbours):
        with pytest.raises(ValueError, match=r"source: got sides \(5, 6\), wanted even ones"):
            neighbours.Golden(Source(helpers.images(4, (1, 5, 6), 0)), 1, 2)


def test_a_random_part_holds_different_images_of_the_source(neighbours, source):
    part = neighbours.RandomPart(source, 20).source
    places = (part[:].unsqueeze(1) == source[:]).flatten(2).all(2).nonzero()
    assert len(places) == len(places[:, 1].unique()) == 20


class TestEstimators:
    """Fewer estimators: what they are of where nothing is taken away."""

    @pytest.fixture
    def thin(self, module):
        return module("estimators")

    @pytest.fixture
    def masks(self):
        return Box(SHAPE[1:], 3, "clip").dense()

    def test_a_cell_of_one_pixel_is_the_mask_with_a_one_hot_response(self, thin, masks, source, z):
        one_hot = FPMC(Dense(masks), Identity(SHAPE[1:]), source)(z, 0.7)
        assert helpers.relative(FPMC(*thin.cells(masks, 1), source)(z, 0.7), one_hot) < 1e-6

    def test_a_stride_of_one_is_the_collection(self, thin, masks, source, z):
        full = FPMC(Dense(masks), Dense(masks), source)(z, 0.7)
        assert helpers.relative(FPMC(*thin.strided(masks, 1), source)(z, 0.7), full) < 1e-6

    @pytest.mark.parametrize(("way", "k"), [("cells", 12), ("clusters", 12)])
    def test_every_pixel_has_one_estimator_whose_mask_is_one_of_its_pixels(
        self, thin, masks, way, k
    ):
        queries, responses = getattr(thin, way)(masks, 2 if way == "cells" else k)
        assert queries.k == responses.k == k
        assert (responses.coverage() == 1).all()
        for mask, members in zip(queries.matrix, responses.matrix, strict=True):
            own = masks[members.flatten() > 0]
            assert (own == mask).flatten(1).all(1).any()

    @pytest.mark.parametrize("step", [2, 3, 5])
    def test_a_stride_leaves_no_pixel_bare(self, thin, masks, step):
        queries, responses = thin.strided(masks, step)
        assert queries.k == len(range(step // 2, 6, step)) * len(range(step // 2, 8, step))
        assert (responses.coverage() > 0).all()
        bare = queries.coverage() == 0
        assert torch.equal(responses.coverage()[bare], torch.ones(int(bare.sum())).double())


def test_the_front_is_what_no_other_beats(module):
    pytest.importorskip("faiss", reason="FAISS is optional")
    pareto = module("pareto")
    noise = torch.Generator().manual_seed(0)
    rows = [
        {"method": "any", "seconds": a, "mse": b}
        for a, b in torch.rand(50, 2, generator=noise).tolist()
    ]
    rows.append({"method": "network", "seconds": 0.0, "mse": 0.0})
    kept = pareto.front(rows)
    for row in rows[:-1]:
        beaten = any(
            other["seconds"] <= row["seconds"] and other["mse"] <= row["mse"] and other is not row
            for other in rows[:-1]
        )
        assert (row in kept) is not beaten


def test_lukoianovs_masks_are_truncated_too(neighbours, source, z):
    """A pair of dense operators, as GoldDiff has them, on all images: its full answer."""
    full = methods.lukoianov(source, 0.05)
    rule = neighbours.Golden(source, 60, 60)
    cut = neighbours.Truncated(partial(FPMC, *full.operators(0.7)), source, rule)
    assert helpers.relative(cut(z, 0.7), full(z, 0.7)) < 1e-5
