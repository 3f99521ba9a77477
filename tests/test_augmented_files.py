"""Augmented sets on disk: the same bytes however often they are stopped, and never half a set."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from fpmc import FPMC, Source, augment, diffusion
from fpmc.augment import recipes
from fpmc.operators import Box, Identity, Ones
from fpmc.source import mapped, union
from tests.test_augment import FUNCTIONS, gaussian, pixels

SHAPE = (3, 12, 10)


def files(folder):
    """Every file's bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a, b):
    return all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("images", "parents", "parameters")
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_set_on_disk_is_the_set_in_memory(tmp_path, name):
    n = 4 if "flips" in name else 30
    written = augment.write(tmp_path / "set", name, pixels(), n, 5, progress=False)
    assert same(written, FUNCTIONS[name](pixels(), n, 5))
    assert same(augment.read(tmp_path / "set"), written)
    assert sorted(files(tmp_path / "set")) == [
        "card.json", "images.npy", "parameters.npy", "parents.npy",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["set"]


def test_synthetic_sets_are_written_too(tmp_path):
    options = {"shape": (1, 4, 4), "sigmas": [2.0, 1.0]}
    written = augment.write(tmp_path / "set", "synthetic", gaussian, 70, progress=False, **options)
    assert same(written, augment.synthetic(gaussian, 70, **options))


@pytest.mark.parametrize("at", [0, 1, 100, 128, 200, 5000, 10_928])
def test_a_set_goes_on_from_any_length_to_the_same_bytes(tmp_path, monkeypatch, at):
    """The images' file may have been cut anywhere: in its header, in an image, at its end."""
    augment.write(tmp_path / "whole", "rotations", pixels(), 30, progress=False)
    wanted = files(tmp_path / "whole")
    assert len(wanted["images.npy"]) == 10_928
    unfinished = tmp_path / "set.part"
    (tmp_path / "whole").rename(unfinished)
    (unfinished / "images.npy").write_bytes(wanted["images.npy"][:at])
    made = []
    monkeypatch.setattr(
        "fpmc.augment.geometry.warp",
        lambda x, maps, warp=augment.geometry.warp: made.append(len(x)) or warp(x, maps),
    )
    augment.write(tmp_path / "set", "rotations", pixels(), 30, progress=False, budget=1)
    assert files(tmp_path / "set") == wanted
    assert not unfinished.exists()
    assert sum(made) == 30 - max(0, at - 128) // 360


def test_a_set_that_is_killed_goes_on(tmp_path):
    program = f"""
        import os, signal, torch
        from fpmc import augment
        from fpmc.augment import recipes
        made = 0
        def killed(z, sigma):
            global made
            made += 1
            if made > 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return z * (0.25 / (0.25 + sigma**2))
        augment.write({str(tmp_path / "set")!r}, "synthetic", killed, 200, progress=False,
                      shape=(1, 4, 4), sigmas=[2.0, 1.0])
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert ended.returncode == -9
    assert os.listdir(tmp_path) == ["set.part"]
    assert (tmp_path / "set.part" / "images.npy").stat().st_size < 128 + 200 * 16
    options = {"shape": (1, 4, 4), "sigmas": [2.0, 1.0], "progress": False}
    augment.write(tmp_path / "set", "synthetic", gaussian, 200, **options)
    augment.write(tmp_path / "whole", "synthetic", gaussian, 200, **options)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_what_is_complete_is_not_made_again(tmp_path, monkeypatch):
    first = augment.write(tmp_path / "set", "translations", pixels(), 9, progress=False)
    monkeypatch.setattr(recipes.Recipe, "pieces", None)
    again = augment.write(tmp_path / "set", "translations", pixels(), 9, progress=False)
    assert same(first, again)


@pytest.mark.parametrize("state", ["whole", "unfinished"])
@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"strategy": "scalings"}, "strategy"),
        ({"subject": pixels(4, SHAPE, 1)}, "images"),
        ({"n": 8}, "size"),
        ({"seed": 1}, "seed"),
        ({"draws": 19}, "draws"),
    ],
)
def test_another_set_of_the_name_is_an_error(tmp_path, state, change, differs):
    asked = {"strategy": "rotations", "subject": pixels(), "n": 9, "seed": 0, "progress": False}
    augment.write(tmp_path / "set", **asked)
    if state == "unfinished":
        (tmp_path / "set").rename(tmp_path / "set.part")
    before = [files(path) for path in tmp_path.iterdir()]
    with pytest.raises(ValueError, match=f"is a set that differs in {differs}, wanted another"):
        augment.write(tmp_path / "set", **{**asked, **change})
    after = [files(path) for path in tmp_path.iterdir()]
    for folder in after:
        folder.pop(".lock", None)
    assert before == after


def test_two_processes_do_not_write_one_set(tmp_path):
    (tmp_path / "set.part").mkdir()
    with (
        FileLock(tmp_path / "set.part" / ".lock"),
        pytest.raises(ValueError, match=r"set\.part is being written by another process"),
    ):
        augment.write(tmp_path / "set", "rotations", pixels(), 9, progress=False)


def test_one_process_can_wait_for_another(tmp_path):
    calls = [
        threading.Thread(
            target=augment.write,
            args=(tmp_path / "set", "rotations", pixels(), 60),
            kwargs={"progress": False, "wait": True, "budget": 1},
        )
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert os.listdir(tmp_path) == ["set"]
    assert same(augment.read(tmp_path / "set"), augment.rotations(pixels(), 60))
    assert ".lock" not in files(tmp_path / "set")


@pytest.mark.usefixtures("as_users_do")
def test_what_cannot_be_written_or_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="strategy: got 'turns', wanted one of horizontal flips"):
        augment.write(tmp_path / "set", "turns", pixels())
    with pytest.raises(TypeError, match="seed: got None, wanted a whole number"):
        augment.write(tmp_path / "set", "rotations", pixels(), seed=None)
    with pytest.raises(ValueError, match=r"wanted a set that fpmc\.augment\.write made"):
        augment.read(tmp_path)
    with pytest.raises(ValueError, match="is no set of augmented images"):
        augment.write(tmp_path, "rotations", pixels())
    assert os.listdir(tmp_path) == []
    augment.write(tmp_path / "set", "rotations", pixels(), 9, progress=False)
    np.save(tmp_path / "set" / "parents.npy", np.zeros(8, np.int64))
    with pytest.raises(ValueError, match="got 9 images, 8 parents and parameters"):
        augment.read(tmp_path / "set")


def test_a_union_with_a_set_on_disk(tmp_path):
    x = pixels(40)
    found = augment.write(tmp_path / "set", "rotations", x, 300, progress=False)
    ours = union(Source(x), found)
    theirs = Source(torch.cat([x, found.images]))
    z = diffusion.add_noise(ours[:2], 0.5, 0)
    op = Box(SHAPE[1:], 5)
    torch.testing.assert_close(FPMC(op, op, ours)(z, 0.5), FPMC(op, op, theirs)(z, 0.5))
    assert (ours.without([3]).log_weights == -torch.inf).sum() == 1 + (found.parents == 3).sum()


@pytest.mark.parametrize("name", ["array.npy", "arrays.npz", "arrays.zip"])
def test_arrays_are_mapped_where_they_lie(tmp_path, name):
    x, path = pixels().numpy(), tmp_path / name
    if name == "array.npy":
        np.save(path, x)
    else:
        with path.open("wb") as file:
            np.savez(file, images=x, labels=np.arange(3))
    found = mapped(path, None if name == "array.npy" else "images")
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, x)
    assert not found.flags.writeable
    assert torch.equal(Source(found)[:], Source(x)[:])


def test_what_cannot_be_mapped_is_an_error(tmp_path):
    x = pixels().numpy()
    np.savez_compressed(tmp_path / "packed.npz", x)
    np.savez(tmp_path / "two.npz", a=x, b=x)
    np.save(tmp_path / "objects.npy", np.array([None]))
    np.save(tmp_path / "short.npy", x)
    (tmp_path / "text.npy").write_text("text")
    os.truncate(tmp_path / "short.npy", 1000)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    for name, entry, message in (
        ("packed.npz", None, "is compressed, and cannot be mapped"),
        ("two.npz", None, "entry: got None, wanted one of a.npy, b.npy"),
        ("two.npz", "c", "entry: got 'c', wanted one of a.npy, b.npy"),
        ("none.zip", None, "wanted one of none"),
        ("objects.npy", None, "got an array of objects"),
        ("short.npy", None, "wanted an array of"),
        ("text.npy", None, "wanted a .npy file or a ZIP of them"),
    ):
        with pytest.raises(ValueError, match=message):
            mapped(tmp_path / name, entry)
    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "nothing.npy")


def anonymous():
    """Bytes of memory that no file can be read again for."""
    with open("/proc/self/status", encoding="utf-8") as file:
        (line,) = (line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no such file here")
@pytest.mark.parametrize("structure", ["optimal", "PSPC-Square", "LS"])
def test_a_source_larger_than_its_budget_stays_on_disk(tmp_path, structure):
    """32 MiB of images, 4 MiB of working memory; it is watched while the answer is computed."""
    x = pixels(2**8, (1, 32, 32))
    augment.write(tmp_path / "set", "translations", x, 2**13, progress=False, draws=60)
    part = augment.read(tmp_path / "set")
    source = union(Source(x), part, part, part, part)
    operators = {
        "optimal": (Ones((32, 32)), Ones((32, 32))),
        "PSPC-Square": (Box((32, 32), 5), Box((32, 32), 5)),
        "LS": (Box((32, 32), 5, "clip"), Identity((32, 32))),
    }[structure]
    z = diffusion.add_noise(source[:1], 1.0, 0)
    FPMC(*operators, Source(x), budget=2**22)(z, 1.0)  # what is imported does not count
    seen, over = [anonymous()], threading.Event()

    def watch():
        while not over.wait(0.005):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        FPMC(*operators, source, budget=2**22)(z, 1.0)
    finally:
        over.set()
        watcher.join()
    assert len(source) * 1024 > 2**25
    assert max(seen) - seen[0] < 2**23


@pytest.mark.parametrize("left", [0, 1])
def test_a_full_disk_names_the_file_and_the_same_call_goes_on(tmp_path, monkeypatch, left):
    """The disk holds this many of the small files that a set begins with."""
    written, write_bytes = [], Path.write_bytes

    def full(self, content):
        written.append(self)
        if len(written) > left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, content)

    x, folder = pixels(20, SHAPE), tmp_path / "set"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*set\.part"):
            augment.write(folder, "rotations", x, 30, progress=False)
    augment.write(folder, "rotations", x, 30, progress=False)
    augment.write(tmp_path / "other", "rotations", x, 30, progress=False)
    assert files(folder) == files(tmp_path / "other")
