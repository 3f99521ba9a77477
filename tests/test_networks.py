"""The architectures, their preconditioning, and the files they are kept in."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fpmc import networks, sensitivity, storage
from fpmc.networks.packing import pack, unpack
from tests.helpers import OF_IMAGES

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "dropout": 0.0}
SHAPE = (3, 8, 8)


def tiny(arch="ddpmpp", shape=SHAPE, seed=0):
    """A small network whose output depends on everything: no layer is at its zero start."""
    options = {"patch": 2, "width": 16, "depth": 2, "heads": 2} if arch == "dit" else TINY
    network = networks.build(arch, shape, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        drift = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.1 * drift
    return network.eval().requires_grad_(False)


def noisy(shape=SHAPE, b=2, sigma=1.0, seed=1):
    return sigma * torch.randn(b, *shape, generator=torch.Generator().manual_seed(seed))


class TestArchitectures:
    @pytest.mark.parametrize(
        ("arch", "options", "millions"),
        [("ddpmpp", {"augmentations": 9}, 55.7), ("ncsnpp", {"augmentations": 9}, 56.4)],
    )
    def test_published_sizes_are_the_default_on_cifar10(self, arch, options, millions):
        assert round(networks.build(arch, (3, 32, 32), **options).size / 1e6, 1) == millions

    def test_the_64_pixel_configuration_has_the_published_size(self):
        network = networks.build(
            "ddpmpp", (3, 64, 64), multipliers=(1, 2, 2, 2), augmentations=9, dropout=0.05
        )
        assert round(network.size / 1e6, 1) == 61.8

    @pytest.mark.parametrize("arch", OF_IMAGES)
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
    def test_output_has_the_input_s_shape_and_type(self, arch, shape):
        network = tiny(arch, shape)
        for dtype in (torch.float32, torch.float64):
            out = network(noisy(shape).to(dtype), 0.5)
            assert out.shape == (2, *shape)
            assert out.dtype == dtype
            assert out.isfinite().all()

    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_images_of_a_batch_do_not_see_each_other(self, arch):
        network, z = tiny(arch), noisy(b=3)
        together = network(z, 0.7)
        apart = torch.cat([network(image[None], 0.7) for image in z])
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_noise_level_and_every_pixel_matter(self, arch):
        network, z = tiny(arch), noisy()
        out = network(z, 1.0)
        assert not torch.allclose(out, network(z, 1.1), atol=1e-4)
        moved = z.clone()
        moved[:, :, 0, 0] += 1
        assert ((network(moved, 1.0) - out).abs().amax(dim=(0, 1)) > 1e-7).all()

    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone(self, arch):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first, again, other = (tiny(arch, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(torch.rand(3), expected)
        same = [
            torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
        ]
        assert all(same)
        pairs = zip(first.parameters(), other.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)

    def test_halving_undoes_doubling_of_a_constant(self):
        from fpmc.networks.blocks import Convolution

        for taps in ((1, 1), (1, 3, 3, 1)):
            up = Convolution(1, 1, 1, resample="up", taps=taps)
            down = Convolution(1, 1, 1, resample="down", taps=taps)
            for layer in (up, down):
                nn.init.ones_(layer.weight)
            wide = up(torch.ones(1, 1, 8, 8))
            assert wide.shape == (1, 1, 16, 16)
            inside = down(wide)[:, :, 2:-2, 2:-2]
            torch.testing.assert_close(inside, torch.ones_like(inside))

    @pytest.mark.usefixtures("as_users_do")
    @pytest.mark.parametrize(
        ("arch", "shape", "options", "message"),
        [
            ("unet", SHAPE, {}, "arch: got 'unet', wanted one of ddpmpp, ncsnpp, dit"),
            ("ddpmpp", (3, 9, 9), TINY, "can be halved 1 times"),
            ("ddpmpp", (3, 8, 4), TINY, "wanted square images"),
            ("ddpmpp", SHAPE, TINY | {"embedding": "x"}, "embedding: got 'x', wanted 'positional'"),
            ("ddpmpp", SHAPE, TINY | {"encoder": "x"}, "encoder: got 'x', wanted 'standard'"),
            ("ddpmpp", SHAPE, TINY | {"channels": 2}, "channels: got 2, wanted at least 4"),
            ("ddpmpp", SHAPE, TINY | {"channels": 5}, "channels: got 5, wanted an even number"),
            ("ddpmpp", SHAPE, TINY | {"blocks": 0}, "blocks: got 0, wanted at least 1"),
            ("dit", SHAPE, {"patch": 0}, "patch: got 0, wanted at least 1"),
            ("dit", SHAPE, {"heads": 0}, "heads: got 0, wanted at least 1"),
            ("dit", SHAPE, {"patch": 3}, "wanted a divisor of the side"),
            ("dit", SHAPE, {"width": 10, "heads": 3}, "wanted a multiple of 4 and of heads"),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, arch, shape, options, message):
        with pytest.raises(ValueError, match=message):
            networks.build(arch, shape, **options)

    @pytest.mark.parametrize(
        ("arch", "names"),
        [("ncsnpp", "channels, multipliers, .*taps"), ("dit", "patch, width, .*")],
    )
    def test_an_option_that_does_not_exist_is_named_and_so_are_those_that_do(self, arch, names):
        with pytest.raises(TypeError, match=f"options: got nope, wanted those of {arch} .*{names}"):
            networks.build(arch, SHAPE, nope=3)


class TestPreconditioning:
    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_without_noise_it_is_the_identity(self, arch):
        z = noisy(sigma=0.5)
        out = tiny(arch)(z, 1e-6)
        torch.testing.assert_close(out, z, rtol=0, atol=1e-4)

    def test_at_large_noise_z_passes_only_through_the_network(self):
        network = tiny()
        z = noisy(sigma=1e6)
        silent = networks.Preconditioned(_Zero(), SHAPE)
        assert silent(z, 1e6).abs().max() < 1e-5
        assert network(z, 1e6).isfinite().all()

    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_at_large_noise_the_answer_no_longer_depends_on_z(self, arch):
        network, direction = tiny(arch), noisy(seed=2)
        changes = []
        for sigma in (1.0, 1e3, 1e6):
            z = noisy(sigma=sigma)
            changes.append((network(z + direction, sigma) - network(z, sigma)).abs().max().item())
        assert changes[2] < 1e-3 * changes[0]
        assert changes[1] < 0.1 * changes[0]

    def test_inputs_and_targets_have_variance_one(self):
        generator = torch.Generator().manual_seed(0)
        x = 0.5 * torch.randn(4, *SHAPE, generator=generator)
        for sigma in (0.01, 0.5, 20.0):
            seen = _Watch()
            network = networks.Preconditioned(seen, SHAPE)
            big = x.repeat(300, 1, 1, 1)
            big = 0.5 * torch.randn(big.shape, generator=generator)
            noise = torch.randn(big.shape, generator=generator)
            z = big + sigma * noise
            network(z, sigma)
            assert seen.x.var().item() == pytest.approx(1, abs=0.02)
            skip = 0.25 / (sigma**2 + 0.25)
            gain = sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
            target = (big - skip * z) / gain
            assert target.var().item() == pytest.approx(1, abs=0.02)
            assert seen.condition.tolist() == pytest.approx([math.log(sigma) / 4] * len(z))

    @pytest.mark.usefixtures("as_users_do")
    def test_bad_input_is_a_clear_error(self):
        network = tiny()
        with pytest.raises(ValueError, match=r"z: got shape \(2, 3, 4, 4\), wanted"):
            network(torch.zeros(2, 3, 4, 4), 1.0)
        with pytest.raises(ValueError, match="sigma: got 0"):
            network(torch.zeros(2, *SHAPE), 0)
        with pytest.raises(TypeError, match="z: got ndarray"):
            network(np.zeros((2, *SHAPE)), 1.0)


class _Zero(nn.Module):
    """A module without parameters."""

    def forward(self, x, condition):
        return torch.zeros_like(x)


class _Watch(_Zero):
    def forward(self, x, condition):
        self.x, self.condition = x, condition
        return torch.zeros_like(x)


class TestFiles:
    @pytest.mark.parametrize("arch", OF_IMAGES)
    def test_a_network_survives_saving_bit_for_bit(self, arch, tmp_path):
        network, path = tiny(arch), tmp_path / "network.safetensors"
        networks.save(network, path, {"data": "digits"}, dtype=torch.float32)
        back = networks.load(path)
        assert torch.equal(back(noisy(), 0.3), network(noisy(), 0.3))
        assert networks.card(path) == {"data": "digits"}
        assert not any(parameter.requires_grad for parameter in back.parameters())

    def test_a_file_keeps_what_the_network_takes_for_the_data_s_deviation(self, tmp_path):
        network, path = tiny(), tmp_path / "network.safetensors"
        network.sigma_data = 0.25
        networks.save(network, path, dtype=torch.float32)
        assert torch.equal(networks.load(path)(noisy(), 0.3), network(noisy(), 0.3))

    def test_a_loaded_network_is_float32_whatever_the_default_is(self):
        torch.set_default_dtype(torch.float64)
        try:
            network = networks.load("digits/dit")
        finally:
            torch.set_default_dtype(torch.float32)
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}

    @pytest.mark.usefixtures("as_users_do")
    def test_what_could_not_be_loaded_again_is_not_saved(self, tmp_path):
        with pytest.raises(ValueError, match=r"network\.pt', wanted a name that ends in \.safe"):
            networks.save(tiny(), tmp_path / "network.pt")
        with pytest.raises(TypeError, match="network: got Identity, wanted one that"):
            networks.save(nn.Identity(), tmp_path / "network.safetensors")

    def test_half_precision_halves_the_file_and_keeps_the_frequencies(self, tmp_path):
        network = tiny("ncsnpp")
        for dtype in (torch.float16, torch.float32):
            networks.save(network, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        half, whole = (
            (tmp_path / f"{dtype}.safetensors") for dtype in (torch.float16, torch.float32)
        )
        assert half.stat().st_size < 0.65 * whole.stat().st_size
        kept = networks.load(half).model.map_noise.freqs
        assert torch.equal(kept, network.model.map_noise.freqs)

    def test_a_packed_file_is_smaller_and_answers_alike(self, tmp_path):
        network = networks.build("ddpmpp", SHAPE, **{**TINY, "channels": 32}).eval()
        for packed in (True, False):
            path = tmp_path / f"{packed}.safetensors"
            networks.save(network, path, {"seed": 3}, packed=packed)
        small, half = (tmp_path / f"{packed}.safetensors" for packed in (True, False))
        assert small.stat().st_size < 0.75 * half.stat().st_size
        smaller = tmp_path / "smaller.safetensors"
        networks.save(networks.load(small), smaller, packed=True, bits=8)
        assert smaller.stat().st_size < 0.85 * small.stat().st_size
        assert networks.card(small) == {"seed": 3}
        with torch.no_grad():
            for sigma in (0.1, 1.0, 10.0):
                z = noisy(sigma=sigma)
                wanted = network(z, sigma)
                for path, most in ((small, 2e-3), (smaller, 8e-3)):
                    assert (networks.load(path)(z, sigma) - wanted).norm() < most * wanted.norm()

    def test_weights_that_a_packed_file_cannot_hold_are_an_error(self, tmp_path):
        network = networks.build("ddpmpp", SHAPE, **{**TINY, "channels": 32})
        for value in (torch.nan, 1e6):
            largest = max(network.parameters(), key=torch.numel)
            largest.data.fill_(value)
            with pytest.raises(ValueError, match="is not finite"):
                networks.save(network, tmp_path / "network.safetensors", packed=True)

    @pytest.mark.parametrize(
        ("bits", "packed", "error"),
        [
            *((bits, True, ValueError) for bits in (0, 1, 17)),
            *((bits, True, TypeError) for bits in (2.5, True, "8")),
            (8, False, ValueError),
        ],
    )
    def test_bits_that_cannot_be_are_an_error_whatever_the_size(
        self, bits, packed, error, tmp_path, as_users_do
    ):
        path = tmp_path / "network.safetensors"
        with pytest.raises(error, match=f"bits: got {bits!r}"):
            networks.save(tiny(), path, packed=packed, bits=bits)
        assert not path.exists()

    @pytest.mark.parametrize(
        "metadata",
        [{"sigma_data": told} for told in ("nan", "0", "-1")]
        + [{"bits": told} for told in ("", "x", "-3", "2.5", "7", "99")],
    )
    def test_a_packed_file_whose_numbers_cannot_be_is_an_error(self, metadata, tmp_path):
        path = tmp_path / "network.safetensors"
        network = networks.build("ddpmpp", SHAPE, **{**TINY, "channels": 32})
        networks.save(network, path, packed=True, bits=8)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, path, file.metadata() | metadata)
        with pytest.raises(ValueError, match="its weights do not fit its architecture"):
            networks.load(path)

    def test_a_file_of_weights_that_are_not_finite_is_an_error(self, tmp_path):
        path = tmp_path / "network.safetensors"
        networks.save(tiny(), path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            last = list(tensors)[-1]
            save_file(tensors | {last: tensors[last] * torch.nan}, path, file.metadata())
        with pytest.raises(ValueError, match=f"{last} is not finite"):
            networks.load(path)

    def test_bits_may_be_a_whole_number_of_any_type(self, tmp_path, as_users_do):
        path = tmp_path / "network.safetensors"
        networks.save(tiny(), path, packed=True, bits=8.0)
        networks.load(path)

    def test_packed_codes_of_another_shape_are_an_error(self, tmp_path):
        codes, scales = pack(torch.ones(100))
        with pytest.raises(ValueError, match=r"got \(160,\) bytes .*, wanted those of .* \(200,\)"):
            unpack(codes, scales, torch.Size([200]))

    @given(
        st.lists(st.floats(-6e4, 6e4, width=16), min_size=1, max_size=100),
        st.sampled_from([1.0, 1e-3]),
        st.integers(2, 16),
    )
    def test_packing_moves_a_weight_by_half_a_step_of_its_block(self, values, size, bits):
        weights, steps = size * torch.tensor(values), 2**bits - 2
        codes, scales = pack(weights, bits)
        assert codes.numel() == scales.numel() * 4 * bits
        back = unpack(codes, scales, weights.shape, bits)
        for part, its_block in zip(back.split(32), weights.split(32), strict=True):
            largest = its_block.abs().max().item()
            assert (part - its_block).abs().max() <= largest * (1 / steps + 2**-11) + 2**-25

    def test_a_file_cut_short_anywhere_is_an_error(self, tmp_path):
        path = tmp_path / "network.safetensors"
        networks.save(tiny(), path)
        data = path.read_bytes()
        for length in (0, 4, 100, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=r"network\.safetensors: not a whole"):
                networks.load(path)

    @pytest.mark.parametrize("card", [None, "{", "3"])
    def test_a_card_that_cannot_be_read_is_an_error(self, card, tmp_path):
        from safetensors.torch import save_file

        path = tmp_path / "network.safetensors"
        metadata = {"format": "fpmc network 1"} | ({} if card is None else {"card": card})
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(ValueError, match=r"network\.safetensors: its card cannot be read"):
            networks.card(path)

    def test_a_network_loaded_in_inference_mode_can_be_differentiated(self, tmp_path):
        networks.save(tiny(), tmp_path / "network.safetensors")
        with torch.inference_mode():
            network = networks.load(tmp_path / "network.safetensors")
        z = noisy().requires_grad_()
        network(z, 0.8).sum().backward()
        assert z.grad.isfinite().all()

    def test_a_foreign_file_is_an_error(self, tmp_path):
        from safetensors.torch import save_file

        path = tmp_path / "foreign.safetensors"
        save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(ValueError, match="but not one of a network of fpmc"):
            networks.load(path)

    def test_weights_that_do_not_fit_are_an_error(self, tmp_path):
        path = tmp_path / "network.safetensors"
        networks.save(tiny(), path)
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        changed = json.loads(header["__metadata__"]["architecture"])
        changed["options"]["channels"] = 16
        header["__metadata__"]["architecture"] = json.dumps(changed)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        with pytest.raises(ValueError, match="do not fit its architecture"):
            networks.load(path)

    def test_a_failed_save_leaves_the_old_file(self, tmp_path):
        network, path = tiny(), tmp_path / "network.safetensors"
        networks.save(network, path)
        before = path.read_bytes()
        next(network.parameters()).data.fill_(torch.inf)
        with pytest.raises(ValueError, match="is not finite"):
            networks.save(network, path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_a_network_that_was_not_built_cannot_be_saved(self, tmp_path):
        with pytest.raises(ValueError, match=r"fpmc\.networks\.build"):
            networks.save(networks.Preconditioned(_Zero(), SHAPE), tmp_path / "n.safetensors")

    @pytest.mark.parametrize(
        ("network", "error", "message"),
        [
            ("nothing", ValueError, "wanted one of digits/ddpmpp"),
            ("missing.safetensors", FileNotFoundError, "no such file"),
            ("missing.pkl", FileNotFoundError, "no such file"),
            (3, TypeError, "network: got int"),
        ],
    )
    @pytest.mark.usefixtures("as_users_do")
    def test_what_is_not_there_is_an_error(self, network, error, message):
        with pytest.raises(error, match=message):
            networks.load(network)


@pytest.mark.usefixtures("as_users_do")
def test_of_what_an_installed_package_lacks_the_error_says_where_it_is(tmp_path, monkeypatch):
    path = tmp_path / "results" / "cifar10-jpeg" / "networks" / "ddpmpp.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no such file$"):
        networks.load(path)
    monkeypatch.setattr(storage, "INSTALLED", tmp_path)
    says = "left out of an installed package: .* in results/cifar10-jpeg/networks$"
    for read, name in (
        (networks.load, path),
        (networks.card, path),
        (sensitivity.load, path.with_suffix(".npz")),
    ):
        with pytest.raises(FileNotFoundError, match=says):
            read(name)
    with pytest.raises(FileNotFoundError, match=r"no such file$"):
        networks.load(tmp_path / "mine.safetensors")


class TestShipped:
    @pytest.mark.parametrize("name", networks.SHIPPED)
    def test_shipped_networks_load_and_say_where_from(self, name):
        network, card = networks.load(name), networks.card(name)
        data, _, arch = name.partition("/")
        assert card["data"] == data
        assert card["arch"] == arch.removesuffix("-1")
        assert card["seed"] == int(arch.endswith("-1"))
        assert card["parameters"] == network.size
        assert card["command"].startswith("python -m fpmc.networks.train --data")
        assert card["images"] == card["loss"][-1]["images"]
        assert network(noisy(network.shape), 1.0).isfinite().all()

    def test_shipped_networks_have_the_promised_sizes(self):
        sizes = {name: networks.load(name).size / 1e6 for name in networks.SHIPPED}
        assert all(size < 1 for name, size in sizes.items() if name.startswith("digits"))
        assert all(1 <= size <= 3 for name, size in sizes.items() if name.startswith("photos/"))
        assert all(4 <= size <= 6 for name, size in sizes.items() if name.startswith("photos32"))
        assert all(size <= 2 for name, size in sizes.items() if name.startswith("fashion"))


def served(tmp_path, name="network.safetensors"):
    """A local HTTP server for a folder, and the address of a file in it."""
    import functools
    import http.server
    import threading

    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/{name}"


class TestDownloads:
    def test_a_download_is_kept_and_must_stay_the_same(self, tmp_path):
        (tmp_path / "site").mkdir()
        network, file = tiny(), tmp_path / "site" / "network.safetensors"
        networks.save(network, file, dtype=torch.float32)
        server, address = served(tmp_path / "site")
        try:
            cache = tmp_path / "cache"
            fetched = networks.load(address, cache=cache)
            assert torch.equal(fetched(noisy(), 1.0), network(noisy(), 1.0))
            networks.save(tiny(seed=1), file, dtype=torch.float32)
            kept = networks.load(address, cache=cache)
            assert torch.equal(kept(noisy(), 1.0), network(noisy(), 1.0))
            (cache / "network.safetensors").unlink()
            with pytest.raises(ValueError, match=r"could not be fetched.*hash"):
                networks.load(address, cache=cache)
            assert not (cache / "network.safetensors").exists()
        finally:
            server.shutdown()

    def test_a_given_hash_is_checked(self, tmp_path):
        networks.save(tiny(), tmp_path / "network.safetensors")
        server, address = served(tmp_path)
        try:
            with pytest.raises(ValueError, match=r"could not be fetched.*hash"):
                networks.load(address, cache=tmp_path / "cache", sha256="0" * 64)
        finally:
            server.shutdown()

    def test_an_address_that_does_not_answer_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="could not be fetched"):
            networks.load("http://127.0.0.1:9/network.pkl", cache=tmp_path)


def test_a_label_is_that_of_a_network():
    assert networks.label("digits/dit-1") == "DiT, seed 1"
    assert networks.label("digits/ddpmpp-draws") == "DDPM++, draws"
    for name in ("nothing", "digits/unet"):
        with pytest.raises(ValueError, match=f"network: got '{name}', wanted a name like"):
            networks.label(name)


@pytest.mark.parametrize("sigma", [1e-50, 1e20])
def test_noise_that_float32_cannot_square_is_an_error(sigma):
    with pytest.raises(ValueError, match=r"sigma: got .*, wanted 1e-38 to 2e"):
        tiny()(noisy(), sigma)
