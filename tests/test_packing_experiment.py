"""Packing a network's file in place, and what is kept of it."""

import shutil

import pytest
import torch

from fpmc import data, diffusion, networks, results
from fpmc.experiments import packing
from fpmc.experiments.weights import BEFORE_PACKING, weights_hash
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
    assert networks.card(shipped) == {"data": "digits", BEFORE_PACKING: hashes[0]}
    assert hashes[0] != hashes[1]
    for path in (before, shipped):  # rows of the one are rows of the other
        assert weights_hash(networks.load(path), path) == hashes[0]
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
