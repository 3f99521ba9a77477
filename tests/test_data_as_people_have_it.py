"""Files as other programs write them: names, formats, orientation, arrays, labels."""

import gzip
import io
import json
import pickle
import struct
import sys
import types
import warnings
import zipfile
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from fpmc import Source
from fpmc.data import fashion, load
from fpmc.data.decoding import decode
from tests.test_data import random_images, write_archive


def as_png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_tensor(arrays):
    """(n, h, w, 3) as (n, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2)))


class TestNames:
    def test_back_slashes_are_slashes(self, tmp_path):
        images = random_images(5, (4, 4, 3))
        names = ["train\\0.png", "train\\1.png", "train\\2.png", "test\\0.png", "test\\1.png"]
        files = dict(zip(names, map(as_png, images), strict=True))
        hidden = {"train\\._0.png": b"no image", "__MACOSX\\train\\._1.png": b"no image"}
        data = load(write_zip(tmp_path / "windows.zip", {"train\\": b""} | files | hidden))
        assert torch.equal(data.train, as_tensor(images[:3]))
        assert torch.equal(data.test, as_tensor(images[3:]))

    @pytest.mark.skipif(sys.platform == "win32", reason="back-slashes part folders there")
    def test_back_slashes_in_a_folder_s_names_are_slashes_too(self, tmp_path):
        images = random_images(3, (4, 4, 3))
        for name, image in zip(("train\\0", "train\\1", "test\\0"), images, strict=True):
            (tmp_path / f"{name}.png").write_bytes(as_png(image))
        assert torch.equal(load(tmp_path).test, as_tensor(images[2:]))

    def test_labels_with_back_slashes_belong_to_the_same_images(self, tmp_path):
        files = {f"a\\{i}.png": as_png(im) for i, im in enumerate(random_images(3, (4, 4, 3)))}
        labels = json.dumps({"labels": [["a/0.png", 5], ["a\\1.png", 6], ["a/2.png", 7]]})
        data = load(write_zip(tmp_path / "w.zip", files | {"dataset.json": labels}), n_test=0)
        assert data.train_labels.tolist() == [5, 6, 7]

    @pytest.mark.parametrize(
        "names",
        [
            ("training", "testing"),
            ("train", "val"),
            ("train", "valid"),
            ("train", "Validation"),
            ("training_set", "test_set"),
            ("train2017", "val2017"),
            ("TRAIN", "TEST"),
            ("train", "eval"),
        ],
    )
    def test_parts_that_are_spelled_otherwise_are_an_error(self, tmp_path, names):
        for name in names:
            write_archive(tmp_path / name, random_images(3, (4, 4, 3)))
        with pytest.raises(ValueError, match=r"got images in \w+/00000, wanted folders called"):
            load(tmp_path)

    @pytest.mark.parametrize(
        "names", [("x_train", "x_test"), ("trn", "tst"), ("trainA", "testA"), ("1 Val", "1 Train")]
    )
    @pytest.mark.parametrize("below", ["", "deep/er"])
    def test_folders_that_differ_by_a_part_s_name_are_an_error(self, tmp_path, names, below):
        for name in names:
            write_archive(tmp_path / below / name, random_images(3, (4, 4, 3)))
        write_archive(tmp_path / "other", random_images(3, (4, 4, 3)))
        with pytest.raises(ValueError, match=rf"got images in {' and '.join(sorted(names))}, want"):
            load(tmp_path)

    @pytest.mark.parametrize(
        "names",
        [("cats", "dogs"), ("trains", "buses"), ("value", "vale"), ("train_station", "test_tube")],
    )
    def test_folders_of_other_names_are_one_part(self, tmp_path, names):
        for name in names:
            write_archive(tmp_path / name, random_images(3, (4, 4, 3)))
        assert len(load(tmp_path, n_test=0).train) == 6


class TestFormats:
    @pytest.mark.parametrize(
        "name",
        [f"a.{suffix}" for suffix in ("png", "apng", "jpg", "JPG", "jpeg", "jpe", "jfif", "jp2")]
        + [f"a.{suffix}" for suffix in ("webp", "bmp", "dib", "tif", "TIFF", "gif", "ppm", "pnm")]
        + ["a.tga", "a.pcx"],
    )
    def test_images_by_their_suffixes(self, tmp_path, name):
        array = np.full((8, 8, 3), (250, 10, 120), np.uint8)
        Image.fromarray(array).save(
            tmp_path / name, {".jfif": "JPEG", ".apng": "PNG"}.get(name[1:])
        )
        read = load(tmp_path, n_test=0).train[0]
        assert (read.float() - torch.from_numpy(array).permute(2, 0, 1)).abs().max() < 4

    @pytest.mark.parametrize("suffix", ["pgm", "png", "gif"])
    def test_grey_images_stay_grey(self, tmp_path, suffix):
        array = random_images(1, (4, 4))[0]
        Image.fromarray(array).save(tmp_path / f"a.{suffix}")
        read = load(tmp_path, n_test=0).train
        assert torch.equal(read[0, 0], torch.from_numpy(array))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
    def test_a_file_without_a_suffix_is_an_image_if_it_begins_as_one(self, tmp_path, kind):
        Image.fromarray(random_images(1, (4, 4, 3))[0]).save(tmp_path / "0001", kind)
        (tmp_path / "LICENSE").write_text("Pictures of mine")
        assert len(load(tmp_path, n_test=0).train) == 1

    def test_files_that_are_left_out_are_counted(self, tmp_path):
        write_archive(tmp_path, random_images(10, (4, 4, 3)))
        for name in ("a.heic", "b.heic", "clip.mp4", "notes.txt", "Thumbs.db", ".DS_Store"):
            (tmp_path / name).write_bytes(b"something")
        says = r"left out 3 files of other kinds: 2 \.heic \(as a\.heic\), 1 \.mp4 \(as clip\.mp4\)"
        with pytest.warns(UserWarning, match=f"read 10 images and {says}"):
            assert len(load(tmp_path, n_test=0).train) == 10

    def test_nothing_is_said_where_nothing_is_left_out(self, tmp_path):
        write_archive(tmp_path, random_images(3, (4, 4, 3)))
        (tmp_path / "readme.txt").write_text("Pictures of mine")
        with warnings.catch_warnings(action="error"):
            load(tmp_path)

    def test_if_all_are_left_out_the_error_says_what_was_found(self, tmp_path):
        (tmp_path / "a.heic").write_bytes(b"something")
        with pytest.raises(ValueError, match=r"got no images.*; got 1 \.heic \(as a\.heic\)"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("shard-000000.tar", r"got a \.tar file, wanted it unpacked to a folder"),
            ("images.TAR.GZ", r"got a \.gz file, wanted it unpacked"),
            ("train.parquet", r"got .* datasets\.load_dataset reads, .*\(n, c, h, w\), fpmc\.Sou"),
            ("data.arrow", r"got .* which datasets\.load_from_disk reads"),
            ("train_32x32.mat", r"got .* which scipy\.io\.loadmat reads"),
            ("fid.pkl", r"got a \.pkl file, which its own package reads"),
            ("images.idx", "got a file that is not a ZIP, wanted a ZIP or a folder of images"),
        ],
    )
    def test_files_that_others_read_are_told_what_to_do_with(self, tmp_path, name, says):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(ValueError, match=rf"{name}: {says}"):
            load(tmp_path / name)
        if "ZIP" not in says:
            with pytest.raises(ValueError, match=says):
                load(tmp_path)

    def test_cifar_10_s_own_folder_is_told_how_it_is_read(self, tmp_path):
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for name in ("data_batch_1", "test_batch", "batches.meta", "readme.html"):
            (folder / name).write_bytes(pickle.dumps({b"data": [0]}))
        with pytest.raises(ValueError, match=rf"load\('cifar10', root='{tmp_path}'\)"):
            load(folder)


class TestPixels:
    """What a file shows in a viewer is what is read, or an error says why not."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_an_image_is_turned_as_its_exif_orientation_says(self, orientation, kind):
        upright = np.zeros((8, 16), np.uint8)
        upright[:4, :8] = 255
        upright[4:, 8:] = 128
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.T,
            6: np.rot90(upright),
            7: upright[::-1, ::-1].T,
            8: np.rot90(upright, -1),
        }[orientation]
        exif, content = Image.Exif(), io.BytesIO()
        exif[274] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(content, kind, exif=exif)
        read = decode(content.getvalue(), "a")
        read = read if read.ndim == 2 else read[..., 0]
        assert np.abs(read.astype(int) - upright).max() < 8

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_more_than_eight_bits_are_an_error_in_colour_as_in_grey(self, kind):
        with pytest.raises(ValueError, match="a: got 16 bits a channel, wanted 8"):
            decode(in_sixteen_bits(kind), "a")
        content = io.BytesIO()
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(
            content, "PNG" if kind == "PPM" else kind
        )
        with pytest.raises(ValueError, match="a: got an image of mode I"):
            decode(content.getvalue(), "a")

    @pytest.mark.parametrize(
        ("mode", "transparent"), [("RGB", (1, 2, 3)), ("L", 5), ("P", 0), ("RGBA", None)]
    )
    def test_transparency_is_an_error_in_whatever_way_it_is_stored(self, mode, transparent):
        image = Image.fromarray(random_images(1, (4, 4, 4))[0]).convert(mode)
        content = io.BytesIO()
        options = {} if transparent is None else {"transparency": transparent}
        image.save(content, "PNG", **options)
        with pytest.raises(ValueError, match=r"a: got (a transparent colour|an image of mode)"):
            decode(content.getvalue(), "a")

    @pytest.mark.parametrize(("kind", "first"), [("MPO", True), ("TIFF", True), ("TIFF", False)])
    def test_of_a_camera_s_file_the_image_is_read_and_not_its_preview(self, kind, first):
        image = np.full((16, 16, 3), 200, np.uint8)
        pages = [Image.fromarray(image), Image.fromarray(image[:4, :4] // 2)]
        content = io.BytesIO()
        if kind == "TIFF":
            pages[1].encoderinfo = {"tiffinfo": {254: 1}}
        options = {} if first else {"tiffinfo": {254: 1}}
        pages = pages if first else pages[::-1]
        if not first:
            pages[1].encoderinfo = {"tiffinfo": {254: 0}}
        pages[0].save(content, kind, save_all=True, append_images=pages[1:], **options)
        assert Image.open(content).n_frames == 2
        assert np.array_equal(decode(content.getvalue(), "a"), image)

    def test_an_animation_is_an_error(self, tmp_path):
        frames = [Image.fromarray(array) for array in random_images(2, (4, 4, 3))]
        for suffix in ("gif", "png", "webp"):
            path = tmp_path / suffix / f"a.{suffix}"
            path.parent.mkdir()
            frames[0].save(path, save_all=True, append_images=frames[1:])
            with pytest.raises(ValueError, match="got 2 pages, wanted one image per file"):
                load(path.parent)

    def test_one_image_alone_cannot_be_held_out(self, tmp_path):
        write_archive(tmp_path, random_images(1, (4, 4, 3)))
        with pytest.raises(
            ValueError, match="got one image, wanted two, as one is held out; n_test=0"
        ):
            load(tmp_path)
        assert len(load(tmp_path, n_test=0).train) == 1


def in_sixteen_bits(kind):
    """A 2 × 2 colour image with 16 bits a channel, which Pillow reads but does not write."""
    pixels = np.full((2, 2, 3), 40_000, ">u2").tobytes()
    if kind == "PPM":
        return b"P6 2 2 65535\n" + pixels
    if kind == "PNG":

        def chunk(kind, content):
            body = kind + content
            return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

        rows = b"".join(b"\0" + pixels[i : i + 12] for i in (0, 12))
        header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b"")
        )
    n, depths = 9, 8 + 2 + 9 * 12 + 4
    tags = [
        (256, 3, 1, 2 << 16),
        (257, 3, 1, 2 << 16),
        (258, 3, 3, depths),
        (259, 3, 1, 1 << 16),
        (262, 3, 1, 2 << 16),
        (273, 4, 1, depths + 6),
        (277, 3, 1, 3 << 16),
        (278, 3, 1, 2 << 16),
        (279, 4, 1, 24),
    ]
    directory = struct.pack(">H", n) + b"".join(struct.pack(">HHII", *tag) for tag in tags)
    return (
        b"MM\0*"
        + struct.pack(">I", 8)
        + directory
        + bytes(4)
        + struct.pack(">3H", 16, 16, 16)
        + pixels
    )


class TestLabels:
    def test_digits_and_fashion_have_theirs(self):
        for name in ("digits", "fashion"):
            data = load(name)
            for images, labels in (
                (data.train, data.train_labels),
                (data.test, data.test_labels),
            ):
                assert labels.dtype == torch.int64
                assert labels.shape == (len(images),)
                assert labels.unique().tolist() == list(range(10))
        assert load("photos", n_train=2, n_test=1).train_labels is None

    @pytest.mark.parametrize("name", ["digits", "fashion"])
    def test_labels_stay_with_their_images(self, name):
        """Whichever images a seed takes, each is one that has this label in the whole."""
        whole = load(name)
        images = torch.cat([whole.train, whole.test])
        labels = torch.cat([whole.train_labels, whole.test_labels]).tolist()
        known = {
            image.numpy().tobytes(): label for image, label in zip(images, labels, strict=True)
        }
        part = load(name, n_train=100, n_test=20, seed=3)
        found = [known[image.numpy().tobytes()] for image in part.train]
        assert found == part.train_labels.tolist()

    def labelled(self, path, labels):
        """An archive of images whose first pixel is their number, with this dataset.json."""
        images = np.zeros((6, 4, 4, 3), np.uint8)
        images[:, 0, 0, 0] = range(6)
        write_archive(path, images)
        (path / "dataset.json").write_text(json.dumps(labels))
        return path

    def test_they_come_from_dataset_json_in_the_images_order(self, tmp_path):
        names = [f"00000/img{i:08d}.png" for i in range(6)]
        pairs = [[name, 10 + i] for i, name in enumerate(names)][::-1]
        path = self.labelled(tmp_path / "a", {"labels": pairs})
        for seed in (0, 1):
            data = load(path, n_train=3, n_test=2, seed=seed)
            for images, labels in (
                (data.train, data.train_labels),
                (data.test, data.test_labels),
            ):
                assert torch.equal(labels, 10 + images[:, 0, 0, 0].long())
        path = self.labelled(tmp_path / "b", {"labels": dict(pairs)})
        assert load(path, n_test=0).train_labels.tolist() == list(range(10, 16))

    def test_without_any_there_are_none(self, tmp_path):
        for i, given in enumerate(({"labels": None}, {}, [1, 2], None)):
            data = load(self.labelled(tmp_path / str(i), given))
            assert data.train_labels is data.test_labels is None

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            ([["00000/img00000000.png", 1]], "has no label for 5 of 6 images, for instance 00000/"),
            ([], None),
            ([["x.png", 1]], "has no label for 6 of 6 images"),
            ([[f"00000/img{i:08d}.png", -1] for i in range(6)], "got the label -1 for 00000/img"),
            ([[f"00000/img{i:08d}.png", 0.5] for i in range(6)], "got the label 0.5"),
            ([[f"00000/img{i:08d}.png", "cat"] for i in range(6)], "got the label cat"),
            ([[f"00000/img{i:08d}.png", True] for i in range(6)], "got the label True"),
            ([[f"00000/img{i:08d}.png", None] for i in range(6)], "got the label None"),
            ([[f"00000/img{i:08d}.png", 2**63] for i in range(6)], "got the label 92233"),
            ([1, 2, 3], 'wanted "labels" to be pairs'),
            (3, 'wanted "labels" to be pairs'),
        ],
    )
    def test_labels_that_are_none_are_named(self, tmp_path, labels, says):
        path = self.labelled(tmp_path / "a", {"labels": labels})
        if says is None:
            assert load(path).train_labels is None
            return
        with pytest.raises(ValueError, match=r"dataset\.json") as caught:
            load(path)
        assert says in str(caught.value)

    def test_a_dataset_json_that_is_none_is_named(self, tmp_path):
        path = self.labelled(tmp_path / "a", {})
        (path / "dataset.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset\.json: cannot be read as JSON"):
            load(path)

    def test_vectors_number_no_classes(self, tmp_path):
        pairs = [[f"00000/img{i:08d}.png", [0.5, 1.0]] for i in range(6)]
        path = self.labelled(tmp_path / "a", {"labels": pairs})
        with pytest.warns(UserWarning, match="vectors, which number no classes"):
            assert load(path).train_labels is None

    @pytest.mark.parametrize("below", ["", "set/"])
    def test_folders_are_classes_in_the_order_of_their_names(self, tmp_path, below):
        for name, value in (("dog", 2), ("cat", 1), ("ant", 0)):
            images = np.full((5, 4, 4), value, np.uint8)
            write_archive(tmp_path / f"{below}{name}", images)
        data = load(tmp_path, seed=1)
        for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
            assert torch.equal(images[:, 0, 0, 0].long(), labels)

    def test_both_parts_number_their_classes_alike(self, tmp_path):
        for part, names in (("train", "abc"), ("test", "bc")):
            for name in names:
                write_archive(tmp_path / part / name, random_images(2, (4, 4)))
        data = load(tmp_path)
        assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert data.test_labels.tolist() == [1, 1, 2, 2]
        for part, names in (("train", "abc"), ("test", "c")):
            for name in names:
                write_archive(tmp_path / f"x-{part}" / name, random_images(2, (4, 4)))
        with pytest.warns(UserWarning, match="x-train: 2 of 2 test images lie in no folder of the"):
            data = load(tmp_path / "x-train")
        assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert data.test_labels is None

    def test_folders_that_number_images_are_no_classes(self, tmp_path):
        for name in ("00000", "00001"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "img.png").write_bytes(as_png(random_images(1, (4, 4))[0]))
        assert load(tmp_path).train_labels is None

    def test_images_beside_folders_make_them_no_classes(self, tmp_path):
        for name in ("a/0.png", "b/0.png", "0.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(as_png(random_images(1, (4, 4))[0]))
        with pytest.warns(UserWarning, match="1 of 3 images lie beside the folders of the others"):
            assert load(tmp_path).train_labels is None

    def test_those_of_a_twin_come_from_its_own_dataset_json(self, tmp_path):
        for part, n in (("train", 3), ("test", 2)):
            path = write_archive(tmp_path / f"c-{part}", random_images(n, (4, 4)))
            pairs = [[f"00000/img{i:08d}.png", i] for i in range(n)]
            (path / "dataset.json").write_text(json.dumps({"labels": pairs}))
        data = load(tmp_path / "c-train")
        assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2], [0, 1])


class TestArrays:
    @pytest.mark.parametrize(
        "shape", [(20, 8, 8, 3), (20, 3, 8, 8), (20, 8, 8), (20, 8, 8, 1), (20, 1, 8, 8)]
    )
    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_channels_come_first_last_or_not_at_all(self, tmp_path, suffix, shape):
        array = random_images(shape[0], shape[1:])
        path = tmp_path / f"a.{suffix}"
        (np.save if suffix == "npy" else np.savez)(path, array)
        data = load(path, n_test=0)
        expected = torch.from_numpy(array)
        expected = expected[:, None] if expected.ndim == 3 else expected
        expected = expected.movedim(-1, 1) if shape[-1] in (1, 3) else expected
        assert torch.equal(data.train, expected)
        assert len(load(path).test) == 2

    def test_samples_as_adm_writes_them_bring_their_labels(self, tmp_path):
        array, labels = random_images(40, (8, 8, 3)), np.arange(40)
        array[:, 0, 0, 0] = labels
        np.savez(tmp_path / "samples.npz", array, labels)
        data = load(tmp_path / "samples.npz", n_train=20)
        assert torch.equal(data.train[:, 0, 0, 0].long(), data.train_labels)
        assert torch.equal(data.test[:, 0, 0, 0].long(), data.test_labels)

    @pytest.mark.parametrize(
        "names",
        ["train_images train_labels test_images test_labels", "x_train y_train x_test y_test"],
    )
    def test_two_parts_in_one_file(self, tmp_path, names):
        arrays = (random_images(5, (8, 8)), np.arange(5, dtype=np.uint8)[:, None])
        arrays += (random_images(3, (8, 8)), np.arange(3, dtype=np.int32))
        np.savez(tmp_path / "m.npz", **dict(zip(names.split(), arrays, strict=True)))
        data = load(tmp_path / "m.npz")
        assert (len(data.train), data.test_labels.tolist()) == (5, [0, 1, 2])

    def test_an_array_of_any_name_is_read_if_it_is_alone(self, tmp_path):
        np.savez(tmp_path / "a.npz", pictures=random_images(5, (8, 8)))
        assert len(load(tmp_path / "a.npz", n_test=0).train) == 5

    def test_a_twin_is_the_test_set(self, tmp_path):
        for part, n in (("train", 5), ("test", 3)):
            np.save(tmp_path / f"a-{part}.npy", random_images(n, (8, 8)))
        assert len(load(tmp_path / "a-train.npy").test) == 3

    @pytest.mark.parametrize("shape", [(50, 8, 8, 3), (50, 3, 8, 8)])
    def test_a_npy_stays_on_disk_in_a_dataset_and_in_a_source(self, tmp_path, shape):
        """What is written to the file afterwards is seen: nothing holds a copy."""
        path = tmp_path / "big.npy"
        np.save(path, np.zeros(shape, np.uint8))
        data = load(path)
        source = Source(data.train)
        np.lib.format.open_memmap(path, "r+")[:] = 255
        assert (data.train == 255).all()
        assert (data.test == 255).all()
        assert (source[:3] == 1).all()
        assert (len(data.train), len(data.test)) == (45, 5)

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told there")
    def test_a_source_on_disk_takes_no_memory_until_it_is_read(self, tmp_path):
        path = tmp_path / "huge.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, (2**18, 3, 32, 32)).flush()  # sparse
        before = resident()
        source = Source(load(path).train)
        assert len(source[-8:]) == 8
        assert resident() - before < 2**26 < 2**29 < source.images.numel()

    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.zeros((2, 3, 8, 8), np.float32), "got float32, wanted uint8"),
            (np.zeros((2, 8), np.uint8), r"got shape \(2, 8\), wanted \(n, h, w\)"),
            (np.zeros((0, 8, 8), np.uint8), r"got shape \(0, 8, 8\)"),
            (np.zeros((2, 8, 8, 4), np.uint8), "with other channels"),
            (np.zeros((2, 3, 8, 3), np.uint8), "may be either of the last two"),
            (np.array([None, 1]), "cannot be"),
        ],
    )
    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_other_arrays_are_named(self, tmp_path, suffix, array, says):
        path = tmp_path / f"a.{suffix}"
        (np.save if suffix == "npy" else np.savez)(path, array)
        with pytest.raises(ValueError, match=rf"a\.{suffix}: .*{says}"):
            load(path)

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (np.arange(3), r"arr_1: got int64 of shape \(3,\), wanted .* each of 5"),
            (np.zeros(5), "arr_1: got float64"),
            (-np.arange(5), "arr_1: got -4, wanted classes from 0 on"),
            (random_images(5, (8, 8)), r"arr_1: got uint8 of shape \(5, 8, 8\)"),
        ],
    )
    def test_other_labels_are_named(self, tmp_path, labels, says):
        np.savez(tmp_path / "a.npz", random_images(5, (8, 8)), labels)
        with pytest.raises(ValueError, match=rf"a\.npz: {says}"):
            load(tmp_path / "a.npz")

    def test_several_arrays_of_unknown_names_are_listed(self, tmp_path):
        np.savez(tmp_path / "a.npz", cats=random_images(2, (8, 8)), dogs=random_images(2, (8, 8)))
        with pytest.raises(ValueError, match=r"a\.npz: got cats, dogs, wanted images in arr_0"):
            load(tmp_path / "a.npz")

    @pytest.mark.parametrize(("write", "suffix"), [(np.save, "npz"), (np.savez, "npy")])
    def test_a_file_under_the_other_suffix_is_read_as_what_it_is(self, tmp_path, write, suffix):
        with (tmp_path / f"a.{suffix}").open("wb") as file:
            write(file, random_images(5, (8, 8)))
        assert len(load(tmp_path / f"a.{suffix}", n_test=0).train) == 5

    def test_a_pickle_is_not_read(self, tmp_path):
        (tmp_path / "a.npy").write_bytes(b"\x80\x04]\x94.")
        with pytest.raises(ValueError, match=r"a\.npy: cannot be read \(it begins as neither"):
            load(tmp_path / "a.npy")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    @pytest.mark.parametrize("size", [0, 5, 100, 200])
    def test_a_file_that_is_cut_short_is_named(self, tmp_path, suffix, size):
        path = tmp_path / f"a.{suffix}"
        (np.save if suffix == "npy" else np.savez)(path, random_images(5, (8, 8)))
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=rf"a\.{suffix}: cannot be read"):
            load(path)


def resident():
    """Bytes of memory that this process holds."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="class")
def fashion_files():
    """Images by part, and the four files by name, in their layout: (images, {name: bytes})."""
    images = {"train": random_images(12_000, (28, 28)), "t10k": random_images(2_500, (28, 28))}
    contents = {}
    for part, array in images.items():
        labels = (np.arange(len(array)) % 10).astype(np.uint8)
        for name, values in (("images-idx3", array), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            contents[f"{part}-{name}-ubyte"] = head + values.tobytes()
    return images, contents


class TestFashion:
    def test_the_classes_take_turns(self):
        data = load("fashion")
        assert data.train_labels[:12].tolist() == [*range(10), 0, 1]
        assert data.test_labels.bincount().tolist() == [200] * 10

    @pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_more_come_from_the_original_files(
        self, fashion_files, tmp_path, monkeypatch, folder, packed
    ):
        """The files' layout, with images and hashes of this test's own."""
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (images, contents), hashes = fashion_files, {}
        for name, content in contents.items():
            hashes[name] = fashion.hashlib.sha256(content).hexdigest()
            path = tmp_path / folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, 0) if packed else content)
        monkeypatch.setattr(fashion, "FILES", hashes)
        data = load("fashion", tmp_path, n_train=12_000)
        assert torch.equal(data.train[:, 0], torch.from_numpy(images["train"]))
        assert torch.equal(data.test, load("fashion").test)
        data = load("fashion", tmp_path, n_test=2_500)
        assert torch.equal(data.train, load("fashion").train)
        assert data.test_labels.tolist() == [i % 10 for i in range(2_500)]
        path.write_bytes(gzip.compress(b"other") if packed else b"other")
        with pytest.raises(ValueError, match=r"t10k-labels.*got other bytes than Fashion-MNIST's"):
            load("fashion", tmp_path, n_train=12_000)
        path.write_bytes(path.read_bytes()[:10])
        with pytest.raises(ValueError, match="t10k-labels"):
            load("fashion", tmp_path, n_train=12_000)

    def test_what_ships_is_the_first_of_each_class_of_the_original_files(self, tmp_path):
        folder = fashion._folder(tmp_path)
        if folder is None:
            pytest.skip("the original files are not at hand")
        whole = fashion.originals(tmp_path)
        for shipped, original, n in zip(fashion.shipped(), whole, (1_000, 200), strict=True):
            for label in range(10):
                first = original.images[original.labels == label][:n]
                assert np.array_equal(shipped.images[shipped.labels == label], first)

    def test_without_them_and_torchvision_an_error_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fashion, "FOLDERS", (".",))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
        with pytest.raises(ImportError, match="or put the four original files of Fashion-MNIST"):
            load("fashion", tmp_path, n_train=20_000)


class TestDownloads:
    """What torchvision raises, with a torchvision of this test's own."""

    def of_torchvision(self, monkeypatch, raised):
        class CIFAR10:
            def __init__(self, root, train, download):
                if raised is not None:
                    raise raised
                self.data = random_images(6, (32, 32, 3))
                self.targets = list(range(6))

        module = types.SimpleNamespace(CIFAR10=CIFAR10)
        monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
        monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=module))

    def test_images_and_their_labels(self, tmp_path, monkeypatch):
        self.of_torchvision(monkeypatch, None)
        data = load("cifar10", tmp_path)
        assert torch.equal(data.train, as_tensor(random_images(6, (32, 32, 3))))
        assert data.test_labels.tolist() == list(range(6))

    @pytest.mark.parametrize(
        "raised",
        [
            RuntimeError("Dataset not found or corrupted."),
            EOFError("Compressed file ended before the end-of-stream marker was reached"),
            KeyError("data"),
        ],
    )
    def test_a_foreign_or_truncated_file_is_an_archive_that_cannot_be_read(
        self, tmp_path, monkeypatch, raised
    ):
        self.of_torchvision(monkeypatch, raised)
        with pytest.raises(ValueError, match="cannot be read") as caught:
            load("cifar10", tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: cannot be read ({raised})")

    def test_no_network(self, tmp_path, monkeypatch):
        self.of_torchvision(monkeypatch, URLError("Name or service not known"))
        with pytest.raises(OSError, match=r"cifar10: cannot be downloaded to .*Name or service"):
            load("cifar10", tmp_path)
