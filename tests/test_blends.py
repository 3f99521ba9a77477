"""Blends: weights of least squares, files that give back what was kept, the shipped ones' rows."""

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

import fpmc
from fpmc import blends, data, diffusion, methods, mixtures, networks, results
from fpmc.blends.blend import Blend, nonnegative
from fpmc.blends.parts import Fitted
from fpmc.experiments.forms import FIRST_SEED
from fpmc.source import to_float
from fpmc.widths import Wide
from tests.helpers import images, relative

SHAPE = (1, 6, 6)
X = images(30, SHAPE, 1)
SOURCE = fpmc.Source(X)
Z = images(4, SHAPE, 2) * 1.3
LEVELS = (2.0, 0.5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for what is fitted, the same for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPMC_DATA", str(tmp_path_factory.mktemp("downloads")))
        yield


@pytest.fixture(scope="module")
def parts():
    return {
        "optimal": methods.optimal(SOURCE),
        "Wiener": methods.wiener(SOURCE),
        "mixture, p = 3": mixtures.fit(SOURCE, 3, 2, steps=1),
    }


class TestTheSum:
    def test_one_denoiser_with_weight_1_is_that_denoiser(self, parts):
        for name, one in parts.items():
            blend = Blend(parts, {0.5: {name: 1.0}, 2.0: {name: 1}})
            assert torch.equal(blend(Z, 0.5), one(Z, 0.5))
            assert blend.at(2.0) == {name: 1.0}

    def test_the_nearest_level_s_weights_are_taken(self, parts):
        blend = Blend(parts, {0.5: {"optimal": 0.25, "Wiener": 0.5}, 8.0: {"Wiener": 1.5}})
        for sigma, wanted in ((0.3, (0.25, 0.5)), (1.9, (0.25, 0.5)), (2.1, (0.0, 1.5))):
            a, b = wanted
            total = a * parts["optimal"](Z, sigma) + b * parts["Wiener"](Z, sigma)
            torch.testing.assert_close(blend(Z, sigma), total)
        both = blend(Z, torch.tensor([0.3, 9.0, 0.3, 9.0]))
        torch.testing.assert_close(both[1::2], blend(Z[1::2], 9.0))
        torch.testing.assert_close(both[::2], blend(Z[::2], 0.3))

    def test_a_denoiser_without_weight_is_not_asked(self, parts):
        def refuse(z, sigma):
            raise AssertionError

        refuse.shape = SHAPE
        blend = Blend(parts | {"never": refuse}, {1.0: {"Wiener": 1.0, "never": 0.0}})
        assert torch.equal(blend(Z, 1.0), parts["Wiener"](Z, 1.0))

    def test_it_is_a_denoiser_as_any_other(self, parts):
        blend = Blend(parts, {s: dict.fromkeys(parts, 1 / 3) for s in LEVELS})
        start = diffusion.initial_noise(2, SHAPE, 0)
        drawn = diffusion.sample(blend, start, diffusion.edm_sigmas(5))
        assert drawn.shape == start.shape
        assert drawn.isfinite().all()
        z = Z[:1].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda z: blend(z, 0.5), (z,))
        assert torch.equal(pickle.loads(pickle.dumps(blend))(Z, 0.5), blend(Z, 0.5))
        assert torch.equal(blend.to("cpu")(Z, 0.5), blend(Z, 0.5))
        assert blend.shape == SHAPE


class TestTheFit:
    def test_weights_are_those_of_a_known_case(self):
        """Orthonormal columns: each weight is a product; the one below 0 is 0."""
        columns = torch.linalg.qr(images(40, (1, 1, 3), 3, torch.float64).flatten(1))[0]
        target = columns @ torch.tensor([0.7, 0.02, -0.4], dtype=torch.float64)
        found = nonnegative(columns, target)
        torch.testing.assert_close(found, torch.tensor([0.7, 0.02, 0.0], dtype=torch.float64))
        least = nonnegative(columns, target, 0.1)
        torch.testing.assert_close(least, torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64))

    def test_what_is_left_out_is_made_up_for(self):
        columns = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        target = torch.tensor([1.05, 1.0], dtype=torch.float64)
        torch.testing.assert_close(nonnegative(columns, target), target.new_tensor([1.0, 0.05]))
        assert nonnegative(columns, target, 0.1).tolist() == pytest.approx([1.025, 0.0])

    def test_a_blend_that_was_the_network_is_found_again(self, parts):
        wanted = {"optimal": 0.3, "Wiener": 0.6, "mixture, p = 3": 0.0}
        network = Blend(parts, dict.fromkeys(LEVELS, wanted))
        found = blends.fit(parts, network, X[:12], LEVELS, batch=5, seed=3)
        for sigma in LEVELS:
            got = {name: found.at(sigma).get(name, 0.0) for name in parts}
            assert got == pytest.approx(wanted, abs=1e-4)

    def test_no_weights_are_nearer(self, parts):
        network, sigma, seed = fpmc.methods.pspc_square(SOURCE, 3), 0.5, 5
        generator = torch.Generator().manual_seed(seed)
        found = blends.fit(parts, network, X[:12], [sigma], generator=generator)
        z = diffusion.add_noise(X[:12], sigma, torch.Generator().manual_seed(seed))
        target = network(z, sigma)

        def error(weights):
            return (Blend(parts, {sigma: weights})(z, sigma) - target).square().sum().item()

        best, weights = error(found.at(sigma)), found.at(sigma)
        assert all(a >= 0 for a in weights.values())
        for name in parts:
            for step in (-1e-2, 1e-2):
                moved = weights | {name: weights.get(name, 0.0) + step}
                if moved[name] >= 0:
                    assert error(moved) > best


RECIPES = {
    "Wiener": {"kind": "wiener"},
    "wide": {"kind": "wide", "shares": {"0.5": 0.2, "2.0": 0.05}},
}


class TestFiles:
    @pytest.fixture
    def kept(self, parts, tmp_path):
        wide = Wide(SOURCE, {0.5: 0.2, 2.0: 0.05})
        weights = {
            0.5: {"Wiener": 0.2, "wide": 0.3, "mixture, p = 3": 0.45},
            2.0: {"Wiener": 1.0, "optimal": 0.0},
        }
        blend = Blend(parts | {"wide": wide}, weights)
        blends.save(blend, tmp_path, RECIPES, {"made": "here"})
        return blend

    def test_what_is_read_is_what_was_kept(self, kept, tmp_path):
        read = blends.load(tmp_path, SOURCE)
        assert read.weights == kept.weights
        for sigma in (0.4, 3.0):
            assert relative(read(Z, sigma), kept(Z, sigma)) < 2e-3  # directions have eight bits
        assert blends.card(tmp_path) == {"made": "here"}
        assert set(read.denoisers) == {"Wiener", "wide", "mixture, p = 3"}
        files = {path.name for path in tmp_path.iterdir()}
        assert files == {"blend.safetensors", "card.json", "mixture-p-3.safetensors"}

    def test_another_source_gives_other_answers(self, kept, tmp_path):
        other = blends.load(tmp_path, fpmc.Source(images(9, SHAPE, 7)))
        assert relative(other(Z, 3.0), kept(Z, 3.0)) > 0.01

    def test_a_denoiser_that_no_file_holds_is_given(self, parts, tmp_path):
        blend = Blend(parts, {1.0: {"optimal": 0.5, "Wiener": 0.5}})
        blends.save(blend, tmp_path, {"Wiener": {"kind": "wiener"}})
        with pytest.raises(ValueError, match="denoisers: got none for 'optimal', wanted it"):
            blends.load(tmp_path, SOURCE)
        read = blends.load(tmp_path, SOURCE, denoisers={"optimal": parts["optimal"]})
        torch.testing.assert_close(read(Z, 1.0), blend(Z, 1.0))
        with pytest.raises(ValueError, match="denoisers: got 'x', wanted some of optimal, Wiener"):
            blends.load(tmp_path, SOURCE, denoisers={"x": parts["optimal"]})

    def test_each_mixture_has_a_file_of_its_own(self, parts, tmp_path):
        """Whatever their names, and beside the blend's own file."""
        mixture = parts["mixture, p = 3"]
        other = mixtures.fit(SOURCE, 2, 1, steps=1)
        for names in (("p, 3", "p 3"), ("é", "ü"), ("M", "m"), ("a", "blend")):
            held = dict(zip(names, (mixture, other), strict=True))
            blend = Blend(held, {1.0: dict.fromkeys(names, 0.5)})
            folder = tmp_path / names[0]
            blends.save(blend, folder)
            assert len({path.name.lower() for path in folder.glob("*.safetensors")}) == 3
            read = blends.load(folder, SOURCE)
            for name in names:
                assert relative(read.denoisers[name](Z, 1.0), held[name](Z, 1.0)) < 2e-3

    @pytest.mark.usefixtures("as_users_do")
    def test_nothing_is_written_if_the_card_cannot_be(self, kept, tmp_path):
        folder = tmp_path / "new"
        with pytest.raises(TypeError, match="not JSON serializable"):
            blends.save(kept, folder, RECIPES, {"a": X})
        assert not folder.exists()
        with pytest.raises(TypeError, match="blend: got int, wanted a Blend"):
            blends.save(3, folder)

    def test_the_home_folder_is_found(self, kept, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        blends.save(kept, "~/mine", RECIPES)
        assert blends.load(tmp_path / "mine", SOURCE).weights == kept.weights

    @pytest.mark.usefixtures("as_users_do")
    def test_other_images_and_broken_files_are_refused(self, kept, tmp_path):
        with pytest.raises(ValueError, match=r"source: got images of shape \(1, 5, 5\), wanted"):
            blends.load(tmp_path, fpmc.Source(images(3, (1, 5, 5), 0)))
        with pytest.raises(TypeError, match="source: got"):
            blends.load(tmp_path, X.numpy())
        with pytest.raises(FileNotFoundError, match="no blend there, wanted a folder, or one of"):
            blends.load(tmp_path / "none", SOURCE)
        for name, told in (
            ("mixture-p-3.safetensors", "no mixture can be read"),
            ("blend.safetensors", "no blend can be read"),
        ):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:-9])
            with pytest.raises(ValueError, match=told):
                blends.load(tmp_path, SOURCE)
        mixtures.write(tmp_path / "blend.safetensors", kept.denoisers["mixture, p = 3"])
        with pytest.raises(ValueError, match="got format None, wanted 'fpmc blend 1'"):
            blends.load(tmp_path, SOURCE)

    @pytest.mark.usefixtures("as_users_do")
    def test_a_recipe_of_no_kind_is_refused(self, kept, tmp_path):
        for wrong in (
            {"Wiener": {"kind": "magic"}},
            {"none": {"kind": "wiener"}},
            {"wide": "wide"},
        ):
            with pytest.raises(ValueError, match="recipes: got"):
                blends.save(kept, tmp_path, wrong)
        blends.save(kept, tmp_path, {"wide": {"kind": "wide"}, "Wiener": {"kind": "wiener"}})
        with pytest.raises(ValueError, match="its recipe for 'wide' lacks something"):
            blends.load(tmp_path, SOURCE)
        with pytest.raises(TypeError, match="blend: got int, wanted a name or a path"):
            blends.load(3, SOURCE)


HOW = {"p": 3, "m": 2, "steps": 1, "seed": 4}


class TestFitted:
    """Mixtures that are fitted when they are first asked."""

    def test_it_is_the_mixture_of_its_source_and_kept(self, tmp_path, monkeypatch):
        fitted = Fitted(SOURCE, **HOW, rank=5, cache=tmp_path)
        assert not list(tmp_path.iterdir()), "nobody has asked yet"
        assert fitted.shape == SHAPE
        answer = fitted(Z, 0.5)
        plain = mixtures.fit(SOURCE, **HOW).of_rank(5)
        assert 0 < relative(answer, plain(Z, 0.5)) < 2e-3
        monkeypatch.setattr(mixtures, "fit", None)
        again = Fitted(fpmc.Source(X.clone()), **HOW, rank=5, cache=tmp_path)
        assert torch.equal(again(Z, 0.5), answer)
        assert torch.equal(pickle.loads(pickle.dumps(again))(Z, 0.5), answer)

    @pytest.mark.parametrize(
        ("source", "how"),
        [
            (fpmc.Source(images(30, SHAPE, 9)), {}),
            (fpmc.Source(X, weights=range(1, 31)), {}),
            (SOURCE, {"rank": 4}),
            (SOURCE, {"m": 3}),
            (SOURCE, {"seed": 5}),
        ],
    )
    def test_another_source_or_fit_is_kept_beside(self, source, how, tmp_path):
        for one in (SOURCE, {}), (source, how):
            Fitted(one[0], **(HOW | one[1]), cache=tmp_path)(Z, 0.5)
        assert len(list((tmp_path / "mixtures").iterdir())) == 2

    def test_a_file_whose_values_are_not_finite_is_fitted_again(self, tmp_path):
        answer = Fitted(SOURCE, **HOW, cache=tmp_path)(Z, 0.5)
        (path,) = (tmp_path / "mixtures").iterdir()
        content = safetensors.torch.load(path.read_bytes())
        for name in ("values", "scales", "means", "rest"):
            path.write_bytes(safetensors.torch.save(content | {name: content[name] * torch.nan}))
            assert torch.equal(Fitted(SOURCE, **HOW, cache=tmp_path)(Z, 0.5), answer)

    @pytest.mark.usefixtures("as_users_do")
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"p": 7}, "p: got 7, wanted between 1 and 6"),
            ({"m": 0}, "m: got 0"),
            ({"steps": -1}, "steps: got -1"),
            ({"rank": 10}, "rank: got 10, wanted between 1 and 9"),
        ],
    )
    def test_a_number_out_of_range_is_an_error_before_anybody_asks(self, change, told, tmp_path):
        with pytest.raises(ValueError, match=told):
            Fitted(SOURCE, **(HOW | change), cache=tmp_path)

    @pytest.mark.parametrize("content", [b"", b"half of a file"])
    def test_a_broken_file_is_fitted_again(self, tmp_path, content):
        answer = Fitted(SOURCE, **HOW, cache=tmp_path)(Z, 0.5)
        (path,) = (tmp_path / "mixtures").iterdir()
        path.write_bytes(content)
        assert torch.equal(Fitted(SOURCE, **HOW, cache=tmp_path)(Z, 0.5), answer)
        assert len(path.read_bytes()) > len(content), "and kept"

    @pytest.mark.parametrize("there", ["file", "link"])
    def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_fit(
        self, tmp_path, monkeypatch, there
    ):
        monkeypatch.setattr(mixtures, "fit", None)  # not called
        if there == "file":
            (tmp_path / "mixtures").write_text("")
        else:
            (tmp_path / "mixtures").symlink_to("/proc/self")
        with pytest.raises(
            ValueError, match=r"cache: got '.*mixtures', wanted a folder that can be"
        ):
            Fitted(SOURCE, **HOW, cache=str(tmp_path))(Z, 0.5)
        monkeypatch.setenv("FPMC_DATA", str(tmp_path))
        with pytest.raises(ValueError, match=r"FPMC_DATA: got '.*mixtures', wanted a folder"):
            Fitted(SOURCE, **HOW)(Z, 0.5)


class Shapeless:
    def __call__(self, z, sigma):
        return z


@pytest.mark.parametrize(
    ("denoisers", "weights", "told"),
    [
        ({}, {1.0: {"a": 1.0}}, "denoisers: got none"),
        ({"a": 3}, {1.0: {"a": 1.0}}, "denoisers: got int as 'a', wanted a denoiser"),
        ({"a": Shapeless()}, {1.0: {"a": 1.0}}, "denoisers: got Shapeless as 'a'"),
        (None, {}, "weights: got an empty mapping"),
        (None, {-1.0: {"a": 1.0}}, "weights, a key: got -1.0"),
        (None, {1.0: {"b": 1.0}}, "weights at sigma = 1: got one of 'b', wanted those of 'a'"),
        (None, {1.0: {"a": float("nan")}}, "weights at sigma = 1: got nan for 'a'"),
        (None, {1.0: {"a": "1"}}, "weights at sigma = 1: got str for 'a', wanted a number"),
        (None, {1.0: {"a": 0.0}}, "weights at sigma = 1: got zeros alone"),
        (None, {1.0: [1.0]}, r"weights at sigma = 1: got list, wanted \{name: number\}"),
        (None, [1.0], r"weights: got list, wanted \{sigma: \{name: number\}\}"),
        ([1], {1.0: {"a": 1.0}}, r"denoisers: got list, wanted \{name: denoiser\}"),
        ("two", {1.0: {"a": 1.0}}, "denoisers: got images of shapes"),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_bad_arguments_get_one_error(parts, denoisers, weights, told):
    if denoisers == "two":
        denoisers = {
            "a": parts["Wiener"],
            "b": methods.wiener(fpmc.Source(images(9, (1, 4, 4), 0))),
        }
    given = {"a": parts["Wiener"]} if denoisers is None else denoisers
    with pytest.raises((TypeError, ValueError), match=told):
        Blend(given, weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sigmas": []}, "sigmas: got none"),
        ({"images": X[:0]}, "images: got"),
        ({"least": 2.0}, "least: got 2.0"),
        ({"batch": 0}, "batch: got 0"),
        ({"denoisers": {}}, "denoisers: got none"),
        ({"sigmas": 1.0}, "sigmas: got 1.0, wanted a sequence"),
        ({"network": "digits/ddpmpp"}, "network: got str, wanted a denoiser"),
        ({"network": lambda z, sigma: z / 0}, "network: gave NaN or infinite values at sigma = 1"),
        ({"network": lambda z, sigma: z[:1, :, 1:]}, r"network: gave shape \(1, 1, 5, 6\)"),
        ({"images": X[:2, :, 1:]}, r"images: got shape \(2, 1, 5, 6\), wanted \(n, 1, 6, 6\)"),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_bad_arguments_of_a_fit_get_one_error(parts, change, told):
    given = {"denoisers": parts, "network": parts["Wiener"], "images": X[:2], "sigmas": [1.0]}
    with pytest.raises((TypeError, ValueError), match=told):
        blends.fit(**(given | change))


@pytest.mark.usefixtures("as_users_do")
def test_weights_and_levels_may_be_numpy_s(parts):
    wanted = Blend(parts, {0.5: {"Wiener": 0.25}})
    for number in (np.float32, np.float64):
        assert Blend(parts, {number(0.5): {"Wiener": number(0.25)}}).weights == wanted.weights
    levels = (np.array(LEVELS), torch.tensor(LEVELS), (s for s in LEVELS))
    found = [blends.fit(parts, parts["Wiener"], X[:4].numpy(), s).weights for s in levels]
    assert found[0] == found[1] == found[2]


def test_a_width_that_is_given_by_level_is_that_of_the_nearest():
    wide = Wide(SOURCE, {0.5: 0.2, 5.0: 0.05})
    for sigma, share in ((0.4, 0.2), (4.0, 0.05)):
        assert relative(wide(Z, sigma), Wide(SOURCE, share)(Z, sigma)) < 1e-6
    with pytest.raises(ValueError, match="share: got -1"):
        Wide(SOURCE, -1)


@pytest.mark.parametrize("name", ["digits", "photos"])
class TestShipped:
    """The blends that come with the package, beside the rows that are told of them."""

    def rows(self, name, table="blends"):
        return {row["sigma"]: row for row in results.read(name, table)}

    def test_it_has_a_row_and_weights_for_every_level_of_the_sampler(self, name):
        held = blends.load(f"{name}/ddpmpp", data.load(name).source())
        levels = diffusion.edm_sigmas(18).tolist()
        assert sorted(held.weights) == pytest.approx(sorted(levels))
        rows = self.rows(name)
        for sigma in levels:
            assert held.at(sigma) == json.loads(rows[float(f"{sigma:.6g}")]["chosen"])

    def test_its_errors_are_those_of_the_combination_in_the_table_of_axes(self, name):
        """Eight bits, fewer directions and small weights left out move them by little."""
        axes = {r["sigma"]: r for r in results.read(name, "axes") if r["axis"] == "combination"}
        rows = self.rows(name)
        assert len(axes) == 6
        for sigma, row in axes.items():
            assert abs(rows[sigma]["mse"] - row["mse"]) < 0.2 * row["mse"].standard_error

    def test_it_is_no_farther_than_the_tuned_collection_anywhere(self, name):
        for row in self.rows(name).values():
            assert row["gain_tuned"] > -2 * row["gain_tuned"].standard_error
            assert row["gain"] > 2 * row["gain"].standard_error


@pytest.mark.parametrize(
    ("name", "level"), [("digits", 0), ("digits", 10), ("digits", 17), ("photos", 0)]
)
def test_a_shipped_blend_answers_as_its_row_says(name, level, cache):
    dataset, sigma = data.load(name), diffusion.edm_sigmas(18).tolist()[level]
    rows = {row["sigma"]: row for row in results.read(name, "blends")}
    row, few = rows[float(f"{sigma:.6g}")], {"digits": 64, "photos": 32}[name]
    blend, network = blends.load(f"{name}/ddpmpp", dataset.source()), f"{name}/ddpmpp"
    z = diffusion.add_noise(to_float(dataset.test[:few]), sigma, FIRST_SEED + level)
    with torch.no_grad():
        away = blend(z, sigma) - networks.load(network)(z, sigma)
    assert away.square().mean().item() == pytest.approx(row["mse"], rel=1e-3)


def test_a_shipped_blend_draws_samples(cache):
    blend = blends.load("digits/ddpmpp", data.load("digits").source())
    start = diffusion.initial_noise(2, (1, 8, 8), 1)
    drawn = diffusion.sample(blend, start, diffusion.edm_sigmas(18))
    assert drawn.abs().max() < 1.5
    several = blend(torch.cat([start / 8, start / 80]), torch.tensor([10.0, 10.0, 1.0, 1.0]))
    torch.testing.assert_close(several[2:], blend(start / 80, 1.0))
