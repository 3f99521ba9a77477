"""The datasets: embedded ones, archives, and every way in which a file can be wrong."""

import contextlib
import io
import json
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpmc.data import load, photos
from fpmc.source import to_float


def write_archive(path, arrays, suffix="png"):
    """Write images (h, w) or (h, w, 3) as EDM's dataset tool does, to a folder or a ZIP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    (folder / "00000").mkdir(parents=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / "00000" / f"img{i:08d}.{suffix}")
    (folder / "dataset.json").write_text(json.dumps({"labels": None}))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder))
    return path


def random_images(n, shape, seed=0):
    """Random pixel values."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "shape", "n_train", "n_test"),
    [
        ("digits", (1, 8, 8), 1_500, 297),
        ("photos", (3, 16, 16), 10_000, 1_000),
        ("photos32", (3, 32, 32), 10_000, 1_000),
        ("fashion", (1, 28, 28), 10_000, 2_000),
    ],
)
def test_embedded_datasets_have_their_documented_sizes(name, shape, n_train, n_test):
    dataset = load(name)
    assert dataset.train.dtype == dataset.test.dtype == torch.uint8
    assert dataset.train.shape == (n_train, *shape)
    assert dataset.test.shape == (n_test, *shape)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_the_seed_decides_which_images_are_taken(name):
    first, again, other = (load(name, n_train=200, n_test=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.train, other.train)


def test_at_most_as_many_images_as_there_are(tmp_path):
    write_archive(tmp_path / "few", random_images(20, (4, 4, 3)))
    for n_train, n_test, found in ((5, 3, (5, 3)), (99, None, (18, 2)), (99, 4, (16, 4))):
        dataset = load(tmp_path / "few", n_train=n_train, n_test=n_test, at_most=True)
        assert (len(dataset.train), len(dataset.test)) == found
    every = load(tmp_path / "few", n_test=99, at_most=True)
    assert (len(every.train), len(every.test)) == (1, 19)
    same = load("digits", n_train=200, n_test=50, at_most=True)
    assert torch.equal(same.train, load("digits", n_train=200, n_test=50).train)
    assert len(load("photos", n_train=20_001, n_test=1, at_most=True).train) == 20_001


def test_no_seed_holds_out_an_image_that_another_trains_on():
    trained = load("digits").train.flatten(1)
    assert torch.equal(load("digits", seed=7).test, load("digits").test)
    for n_test in (40, None):
        held_out = load("digits", n_train=200, n_test=n_test, seed=7).test.flatten(1)
        assert len(torch.cat([trained, held_out]).unique(dim=0)) == 1_500 + len(held_out)


def test_a_longer_draw_begins_with_the_shorter_one():
    short, long = (load("photos", n_train=n, n_test=10) for n in (100, 300))
    assert torch.equal(short.train, long.train[:100])


def test_digits_are_split_into_disjoint_parts():
    dataset = load("digits")
    together = torch.cat([dataset.train, dataset.test]).flatten(1)
    assert len(together) == 1_797
    assert len(together.unique(dim=0)) == 1_797


@pytest.mark.parametrize("side", photos.SCALES)
@pytest.mark.parametrize("name", photos.PHOTOGRAPHS)
def test_no_pixel_of_a_photograph_is_in_both_splits(name, side):
    used = {}
    for split in ("train", "test"):
        used[split] = np.zeros(photos._test_cells(name).shape, bool)
        for scale in photos.SCALES[side]:
            _, is_test = photos._shrunk(name, scale)
            allowed = is_test if split == "test" else photos._is_train(name, scale)
            places = photos._places(allowed, side)
            assert len(places) > 0
            seen = np.zeros(allowed.shape, bool)
            seen[tuple(places.T)] = True  # the corners; then all that lies below and right of them
            for axis in (0, 1):
                seen = np.logical_or.reduce([np.roll(seen, i, axis) for i in range(side)])
                seen = seen.repeat(scale, axis)
            used[split][: seen.shape[0], : seen.shape[1]] |= seen
    assert not (used["train"] & used["test"]).any()


def test_a_crop_is_a_piece_of_its_photograph():
    pixels, _ = photos._shrunk("chelsea", 2)
    full = np.asarray(photos._photograph("chelsea"), dtype=float)
    block = full[10:12, 20:22].mean((0, 1))
    assert np.abs(pixels[5, 10] - block).max() <= 0.5


def test_both_splits_look_alike():
    dataset = load("photos")
    train, test = (to_float(part) for part in (dataset.train, dataset.test))
    assert abs(train.mean() - test.mean()) < 0.15
    assert abs(train.std() - test.std()) < 0.15


@pytest.mark.parametrize("kind", ["images.zip", "images"])
@pytest.mark.parametrize("shape", [(6, 6, 3), (6, 6)])
def test_archives_are_read_in_order(tmp_path, kind, shape):
    arrays = random_images(30, shape)
    dataset = load(write_archive(tmp_path / kind, arrays), n_test=0)
    expected = arrays[..., None] if len(shape) == 2 else arrays
    assert torch.equal(dataset.train, torch.from_numpy(expected.transpose(0, 3, 1, 2).copy()))
    assert dataset.test.shape == (0, *dataset.train.shape[1:])


def test_an_archive_without_a_test_set_holds_out_a_tenth(tmp_path):
    path = write_archive(tmp_path / "images.zip", random_images(40, (4, 4, 3)))
    dataset = load(path)
    assert len(dataset.train) == 36
    assert len(dataset.test) == 4
    together = torch.cat([dataset.train, dataset.test]).flatten(1)
    assert len(together.unique(dim=0)) == 40
    assert torch.equal(dataset.test, load(path, seed=1).test)
    few = load(write_archive(tmp_path / "few.zip", random_images(4, (4, 4, 3))))
    assert (len(few.train), len(few.test)) == (3, 1)


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tiff"])
def test_other_kinds_of_images_are_read_too(tmp_path, suffix):
    options = {"webp": {"lossless": True}}.get(suffix, {})
    array = random_images(1, (4, 4, 3))[0]
    Image.fromarray(array).save(tmp_path / f"image.{suffix}", **options)
    assert torch.equal(load(tmp_path, n_test=0).train[0], torch.from_numpy(array).permute(2, 0, 1))


def test_a_file_of_several_pages_is_an_error(tmp_path):
    pages = [Image.fromarray(array) for array in random_images(2, (4, 4, 3))]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"pages\.tiff: got 2 pages, wanted one image per file"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["cats.zip", "cats"])
def test_folders_called_train_and_test_are_two_parts(tmp_path, kind):
    write_archive(tmp_path / "cats" / "train", random_images(20, (4, 4, 3)))
    write_archive(tmp_path / "cats" / "test", random_images(7, (4, 4, 3), 1))
    if kind == "cats.zip":
        with zipfile.ZipFile(tmp_path / kind, "w") as archive:
            for file in (tmp_path / "cats").rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path / "cats"))
    dataset = load(tmp_path / kind)
    assert (len(dataset.train), len(dataset.test)) == (20, 7)
    expected = random_images(7, (4, 4, 3), 1).transpose(0, 3, 1, 2)
    assert torch.equal(dataset.test, torch.from_numpy(expected.copy()))


def test_images_beside_train_and_test_are_an_error(tmp_path):
    for part in ("train", "test", "val"):
        write_archive(tmp_path / part, random_images(3, (4, 4, 3)))
    with pytest.raises(ValueError, match="got images in train, test and val, wanted the first two"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["cats.zip", "."])
def test_train_and_test_are_found_below_the_folders_that_all_images_share(tmp_path, kind):
    (tmp_path / "set").mkdir()
    for seed, (part, n) in enumerate((("train", 20), ("test", 7))):
        write_archive(tmp_path / "set" / "w" / "in" / part, random_images(n, (4, 4, 3), seed))
    if kind == "cats.zip":
        with zipfile.ZipFile(tmp_path / "set" / kind, "w") as archive:
            for file in (tmp_path / "set" / "w").rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path / "set"))
    dataset = load(tmp_path / "set" / kind)
    assert (len(dataset.train), len(dataset.test)) == (20, 7)
    expected = random_images(7, (4, 4, 3), 1).transpose(0, 3, 1, 2)
    assert torch.equal(dataset.test, torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("Train", "Test"), "Test"),
        (("cats/train", "cats/test", "dogs/train", "dogs/test"), "cats/test"),
        (("bus", "train"), "train"),
        (("train", "test/TEST"), "test/TEST"),
    ],
)
def test_folders_called_train_or_test_that_are_no_parts_are_an_error(tmp_path, folders, named):
    for folder in folders:
        write_archive(tmp_path / folder, random_images(3, (4, 4, 3)))
    with pytest.raises(ValueError, match=f"got images in {named}/00000, wanted folders called"):
        load(tmp_path)


def test_a_folder_that_all_images_share_may_be_called_train(tmp_path):
    write_archive(tmp_path / "cats" / "train", random_images(20, (4, 4, 3)))
    assert len(load(tmp_path / "cats", n_test=0).train) == 20


def test_folders_behind_links_are_read_and_links_that_lead_back_are_not(tmp_path):
    arrays = random_images(4, (4, 4, 3))
    write_archive(tmp_path / "elsewhere" / "a", arrays[:2])
    write_archive(tmp_path / "set" / "b", arrays[2:])
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "set" / "b" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "a" / "self").symlink_to(tmp_path / "elsewhere" / "a")
    expected = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    assert torch.equal(load(tmp_path / "set", n_test=0).train, expected)


def test_a_dot_in_a_folder_s_name_does_not_hide_its_twin(tmp_path):
    write_archive(tmp_path / "cats.v2-train", random_images(20, (4, 4, 3)))
    write_archive(tmp_path / "cats.v2-test", random_images(7, (4, 4, 3), 1))
    assert len(load(tmp_path / "cats.v2-train").test) == 7


def test_a_train_archive_brings_its_test_twin(tmp_path):
    write_archive(tmp_path / "cats-train.zip", random_images(20, (4, 4, 3)))
    write_archive(tmp_path / "cats-test.zip", random_images(7, (4, 4, 3), 1))
    dataset = load(tmp_path / "cats-train.zip", n_train=15)
    assert len(dataset.train) == 15
    assert len(dataset.test) == 7


def test_cifar10_comes_from_zips_below_root(tmp_path, monkeypatch):
    write_archive(tmp_path / "cifar10-train.zip", random_images(20, (32, 32, 3)), "jpg")
    write_archive(tmp_path / "cifar10-test.zip", random_images(5, (32, 32, 3), 1), "jpg")
    assert load("cifar10", tmp_path).train.shape == (20, 3, 32, 32)
    monkeypatch.setenv("FPMC_DATA", str(tmp_path))
    assert load("cifar10").test.shape == (5, 3, 32, 32)


def test_a_home_folder_that_nobody_knows_is_told(monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FPMC_DATA", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(ValueError, match=r"FPMC_DATA: got none, and '~/\.cache/fpmc' is nowhere"):
        load("cifar10")


def test_cifar10_without_a_working_torchvision_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r"pip install torch torchvision .*or put cifar10-train"):
        load("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "side"), [("ffhq64", 64), ("afhqv2-64", 64)])
def test_large_datasets_are_found_below_root_or_the_error_says_how_to_make_them(
    tmp_path, name, side
):
    file = {"ffhq64": "ffhq-64x64.zip", "afhqv2-64": "afhqv2-64x64.zip"}[name]
    with pytest.raises(
        FileNotFoundError, match=rf"dataset_tool\.py .*--dest={file} --resolution=64x64"
    ):
        load(name, tmp_path)
    write_archive(tmp_path / file, random_images(3, (side, side, 3)))
    assert load(name, tmp_path, n_test=0).train.shape == (3, 3, side, side)


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"name": "imagenet"}, ValueError, "name: got 'imagenet', wanted one of digits, photos,"),
        ({"name": "digits", "n_train": 0}, ValueError, "n_train: got 0"),
        (
            {"name": "digits", "n_train": 5_000},
            ValueError,
            "n_train: got 5,000, but digits holds 1,500",
        ),
        ({"name": "digits", "n_test": 1_797}, ValueError, "n_test: got 1797"),
        ({"name": "digits", "n_test": -1}, ValueError, "n_test: got -1"),
        ({"name": "photos", "n_train": 1.5}, TypeError, "n_train: got 1.5"),
        ({"name": "photos", "seed": -1}, ValueError, "seed: got -1"),
        ({"name": ""}, ValueError, "name: got '', wanted one of"),
        ({"name": None}, TypeError, "name: got NoneType"),
        ({"name": "cifar10", "root": 3}, TypeError, "root: got int"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says):
    with pytest.raises(error) as caught:
        load(**arguments)
    assert says in str(caught.value)


def test_a_path_is_a_path_and_a_name_a_name(tmp_path, monkeypatch):
    write_archive(tmp_path / "photos", random_images(3, (4, 4, 3)))
    monkeypatch.chdir(tmp_path)
    for folder in (Path("photos"), "./photos"):
        assert load(folder, n_test=0).train.shape == (3, 3, 4, 4)
    assert load("photos", n_train=2, n_test=1).train.shape == (2, 3, 16, 16)
    monkeypatch.chdir(tmp_path / "photos")
    assert load(".", n_test=0).train.shape == (3, 3, 4, 4)


class TestBadArchives:
    """Each error names the file."""

    @pytest.mark.parametrize("method", ["ZIP_DEFLATED", "ZIP_LZMA", "ZIP_BZIP2"])
    def test_a_packed_zip_with_wrong_bytes_anywhere(self, tmp_path, method):
        path, content = tmp_path / "images.zip", io.BytesIO()
        image = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
        image.save(content, "BMP")
        with zipfile.ZipFile(path, "w", getattr(zipfile, method)) as archive:
            archive.writestr("00000/a.bmp", content.getvalue())
        whole = path.read_bytes()
        for place in range(45, 120, 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with contextlib.suppress(ValueError):
                load(path, n_test=0)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_a_picture_with_wrong_bytes_anywhere(self, tmp_path, suffix):
        path = tmp_path / "images" / f"a.{suffix}"
        path.parent.mkdir()
        Image.fromarray(random_images(1, (4, 4, 3))[0]).save(path)
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with contextlib.suppress(ValueError), warnings.catch_warnings(action="ignore"):
                load(path.parent, n_test=0)

    def test_no_zip(self, tmp_path):
        path = tmp_path / "images.zip"
        path.write_text("not a zip")
        with pytest.raises(ValueError, match=r"images\.zip: got a file that is not a ZIP"):
            load(path)

    def test_no_images(self, tmp_path):
        with pytest.raises(ValueError, match="got no images"):
            load(write_archive(tmp_path / "images.zip", []))

    def test_a_broken_image(self, tmp_path):
        folder = write_archive(tmp_path / "images", random_images(3, (4, 4, 3)))
        broken = folder / "00000" / "img00000001.png"
        broken.write_bytes(broken.read_bytes()[:40])
        with pytest.raises(ValueError, match=r"img00000001\.png: cannot be read as an image"):
            load(folder)

    def test_an_image_of_no_known_kind_is_named_without_an_address(self, tmp_path):
        folder = write_archive(tmp_path / "images", random_images(2, (4, 4, 3)))
        (folder / "00000" / "img00000001.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"img00000001\.png: cannot be .*none that") as caught:
            load(folder)
        assert "0x" not in str(caught.value)

    def test_a_file_of_tensors_says_what_takes_it(self, tmp_path):
        torch.save(torch.from_numpy(random_images(2, (3, 4, 4))), tmp_path / "images.pt")
        with pytest.raises(ValueError, match=r"\.pt file, which torch\.load reads.*Source\("):
            load(tmp_path / "images.pt")

    def test_of_many_sizes_the_two_commonest_are_named_with_a_file_of_each(self, tmp_path):
        sizes = [(4, 4)] * 3 + [(5, 4)] * 2 + [(6, side) for side in range(1, 200)]
        for i, size in enumerate(sizes):
            Image.fromarray(random_images(1, (*size, 3))[0]).save(tmp_path / f"{i:03}.png")
        with pytest.raises(ValueError, match="got images of 201 sizes") as caught:
            load(tmp_path)
        assert "4 × 4 (3, as 000.png) and 4 × 5 (2, as 003.png)" in str(caught.value)
        assert len(str(caught.value)) < len(str(tmp_path)) + 200

    def test_a_zip_with_a_wrong_checksum(self, tmp_path):
        path = write_archive(tmp_path / "images.zip", random_images(2, (4, 4, 3)))
        content = bytearray(path.read_bytes())
        content[content.index(b"IDAT") + 6] ^= 255
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"images\.zip: cannot be read"):
            load(path)

    def test_what_an_operating_system_hides_is_passed_over(self, tmp_path):
        folder = write_archive(tmp_path / "images", random_images(2, (4, 4, 3)))
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "._img00000000.png").write_bytes(b"no image")
        assert len(load(folder, n_test=0).train) == 2

    def test_cifar10_of_another_size_and_without_its_test_set(self, tmp_path):
        write_archive(tmp_path / "cifar10-train.zip", random_images(3, (4, 4, 3)))
        with pytest.raises(FileNotFoundError, match=r"cifar10: no .*cifar10-test\.zip"):
            load("cifar10", tmp_path)
        write_archive(tmp_path / "cifar10-test.zip", random_images(3, (4, 4, 3)))
        with pytest.raises(ValueError, match=r"cifar10: got images \(3, 4, 4\)"):
            load("cifar10", tmp_path)

    @pytest.mark.parametrize("mode", ["RGBA", "P"])
    def test_an_alpha_channel_or_palette_says_how_to_convert(self, tmp_path, mode):
        image = Image.fromarray(random_images(1, (4, 4, 4))[0]).convert(mode)
        image.save(tmp_path / "image.png")
        with pytest.raises(ValueError, match=rf'mode {mode}, .*as image\.convert\("RGB"\) gives'):
            load(tmp_path)

    def test_a_twin_of_another_size(self, tmp_path):
        write_archive(tmp_path / "a-train.zip", random_images(3, (4, 4, 3)))
        write_archive(tmp_path / "a-test.zip", random_images(3, (5, 5, 3)))
        with pytest.raises(ValueError, match=r"a-test\.zip: got images \(3, 5, 5\)"):
            load(tmp_path / "a-train.zip")
