"""Packing a network's file in place, and what is kept of it."""

import shutil

import pytest
import torch

from fpmc import data, diffusion, networks, results
from fpmc.experiments import packing
from fpmc.experiments.packed import BEFORE_PACKING, PACKED, hash_for_rows
from fpmc.networks.hashes import weights_hash
from fpmc.source import to_float


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A network that is shipped in a folder of its own, under the name of digits' DDPM++."""
    options = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
    network = networks.build("ddpmpp", (1, 8, 8), seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():  # no layer at its zero start
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    path = tmp_path / "shipped" / "digits" / "ddpmpp.safetensors"
    path.parent.mkdir(parents=True)
    networks.save(network, path, {"data": "digits"})
    monkeypatch.setattr(packing, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr("fpmc.networks.loading.FOLDER", tmp_path / "shipped")
    return path


def test_a_network_is_packed_and_what_moved_is_kept(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "IMAGES", 3)
    before = tmp_path / "before.safetensors"
    shutil.copy(shipped, before)
    packing.main(["digits/ddpmpp", "--out", str(tmp_path / "packing")])
    assert shipped.stat().st_size < 0.8 * before.stat().st_size
    hashes = [weights_hash(networks.load(path)) for path in (before, shipped)]
    told = {BEFORE_PACKING: hashes[0], PACKED: hashes[1]}
    assert networks.card(shipped) == {"data": "digits"} | told
    assert hashes[0] != hashes[1]
    for path in (before, shipped):  # rows of the one are rows of the other
        assert hash_for_rows(networks.load(path), path) == hashes[0]
    rows = results.read("packing", "packed", tmp_path)
    assert len(rows) == 18
    (one, *_), (other,) = rows, results.read("packing", "packed_samples", tmp_path)
    z = diffusion.add_noise(to_float(data.load("digits").test[:3]), one["sigma"], 0)
    old, new = (networks.load(path)(z, one["sigma"]) for path in (before, shipped))
    assert one["change"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-2)
    assert 0 < other["change"] < 0.1
    assert other["r2"] == pytest.approx(1, abs=0.01)
    with pytest.raises(SystemExit, match=r"error: network: .*ddpmpp.safetensors is packed already"):
        packing.main(["digits/ddpmpp", "--out", str(tmp_path / "packing")])


def test_a_network_whose_rows_cannot_be_kept_stays_as_it_is(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "IMAGES", 1)
    before, out = shipped.read_bytes(), tmp_path / "packing"
    out.write_text("no folder")
    with pytest.raises(SystemExit, match=r"error: .*packing"):
        packing.main(["digits/ddpmpp", "--out", str(out)])
    assert shipped.read_bytes() == before
    out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(packing.Table, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packing.main(["digits/ddpmpp", "--out", str(out)])
    assert shipped.read_bytes() == before
    packing.main(["digits/ddpmpp", "--out", str(out)])  # the same call goes on
    assert len(results.read("packing", "packed", tmp_path)) == 18
    assert shipped.stat().st_size < len(before)


def interrupted(table):
    raise KeyboardInterrupt


def test_a_packed_network_that_was_trained_on_has_rows_of_its_own(shipped, tmp_path):
    packed, other = tmp_path / "packed.safetensors", tmp_path / "other.safetensors"
    packing.pack_file(shipped, packed)
    network = networks.load(packed)
    next(network.parameters()).data.add_(0.5)
    networks.save(network, other, networks.card(packed))
    assert hash_for_rows(networks.load(other), other) == weights_hash(networks.load(other))
    assert hash_for_rows(networks.load(packed), packed) == weights_hash(networks.load(shipped))


@pytest.mark.parametrize("told", [7, ["a"], "a name", "0123456", None])
def test_what_is_no_hash_on_a_card_is_not_taken_for_one(shipped, told):
    network = networks.load(shipped)
    networks.save(network, shipped, {BEFORE_PACKING: told})
    assert hash_for_rows(network, shipped) == weights_hash(network)
