"""Official checkpoints are read, and nothing in them is run."""

import io
import math
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from torch import nn

from fpmc import networks
from fpmc.data import Dataset
from fpmc.networks.official import Record, read_pickle
from fpmc.networks.recipes import Recipe
from fpmc.networks.train import train
from fpmc.source import to_uint8
from tests.test_networks import noisy, tiny

ARGUMENTS = {
    "ddpmpp": {"embedding_type": "positional", "encoder_type": "standard"},
    "ncsnpp": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
}


@pytest.fixture
def edm(monkeypatch):
    """The modules that EDM's pickles name, as far as writing such a pickle needs them."""
    persistence = types.ModuleType("torch_utils.persistence")
    package, util = types.ModuleType("torch_utils"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the official loader ran")

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    EasyDict.__module__, EasyDict.__qualname__, util.EasyDict = util.__name__, "EasyDict", EasyDict
    package.persistence = persistence
    for module in (package, persistence, types.ModuleType("dnnlib"), util):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent:
        """Pickles as EDM's decorated classes do: a call with source code and state."""

        def __init__(self, name, state):
            self.name, self.state = name, state

        def __reduce__(self):
            source = "raise AssertionError('source code from the file was run')"
            meta = {
                "type": "class",
                "version": 6,
                "module_src": source,
                "class_name": self.name,
                "state": self.state,
            }
            return _reconstruct_persistent_obj, (meta,), None

    return types.SimpleNamespace(Persistent=Persistent, EasyDict=EasyDict)


def persistent(module, edm):
    """A module of ours as a persistent object; torch's own containers stay what they are."""
    if isinstance(module, nn.ModuleDict):
        copy = nn.ModuleDict()
        copy.__dict__["_modules"] = {name: persistent(child, edm) for name, child in module.items()}
        return copy
    state = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(
            (name, persistent(child, edm)) for name, child in module.named_children()
        ),
        "skip_scale": np.sqrt(0.5),
    }
    return edm.Persistent(type(module).__name__, state)


def checkpoint(network, edm, protocol=4, name="EDMPrecond", beside=None, **changes):
    """A pickle laid out as NVIDIA's: the network among other objects."""
    root = persistent(network, edm)
    root.name = name
    arguments = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 0,
        "model_type": "SongUNet",
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.0,
        **changes,
    }
    root.state |= {"_init_args": (), "_init_kwargs": arguments}
    content = {
        "ema": root,
        "loss_fn": edm.Persistent("EDMLoss", {"P_mean": -1.2}),
        "augment_pipe": edm.Persistent("AugmentPipe", {"p": 0.12}),
        "dataset_kwargs": edm.EasyDict(class_name="training.dataset.ImageFolderDataset"),
    }
    return pickle.dumps(content | (beside or {}), protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("arch", ARGUMENTS)
def test_a_checkpoint_gives_the_network_that_it_holds(arch, protocol, edm, tmp_path):
    network, path = tiny(arch), tmp_path / "network.pkl"
    path.write_bytes(checkpoint(network, edm, protocol, **ARGUMENTS[arch]))
    loaded = networks.load(path)
    assert torch.equal(loaded(noisy(), 0.8), network(noisy(), 0.8))


def test_training_goes_on_from_a_checkpoint_and_its_card_says_so(edm, tmp_path):
    path, toy = tmp_path / "network.pkl", 2 * torch.rand(8, 3, 8, 8) - 1
    path.write_bytes(checkpoint(tiny(), edm, **ARGUMENTS["ddpmpp"]))
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.0}
    recipe = Recipe("toy", "ddpmpp", options, images=8, batch=4, start=str(path))
    dataset = Dataset("toy", to_uint8(toy), to_uint8(toy[:2]))
    train(recipe, tmp_path / "run", dataset=dataset, precision="float32", progress=False)
    card = networks.card(tmp_path / "run" / "network.safetensors")
    assert card["begun"] == {"network": str(path)}


def test_arguments_without_the_images_side_are_an_error(edm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(checkpoint(tiny(), edm).replace(b"img_resolution", b"img_resolutiom"))
    with pytest.raises(ValueError, match=r"network\.pkl: its weights do not fit its arguments"):
        networks.load(path)


def test_an_augmentation_condition_is_kept_and_is_zero(edm, tmp_path):
    network, path = tiny(), tmp_path / "network.pkl"
    network.model.map_augment = nn.Linear(9, 8, bias=False)
    path.write_bytes(checkpoint(network, edm, augment_dim=9, **ARGUMENTS["ddpmpp"]))
    loaded = networks.load(path)
    assert torch.equal(loaded.model.map_augment.weight, network.model.map_augment.weight)
    assert torch.equal(loaded(noisy(), 0.8), network(noisy(), 0.8))


def test_everything_else_is_plain(edm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(checkpoint(tiny(), edm))
    content = read_pickle(path)
    assert isinstance(content["loss_fn"], Record)
    assert content["loss_fn"].state == {"P_mean": -1.2}
    assert dict(content["dataset_kwargs"]) == {"class_name": "training.dataset.ImageFolderDataset"}
    assert content["ema"].state["skip_scale"] == pytest.approx(0.5**0.5)


BESIDE = {
    "array": np.arange(6.0).reshape(2, 3),
    "records": np.zeros(2, [("a", "f4"), ("b", "i2")]),
    "objects": np.array([{"a": 1}, None, [2]], dtype=object),
    "path": Path("datasets", "cifar10-32x32.zip"),
    "windows": PureWindowsPath("datasets/cifar10-32x32.zip"),
    "device": torch.device("cpu"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", BESIDE)
def test_settings_that_a_network_does_not_need_are_passed_over(kind, protocol, edm, tmp_path):
    network, path = tiny(), tmp_path / "network.pkl"
    setting = {"dataset_kwargs": edm.EasyDict({kind: BESIDE[kind], "resolution": 8})}
    whole = checkpoint(network, edm, protocol, beside=setting, **ARGUMENTS["ddpmpp"])
    path.write_bytes(whole)
    loaded = networks.load(path)
    assert torch.equal(loaded(noisy(), 0.8), network(noisy(), 0.8))
    found = read_pickle(path)["dataset_kwargs"]
    assert found["resolution"] == 8
    assert type(found[kind]).__name__ == "_Skipped"


def test_a_training_state_is_told_where_its_network_lies(tmp_path):
    torch.save({"net": tiny().state_dict(), "optimizer_state": {}}, tmp_path / "training-state.pt")
    with pytest.raises(ValueError, match=r"as training states end, wanted the network that lies"):
        networks.load(tmp_path / "training-state.pt")


class Attack:
    """Pickles as a call of a function with these arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def trap(path):
    """Ways to make a file at this path when a pickle is loaded."""
    command = f"touch {path}"
    inner = io.BytesIO()
    torch.save(Attack(os.system, command), inner)
    yield "system", Attack(os.system, command)
    yield "eval", Attack(eval, f"open({str(path)!r}, 'w')")
    yield "exec", Attack(exec, f"open({str(path)!r}, 'w')")
    yield "getattr", Attack(getattr, Attack(__import__, "os"), "system")
    yield "open", Attack(open, str(path), "w")
    yield "_load_from_bytes", Attack(torch.storage._load_from_bytes, inner.getvalue())
    yield "__import__", Attack(__import__, "antigravity")
    yield "load", Attack(torch.load, str(path))


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("inside", [False, True])
def test_a_checkpoint_that_would_run_something_is_refused_and_nothing_ran(
    at, inside, edm, tmp_path
):
    mark, path = tmp_path / "mark", tmp_path / "network.pkl"
    name, attack = list(trap(mark))[at]
    network = tiny()
    if inside:
        root = persistent(network, edm)
        root.state["skip_scale"] = attack
        path.write_bytes(pickle.dumps({"ema": root}))
    else:
        path.write_bytes(pickle.dumps({"ema": attack}))
    with pytest.raises(ValueError, match="Nothing in it was run") as error:
        networks.load(path)
    if name != "_load_from_bytes":
        assert name in str(error.value)
    assert not mark.exists()


def test_the_trap_works_where_a_pickle_is_trusted(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(dict(trap(mark))["system"]))
    assert mark.exists()


def test_what_a_file_sets_on_the_reader_does_not_outlive_it(edm, tmp_path):
    """BUILD with slot state sets attributes on whatever is on the stack."""
    path = tmp_path / "network.pkl"
    data = b"\x80\x02ccollections\nOrderedDict\nN}q\x00X\x08\x00\x00\x00__init__q\x01K\x01s\x86b."
    path.write_bytes(data)
    before = OrderedDict.__init__
    with pytest.raises(ValueError, match="Nothing in it was run"):
        read_pickle(path)
    assert OrderedDict.__init__ is before


@pytest.mark.parametrize("length", [0, 1, 10, 5000])
def test_a_file_cut_short_is_an_error(length, edm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(checkpoint(tiny(), edm)[:length])
    with pytest.raises(ValueError, match=r"network\.pkl: not a readable EDM checkpoint"):
        networks.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "VPPrecond"}, "got VPPrecond, wanted a network of class EDMPrecond"),
        ({"model_type": "DhariwalUNet"}, "its model_type is 'DhariwalUNet', wanted 'SongUNet'"),
        ({"label_dim": 10}, "its label_dim is 10, wanted 0"),
        ({"decoder_type": "skip"}, "its decoder_type is 'skip'"),
        ({"model_channels": 16}, "do not fit its arguments"),
    ],
)
def test_another_network_is_an_error(changes, message, edm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(checkpoint(tiny(), edm, **changes))
    with pytest.raises(ValueError, match=message):
        networks.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_weights_that_are_not_finite_are_an_error(kind, value, edm, tmp_path):
    network, path = tiny("ncsnpp"), tmp_path / "network.pkl"
    tensors = dict(network.named_parameters() if kind == "parameter" else network.named_buffers())
    name = list(tensors)[-1]
    tensors[name].data.view(-1)[-1] = value
    path.write_bytes(checkpoint(network, edm, **ARGUMENTS["ncsnpp"]))
    with pytest.raises(ValueError, match=rf"network\.pkl: .*{name} is not finite"):
        networks.load(path)


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_a_deviation_of_the_data_that_is_none_is_an_error(value, edm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(checkpoint(tiny(), edm, sigma_data=value))
    with pytest.raises(ValueError, match=r"network\.pkl: .*sigma_data: got"):
        networks.load(path)


def test_a_pickle_without_a_network_is_an_error(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="got list, wanted a network"):
        networks.load(path)
