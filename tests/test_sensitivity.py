"""Gradient-sensitivity maps: their definition, their bookkeeping, the squares that hold them."""

import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpmc import Source, forecast, methods, networks, sensitivity, storage
from fpmc.diffusion import add_noise, edm_sigmas
from fpmc.limits import TERMINATED
from fpmc.modes import not_differentiable
from fpmc.sensitivity import __main__ as command_line
from fpmc.sensitivity import gradients, progress
from fpmc.sensitivity.__main__ import main
from tests.helpers import OF_IMAGES
from tests.test_networks import tiny

SHAPE = (2, 4, 4)
D, K = 32, 16

WITH_MAPS = ["digits/ddpmpp", "photos/ddpmpp", "fashion/ddpmpp"]
"""The shipped networks to which a method is tuned here."""


def images(n=3, shape=SHAPE, seed=0):
    return 2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) - 1


def linear(seed=0):
    """A denoiser whose Jacobian is known: the same matrix everywhere."""
    matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(seed))

    def denoiser(z, sigma):
        return (z.flatten(1) @ matrix.T).reshape(z.shape)

    expected = matrix.abs().reshape(2, K, 2, 4, 4).mean((0, 2))
    return denoiser, expected / expected.sum((1, 2), keepdim=True)


def test_of_a_linear_denoiser_they_are_its_matrix():
    denoiser, expected = linear()
    for sigma in (0.1, 3.0):
        found = sensitivity.maps(denoiser, sigma, images())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("arch", OF_IMAGES)
def test_they_are_the_mean_absolute_finite_differences(arch):
    network, x, sigma, h = tiny(arch, (3, 8, 8)).double(), images(2, (3, 8, 8)), 0.7, 1e-5
    z = add_noise(x, sigma, 5).double()
    steps = h * torch.eye(192, dtype=torch.float64).reshape(192, 1, 3, 8, 8)
    change = torch.stack([network(z + step, sigma) - network(z - step, sigma) for step in steps])
    jacobian = (change / (2 * h)).abs().reshape(3, 64, 2, 3, 64)  # b, u, image, a, k
    expected = jacobian.mean((0, 2, 3)).T.reshape(64, 8, 8)
    expected = expected / expected.sum((1, 2), keepdim=True)
    found = sensitivity.maps(network, sigma, x, seed=5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_of_an_fpmc_they_are_those_of_its_jacobian():
    source, x, sigma = Source(images(9, seed=1)), images(2), 0.8
    denoiser = methods.pspc_square(source, 3)
    z = add_noise(x, sigma, 3)
    jacobian = torch.autograd.functional.jacobian(lambda z: denoiser(z, sigma).sum(0), z)
    expected = jacobian.reshape(2, K, 2, 2, 4, 4).abs().double().mean((0, 2, 3))
    expected = expected / expected.sum((1, 2), keepdim=True)
    for budget in (1, 2**30):
        found = sensitivity.maps(denoiser, sigma, x, seed=3, budget=budget)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_what_is_not_differentiable_has_no_maps():
    def constant(z, sigma):
        return not_differentiable(z.detach(), "a constant", z)

    with pytest.raises(RuntimeError, match="a constant: not differentiable"):
        sensitivity.maps(constant, 1.0, images())


def test_they_do_not_depend_on_the_budget_or_on_how_pixels_are_stored():
    network = tiny(shape=(1, 8, 8))
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    whole = sensitivity.maps(network, 0.5, pixels)
    for budget in (1, 2**20, 2**24):
        part = sensitivity.maps(network, 0.5, pixels / 127.5 - 1, budget=budget)
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-7)


def test_they_sum_to_one_and_follow_from_the_seed():
    network = tiny(shape=(1, 8, 8))
    x = images(2, (1, 8, 8))
    first, again, other = (sensitivity.maps(network, 1.0, x, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first.sum((1, 2)), torch.ones(64))


def test_no_weights_are_differentiated_and_none_keep_a_gradient():
    network = tiny(shape=(1, 8, 8)).requires_grad_()
    sensitivity.maps(network, 1.0, images(1, (1, 8, 8)))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_over_several_levels_there_is_one_set_each():
    denoiser, expected = linear()
    found = sensitivity.maps_over(denoiser, [2.0, 0.5], images())
    assert list(found) == [2.0, 0.5]
    torch.testing.assert_close(found[0.5], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda z: None, TypeError, "denoiser: gave NoneType, wanted a torch tensor"),
        (lambda z: (z, z), TypeError, "denoiser: gave tuple"),
        (lambda z: z[:, :1], ValueError, "denoiser: gave shape (1, 1, 3, 3), for (1, 2, 3, 3)"),
        (lambda z: z * torch.nan, ValueError, "denoiser: has NaN or infinite derivatives"),
    ],
)
def test_answers_that_are_none_are_named(answer, error, says):
    class Network(torch.nn.Module):
        def forward(self, z, sigma):
            return answer(z)

    for denoiser in (Network(), lambda z, sigma: answer(z)):
        with pytest.raises(error) as caught:
            sensitivity.maps(denoiser, 1.0, images(1, (2, 3, 3)))
        assert says in str(caught.value)


class TestCache:
    def test_the_second_time_nothing_is_computed(self, tmp_path, monkeypatch):
        network, x = tiny(shape=(1, 8, 8)), images(1, (1, 8, 8))
        first = sensitivity.maps(network, 1.0, x, cache=tmp_path / "new")
        monkeypatch.setattr(gradients, "_maps", None)
        again = sensitivity.maps(network, 1.0, x, cache=tmp_path / "new")
        torch.testing.assert_close(first, again, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(
        "what", ["weights", "sigma_data", "forward", "sigma", "images", "seed"]
    )
    def test_whatever_decides_the_maps_is_part_of_the_key(self, what, tmp_path):
        network, x = tiny(shape=(1, 8, 8)), images(1, (1, 8, 8))
        sensitivity.maps(network, 1.0, x, cache=tmp_path)
        narrow = tiny(shape=(1, 8, 8))
        narrow.sigma_data = 0.25
        doubled = tiny(shape=(1, 8, 8))
        doubled.forward = lambda z, sigma, plain=doubled.forward: 2 * plain(z, sigma)
        other = {
            "weights": (tiny(shape=(1, 8, 8), seed=1), 1.0, x, 0),
            "sigma_data": (narrow, 1.0, x, 0),
            "forward": (doubled, 1.0, x, 0),
            "sigma": (network, 1.1, x, 0),
            "images": (network, 1.0, -x, 0),
            "seed": (network, 1.0, x, 1),
        }[what]
        sensitivity.maps(*other[:3], seed=other[3], cache=tmp_path)
        assert len(list(tmp_path.glob("*.npz"))) == 2

    @pytest.mark.usefixtures("as_users_do")
    def test_a_denoiser_without_weights_cannot_be_recognised(self, tmp_path):
        with pytest.raises(TypeError, match="cache: got a denoiser of type function"):
            sensitivity.maps(linear()[0], 1.0, images(), cache=tmp_path)
        with pytest.raises(TypeError, match="wanted a torch module with weights"):
            sensitivity.maps(torch.nn.Identity(), 1.0, images(), cache=tmp_path)


class TestFiles:
    def test_half_precision_keeps_maps_to_a_thousandth(self, tmp_path):
        network = tiny(shape=(1, 8, 8))
        maps = sensitivity.maps_over(network, [0.5, 2.0], images(1, (1, 8, 8)))
        sensitivity.write(tmp_path / "maps.npz", maps)
        back = sensitivity.read(tmp_path / "maps.npz")
        assert list(back) == [0.5, 2.0]
        for sigma, value in maps.items():
            torch.testing.assert_close(back[sigma], value, rtol=1e-3, atol=1e-6)

    @given(st.integers(0, 2**31), st.floats(0.05, 1), st.sampled_from([np.float16, np.float32]))
    def test_sets_of_pixels_up_to_the_share_that_is_kept_are_the_same(self, seed, keep, dtype):
        """The tail beyond the share is spread out; no smaller set of pixels sees a difference."""
        generator = torch.Generator().manual_seed(seed)
        maps = torch.rand(16, 4, 4, generator=generator).pow(6)
        maps = {1.0: maps / maps.sum((1, 2), keepdim=True)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "maps.npz")
            sensitivity.write(path, maps, dtype)
            plain = sensitivity.read(path)[1.0]
            sensitivity.write(path, maps, dtype, keep=keep)
            compact = sensitivity.read(path)[1.0]
        torch.testing.assert_close(compact.double().sum((1, 2)), torch.ones(16).double())
        assert (plain - compact).clamp(min=0).sum((1, 2)).max() <= 1 - keep + 1e-6
        source = Source(torch.zeros(1, 1, 4, 4))
        for tau in (0.05, 0.3, 0.4, 0.5, 0.7, 0.9):
            if tau <= keep:
                q, other = (
                    methods.pspc_flex(source, m, tau).operators(1.0)[0] for m in (plain, compact)
                )
                assert torch.equal(q.matrix, other.matrix)

    def test_published_thresholds_see_no_difference_in_a_network_s_compact_maps(self, tmp_path):
        maps = sensitivity.load("photos/ddpmpp")
        sensitivity.write(tmp_path / "maps.npz", maps)
        tau = methods.schedules.threshold_schedule("cifar10", "pspc_flex", "thresholds")
        share = {sigma: tau(sigma) if tau(sigma) < 1 else 0.5 for sigma in maps}
        sensitivity.write(tmp_path / "compact.npz", maps, keep=share.get)
        sizes = [(tmp_path / f"{name}.npz").stat().st_size for name in ("compact", "maps")]
        assert sizes[0] < sizes[1] / 2
        source = Source(torch.zeros(1, 3, 16, 16))
        plain, compact = (
            methods.pspc_flex(source, sensitivity.read(tmp_path / f"{name}.npz"), "cifar10")
            for name in ("maps", "compact")
        )
        for sigma in maps:
            for q, other in zip(plain.operators(sigma), compact.operators(sigma), strict=True):
                assert torch.equal(q.dense(), other.dense())

    def test_fewer_digits_move_every_value_by_less_than_their_last(self, tmp_path):
        maps = {sigma: linear(seed)[1] for seed, sigma in enumerate((1.0, 2.0))}
        digits = {1.0: 3, 2.0: 8}
        sensitivity.write(tmp_path / "maps.npz", maps, digits=digits.get)
        for sigma, value in sensitivity.read(tmp_path / "maps.npz").items():
            moved = (value / maps[sigma]).log().abs()
            assert moved.max() < 2 * 2.0 ** -digits[sigma] * 1.1
            assert moved.max() > 2.0 ** -digits[sigma] / 8

    @pytest.mark.parametrize("name", ["keep", "digits"])
    def test_a_share_or_digits_outside_are_an_error(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"{name}: got 0, wanted"):
            sensitivity.write(tmp_path / "maps.npz", {1.0: linear()[1]}, **{name: 0})

    def test_a_file_cut_short_or_foreign_is_an_error(self, tmp_path):
        path = tmp_path / "maps.npz"
        sensitivity.write(path, {1.0: linear()[1]})
        data = path.read_bytes()
        for length in (0, 30, len(data) - 30):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=r"maps\.npz: not a file of sensitivity maps"):
                sensitivity.read(path)
        np.savez(path, something=np.zeros(3))
        for what in (sensitivity.read, sensitivity.averaged_over):
            with pytest.raises(ValueError, match="not a file of sensitivity maps"):
                what(path)
            with pytest.raises(FileNotFoundError):
                what(tmp_path / "missing.npz")

    def test_the_number_of_images_is_kept_if_it_is_known(self, tmp_path):
        path = tmp_path / "maps.npz"
        for n in (None, 16):
            sensitivity.write(path, {1.0: linear()[1]}, images=n)
            assert sensitivity.averaged_over(path) == n

    @pytest.mark.parametrize("name", WITH_MAPS)
    def test_shipped_maps_are_those_of_the_sampler_s_levels(self, name):
        maps, (_, h, w) = sensitivity.load(name), networks.load(name).shape
        assert list(maps) == pytest.approx(edm_sigmas(18).tolist())
        for value in maps.values():
            assert value.shape == (h * w, h, w)
            torch.testing.assert_close(value.sum((1, 2)), torch.ones(h * w))
        wanted = {"digits": 64, "photos": 8, "fashion": 8}
        assert sensitivity.averaged_over(name) == wanted[name.partition("/")[0]]

    def test_one_name_reads_shipped_maps_and_files(self, tmp_path):
        maps = {1.0: linear()[1]}
        sensitivity.write(tmp_path / "maps.npz", maps)
        for path in (tmp_path / "maps.npz", str(tmp_path / "maps.npz")):
            torch.testing.assert_close(sensitivity.load(path), maps, rtol=1e-3, atol=1e-6)
        with pytest.raises(FileNotFoundError):
            sensitivity.load("missing.npz")

    @pytest.mark.parametrize("key", [None, "arr_0", "maps"])
    def test_maps_as_the_authors_keep_them_say_what_to_divide_by(self, tmp_path, key):
        theirs, path = np.random.default_rng(0).random((2, 4, 4, 4, 4)), tmp_path / "a.npy"
        if key is None:
            np.save(path, theirs)
        else:
            path = tmp_path / "a.npz"
            np.savez(path, **{key: theirs})
        for reader in (sensitivity.load, sensitivity.read, sensitivity.averaged_over):
            with pytest.raises(ValueError, match=r"\(2, 4, 4, 4, 4\): .*divide each by its sum"):
                reader(path)
        with pytest.raises(ValueError, match=r"divide each map by its sum over \(h, w\)"):
            sensitivity.write(path, {1.0: torch.from_numpy(theirs[0].reshape(16, 4, 4))})
        shares = theirs / theirs.sum((3, 4), keepdims=True)
        ours = {float(s): torch.from_numpy(shares[s].reshape(16, 4, 4)) for s in range(1, 2)}
        sensitivity.write(tmp_path / "ours.npz", ours)
        assert sensitivity.load(tmp_path / "ours.npz")[1.0].shape == (16, 4, 4)

    def test_maps_that_are_not_shipped_are_an_error(self):
        with pytest.raises(ValueError, match="network: got 'nothing', wanted one of digits/"):
            sensitivity.load("nothing")

    @pytest.mark.parametrize("name", [n for n in networks.SHIPPED if n not in WITH_MAPS])
    def test_of_a_network_that_nothing_predicts_the_error_says_how_to_compute_them(self, name):
        says = f"maps of {name} are not shipped, .* -m fpmc.sensitivity --network {name} --out"
        with pytest.raises(ValueError, match=says):
            sensitivity.load(name)


class TestSquares:
    def test_a_map_on_its_own_pixel_needs_one_pixel(self):
        maps = torch.eye(16).reshape(16, 4, 4)
        for share in (0.5, 1.0):
            assert (sensitivity.square_sides(maps, share) == 1).all()

    def test_they_are_the_smallest_squares_that_hold_the_share(self):
        generator = torch.Generator().manual_seed(3)
        maps = torch.rand(35, 5, 7, generator=generator)
        maps = maps / maps.sum((1, 2), keepdim=True)
        for share in (0.1, 0.5, 0.95):
            for k, side in enumerate(sensitivity.square_sides(maps, share).tolist()):
                i, j = divmod(k, 7)
                held = []
                for r in (side // 2 - 1, side // 2):
                    rows = slice(max(0, i - r), max(0, i + r + 1))
                    columns = slice(max(0, j - r), max(0, j + r + 1))
                    held.append(maps[k, rows, columns].sum().item() if r >= 0 else 0.0)
                assert held[0] < share <= held[1] + 1e-6

    def test_all_of_a_uniform_map_needs_the_image(self):
        maps = torch.full((16, 4, 4), 1 / 16)
        expected = [7, 7, 7, 7, 7, 5, 5, 7, 7, 5, 5, 7, 7, 7, 7, 7]
        assert sensitivity.square_sides(maps, 1.0).tolist() == expected

    @pytest.mark.parametrize("share", [0, -1, 1.5])
    def test_a_share_outside_is_an_error(self, share):
        with pytest.raises(ValueError, match="share: got"):
            sensitivity.square_sides(torch.eye(16).reshape(16, 4, 4), share)


@pytest.mark.usefixtures("as_users_do")
def test_bad_input_is_a_clear_error():
    denoiser, _ = linear()
    with pytest.raises(ValueError, match="sigma: got 0"):
        sensitivity.maps(denoiser, 0, images())
    with pytest.raises(TypeError, match="images: got ndarray"):
        sensitivity.maps(denoiser, 1.0, images().numpy())
    with pytest.raises(ValueError, match=r"images: got shape \(4, 4\)"):
        sensitivity.maps(denoiser, 1.0, torch.zeros(4, 4))
    with pytest.raises(ValueError, match="16 of 16 output pixels do not depend on z"):
        sensitivity.maps(lambda z, sigma: 0 * z, 1.0, images())
    with pytest.raises(ValueError, match=r"maps: got shape \(3, 4, 4\)"):
        sensitivity.square_sides(torch.zeros(3, 4, 4), 0.5)


@pytest.mark.usefixtures("as_users_do")
def test_files_of_other_programs_are_named_without_advice_to_run_them(tmp_path):
    torch.save(torch.ones(2, 4, 2, 2), tmp_path / "maps.pt")
    (tmp_path / "maps.npz").write_bytes(bytes(3000))
    np.savez(tmp_path / "empty.npz")
    for name, reason in (
        (
            "maps.pt",
            "it has no maps but what torch.save writes; of .*",
        ),
        ("empty.npz", "it has no maps and nothing that NumPy reads"),
        ("maps.npz", "it is broken, or of another kind"),
    ):
        with pytest.raises(ValueError, match=rf"not a file of sensitivity maps \({reason}\)$"):
            sensitivity.read(tmp_path / name)


def test_a_network_in_the_place_of_its_maps_is_told_what_makes_them(tmp_path):
    path = tmp_path / "network.safetensors"
    networks.save(tiny(shape=(1, 8, 8)), path)
    with pytest.raises(ValueError, match=rf"wanted the file of its maps, as .* --network {path}"):
        sensitivity.load(path)


class Counted:
    """Counts the passes over Jacobians, and interferes with one of them."""

    def __init__(self, monkeypatch, at=None, interfere=None):
        self.passes, self.at, self.interfere = 0, at, interfere
        whole = gradients._pull_back
        monkeypatch.setattr(gradients, "_pull_back", lambda *args: self.of(whole(*args)))

    def of(self, pull_back):
        def count(seeds):
            self.passes += 1
            if self.passes == self.at:
                self.interfere()
            return pull_back(seeds)

        return count


def fails():
    raise MemoryError


@pytest.mark.parametrize("interfere", [fails, lambda: os.kill(os.getpid(), signal.SIGTERM)])
def test_a_level_that_is_begun_goes_on_to_the_same_bits(interfere, tmp_path, monkeypatch):
    network, x = tiny(shape=(1, 8, 8)), images(3, (1, 8, 8))
    options = {"cache": tmp_path / "cache", "budget": 2**20}
    if interfere is fails:
        monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patched:
        every = Counted(patched)
        whole = sensitivity.maps(network, 1.0, x, budget=2**20)
    assert every.passes > 5
    with monkeypatch.context() as patched:
        Counted(patched, 4, interfere)
        with pytest.raises((MemoryError, SystemExit)) as ended:
            sensitivity.maps(network, 1.0, x, **options)
    assert getattr(ended.value, "code", TERMINATED) == TERMINATED
    done = 3 if interfere is fails else 4  # a pass that SIGTERM meets is ended
    with monkeypatch.context() as patched:
        rest = Counted(patched)
        assert torch.equal(sensitivity.maps(network, 1.0, x, **options), whole)
    assert rest.passes == every.passes - done
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_what_is_begun_otherwise_or_is_broken_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    network, x = tiny(shape=(1, 8, 8)), images(2, (1, 8, 8))
    whole = sensitivity.maps(network, 1.0, x, budget=2**20)
    for budget, spoil in ((2**21, lambda path: None), (2**20, lambda path: path.write_bytes(b"P"))):
        with monkeypatch.context() as patched:
            Counted(patched, 3, fails)
            with pytest.raises(MemoryError):
                sensitivity.maps(network, 1.0, x, cache=tmp_path / str(budget), budget=budget)
        (begun,) = (tmp_path / str(budget)).iterdir()
        spoil(begun)
        found = sensitivity.maps(network, 1.0, x, cache=begun.parent, budget=2**20)
        assert torch.equal(found, whole)


def test_it_says_how_long_all_levels_will_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "MEASURED", 0.0)
    network, x = tiny(shape=(1, 8, 8)), images(2, (1, 8, 8))
    options = {"budget": 2**18, "cache": tmp_path, "progress": True}
    sensitivity.maps(network, 5.0, x, **options)
    capsys.readouterr()
    sensitivity.maps_over(network, [5.0, 2.0, 1.0], x, **options)
    told = capsys.readouterr().err
    assert told.count("maps at 3 noise levels: about ") == 1
    assert "256/256 [" in told  # of the rows at the two levels that were left
    sensitivity.maps(network, 0.5, x, budget=2**18)
    assert not capsys.readouterr().err


def test_the_command_line_keeps_a_network_s_maps(tmp_path):
    networks.save(tiny(shape=(1, 8, 8)), tmp_path / "network.safetensors", {"data": "digits"})
    words = ["--network", str(tmp_path / "network.safetensors"), "--images", "1", "--steps", "2"]
    main([*words, "--cache", str(tmp_path), "--out", str(tmp_path / "maps.npz")])
    assert list(sensitivity.read(tmp_path / "maps.npz")) == pytest.approx([80.0, 0.002])
    assert sensitivity.averaged_over(tmp_path / "maps.npz") == 1
    networks.save(tiny(shape=(1, 8, 8)), tmp_path / "bare.safetensors")
    with pytest.raises(SystemExit, match="error: network: got 'nothing'"):
        main(["--network", "nothing", "--out", str(tmp_path / "x.npz")])
    for words, says in (
        (["--images", "-1"], "--images: got -1, wanted between 1 and 297"),
        (["--steps", "1"], "--steps: got 1, wanted between 2 and 10000"),
        (["--steps", str(10**20)], "--steps: got 1"),
        (["--images", "298"], "--images: got 298, wanted between 1 and 297"),
        (["--device", "nowhere"], "--device: got 'nowhere', which cannot be used"),
        (["--out", str(tmp_path / "missing" / "x.npz")], "--out: got .*x.npz, wanted a file"),
        (["--out", str(tmp_path)], "--out: got .*, wanted a file in a folder that is there"),
        (["--data", "photos"], r"network: digits/dit is for images of \(1, 8, 8\), wanted one"),
        (["--network", str(tmp_path / "bare.safetensors")], ".*its card names no data"),
    ):
        with pytest.raises(SystemExit, match=f"error: {says}"):
            main(["--network", "digits/dit", "--out", str(tmp_path / "x.npz"), *words])


def test_the_command_line_says_before_the_first_level_that_it_cannot_write(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError("not yours")

    monkeypatch.setattr(command_line, "maps_over", None)
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SystemExit, match=r"--out: got .*, wanted .*\(not yours\)"):
        main(["--network", "digits/dit", "--out", str(tmp_path / "maps.npz")])


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("maps", "options", "error", "says"),
    [
        ({}, {}, ValueError, r"maps: got shapes \[\], wanted one"),
        ({1.0: torch.ones(4, 4) / 4}, {}, ValueError, r"maps: got shapes \[\(4, 4\)\]"),
        ({1.0: torch.zeros(4, 2, 2)}, {}, ValueError, "maps: got one at sigma = 1 that is no"),
        ({1.0: torch.full((4, 2, 2), torch.nan)}, {}, ValueError, "maps: got one at sigma = 1"),
        (
            {1.0: torch.full((4, 2, 2), 0.25), 2.0: torch.full((1, 1, 1), 1.0)},
            {},
            ValueError,
            "maps: got shapes",
        ),
        ({1.0: torch.full((4, 2, 2), 0.25)}, {"dtype": np.int8}, TypeError, "dtype: got"),
        ({1.0: torch.full((4, 2, 2), 0.25)}, {"images": 0}, ValueError, "images: got 0"),
    ],
)
def test_what_is_no_map_is_not_written(maps, options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        sensitivity.write(tmp_path / "maps.npz", maps, **options)
    assert not list(tmp_path.iterdir())


def test_maps_of_a_collection_can_be_asked_for_in_inference_mode():
    denoiser, x = methods.optimal(Source(images(5, (1, 2, 2)))), images(1, (1, 2, 2), 1)
    expected = sensitivity.maps(denoiser, 1.0, x)
    with torch.inference_mode():
        assert torch.equal(sensitivity.maps(denoiser, 1.0, x), expected)
    with pytest.raises(ValueError, match="budget: got 0"):
        sensitivity.maps(denoiser, 1.0, x, budget=0)
