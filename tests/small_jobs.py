"""A small job on digits, for tests of single stages: an untrained network, its maps, two levels."""

from fpmc import data, networks, sensitivity
from fpmc.experiments.job import Job
from tests.test_networks import tiny


def untrained(folder, levels):
    """An untrained network and its maps at these levels, kept in a folder."""
    path = folder / "network.safetensors"
    networks.save(tiny(shape=(1, 8, 8)), path)
    network = networks.load(path)
    maps = sensitivity.maps_over(network, levels, data.load("digits").test[:1])
    sensitivity.write(folder / "maps.npz", maps)
    return network, maps


def digits_job(files, tmp_path, **more):
    """A job with what :func:`untrained` kept in ``files``, whose tables lie in ``tmp_path``."""
    network = str(files / "network.safetensors")
    return Job(
        data="digits",
        out=tmp_path / "digits",
        label="digits",
        runs=tmp_path / "runs",
        network=network,
        other=network,
        maps=str(files / "maps.npz"),
        batch=4,
        **more,
    )
