"""Beside published networks: whose noise it is, whose source, and what is measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fpmc
from fpmc import data, diffusion, ledger, methods, metrics, results
from fpmc.experiments import generated, published
from fpmc.experiments.clock import Clock
from fpmc.experiments.job import Job
from fpmc.limits import OutOfTimeError
from fpmc.source import to_float

SEEDS = [3, 5, 8, 13, 21, 34]
LABELS = [0, 1, 0, 7, 1, 0]
SHAPE = (1, 8, 8)
NAME = "theirs"


@pytest.fixture
def file(tmp_path):
    """Held-out digits in the place of what somebody generated."""
    path = tmp_path / f"{NAME}.npz"
    images = data.load("digits").test[: len(SEEDS)].numpy()
    np.savez(path, images=images, labels=LABELS, seeds=SEEDS)
    return path


@pytest.fixture
def job(file, tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "levels", [80.0, 2.0, 0.3])
    return Job(
        data="digits",
        label="digits",
        out=tmp_path / "digits",
        runs=tmp_path / "runs",
        published=file,
        method=("optimal", "wiener", "pspc_square"),
    )


def as_folder(folder, images, names):
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / name)
    return folder


def test_classes_of_images_are_none_of_data_without_classes(job, monkeypatch):
    bare = replace(job.dataset, train_labels=None, test_labels=None)
    monkeypatch.setattr(Job, "dataset", bare)
    with pytest.raises(ValueError, match="by: got 'class', but digits has no classes, wanted 'all"):
        published.run(replace(job, by=("class",)), Clock())
    published.run(replace(job, method=("optimal",)), Clock())
    (row,) = results.read("digits", "published", job.out.parent)
    assert row["by"] == "all"


def test_a_method_that_is_asked_about_fewer_answers_the_first_of_them(job, tmp_path):
    few = replace(job, fewer={"pspc_square": 4}, picture=tmp_path / "few.png")
    published.run(few, Clock())
    each = results.published("digits", job.out.parent)
    rows = results.read("digits", "published", job.out.parent)
    assert {row["method"]: row["n"] for row in rows if row["method"] != "pspc_square"} == {
        "optimal": 6, "wiener": 6,
    }  # fmt: skip
    row = next(row for row in rows if row["method"] == "pspc_square")
    measured = each[NAME, "class", results.contestant("pspc_square", row["schedule"])]
    assert row["mse"].n == len(measured["mse"]) == 4
    assert (tmp_path / "few.png").is_file()
    whole = replace(job, out=tmp_path / "whole")
    published.run(whole, Clock())
    for who, measures in each.items():
        other = results.published("whole", tmp_path)[who]
        for name, values in measures.items():
            assert torch.allclose(values, other[name][: len(values)], equal_nan=True)


def test_files_called_by_seeds_start_from_their_noise(tmp_path, file):
    images = np.load(file)["images"]
    seeds = [7, 11, 1002]
    names = ["000000/000007.png", "000000/000011.png", "001000/001002.png"]
    found = generated.read(as_folder(tmp_path / "made", images[:3], names), 10)
    assert found.name == "made"
    assert torch.equal(found.images, torch.from_numpy(images[:3]))
    assert torch.equal(found.noise, diffusion.edm_noise(seeds, SHAPE))
    assert found.labels is None
    assert torch.equal(found.classes, diffusion.edm_labels(seeds, SHAPE, 10))
    labels = {"labels": [[name, 4] for name in names]}
    (tmp_path / "made" / "dataset.json").write_text(json.dumps(labels))
    assert generated.read(tmp_path / "made", 10).classes.tolist() == [4, 4, 4]


def test_one_seed_drew_all_images_at_once(tmp_path, file):
    images, grid = np.load(file)["images"], tmp_path / "grid.npz"
    np.savez(grid, images=images, seeds=[4], threads=256, chosen=[1, 5])
    noise = diffusion.edm_noise([4], (6, 8, 8), threads=256).view(6, *SHAPE)
    drawn = diffusion.edm_labels([4], (6, 8, 8), 10, each=6, threads=256)
    found = generated.read(grid, 10)
    assert torch.equal(found.noise, noise[[1, 5]])
    assert torch.equal(found.classes, drawn[[1, 5]])
    assert torch.equal(found.images, torch.from_numpy(images[[1, 5]]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "got no seeds, wanted one for each image"),
        ({"seeds": [1, 2]}, "got 2 seeds for 6 images, wanted 6, or 1"),
        ({"seeds": SEEDS, "chosen": [6]}, "chosen: got 6, wanted between 0 and 5"),
        ({"seeds": [-1] * 6}, "seeds: got -1"),
    ],
)
def test_a_file_that_says_too_little(tmp_path, file, given, says):
    np.savez(tmp_path / "wrong.npz", images=np.load(file)["images"], **given)
    with pytest.raises(ValueError, match=says):
        generated.read(tmp_path / "wrong.npz")


def test_a_file_that_is_not_called_by_a_seed(tmp_path, file):
    folder = as_folder(tmp_path / "made", np.load(file)["images"][:2], ["000001.png", "cat.png"])
    with pytest.raises(ValueError, match=r"got cat.png, wanted names that are seeds"):
        generated.read(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        generated.read(tmp_path / "nothing")


def test_every_sample_comes_from_the_class_of_its_image(job, tmp_path):
    published.run(job, Clock())
    dataset, start = data.load("digits"), 80 * diffusion.edm_noise(SEEDS, SHAPE)
    source = fpmc.Source(dataset.train, labels=dataset.train_labels)
    target = to_float(dataset.test[: len(SEEDS)])
    each = results.published("digits", tmp_path)
    for name in ("optimal", "wiener"):
        measured = each[NAME, "class", name]
        for i, label in enumerate(LABELS):
            denoiser = getattr(methods, name)(source.of_class(label))
            drawn = diffusion.sample(denoiser, start[i : i + 1], job.levels)
            for measure in (metrics.mse, metrics.r2):
                expected = measure(drawn, target[i : i + 1])
                assert measured[measure.__name__][i] == pytest.approx(expected, abs=1e-5)
        assert (measured["nearest"] < 1e-3).all() == (name == "optimal")
    rows = results.read("digits", "published", tmp_path)
    assert [(row["method"], row["schedule"], row["by"]) for row in rows] == [
        ("optimal", "", "class"),
        ("wiener", "", "class"),
        ("pspc_square", "cifar10", "class"),
    ]
    for row in rows:
        values = each[NAME, "class", results.contestant(row["method"], row["schedule"])]
        assert row["n"] == len(SEEDS)
        assert row["n_other"] == 5
        assert row["r2"] == pytest.approx(values["r2"].mean().item(), rel=1e-4)
        assert row["r2_other"] == pytest.approx(values["r2_other"].nanmean().item(), rel=1e-4)


def test_classes_of_one_size_have_filters_of_their_own(job):
    first, second = (fpmc.Source(job.dataset.train[i : i + 50]) for i in (0, 50))
    assert job.gaussian(first) is job.gaussian(first)
    assert not torch.equal(job.gaussian(first).mean, job.gaussian(second).mean)


def test_the_other_image_is_the_next_of_the_class_whatever_the_source(job, tmp_path):
    published.run(replace(job, method=("wiener",), by=("class", "all")), Clock())
    target = to_float(data.load("digits").test[: len(SEEDS)])
    source = fpmc.Source(data.load("digits").train)
    start = 80 * diffusion.edm_noise(SEEDS, SHAPE)
    drawn = diffusion.sample(methods.wiener(source), start, job.levels)
    each = results.published("digits", tmp_path)
    for i, other in enumerate([2, 4, 5, None, 1, 0]):
        found = each[NAME, "all", "wiener"]["mse_other"][i]
        if other is None:
            assert found.isnan()
        else:
            expected = metrics.mse(drawn[i : i + 1], target[other : other + 1])
            assert found == pytest.approx(expected, abs=1e-5)
    by_class = each[NAME, "class", "wiener"]
    assert by_class["mse_other"].isnan().tolist() == [i == 3 for i in range(len(SEEDS))]
    smallest = min((data.load("digits").train_labels == label).sum() for label in LABELS)
    rows = results.read("digits", "published", tmp_path)
    assert [row["n_source"] for row in rows] == [smallest, 1500]


def test_a_run_that_was_stopped_goes_on(job, tmp_path):
    clock = Clock(0)
    with pytest.raises(OutOfTimeError):
        published.run(job, clock)
    with np.load(job.out / "published.npz") as file:
        assert np.isfinite(file[f"{NAME}/class/optimal"][:, 0]).sum() == LABELS.count(0)
    published.run(job, Clock())
    whole = results.published("digits", tmp_path)
    other = replace(job, out=tmp_path / "again" / "digits")
    published.run(other, Clock())
    again = results.published("digits", tmp_path / "again")
    assert whole.keys() == again.keys()
    for name, values in whole.items():
        for measure in values:
            assert torch.equal(values[measure].isnan(), again[name][measure].isnan())
            assert torch.allclose(values[measure], again[name][measure], equal_nan=True)
    kept = (job.out / "published.csv").read_bytes()
    published.run(job, Clock())
    assert kept == (job.out / "published.csv").read_bytes()


def test_other_images_under_the_same_name_are_an_error(job, file):
    published.run(replace(job, method=("optimal",)), Clock())
    held = dict(np.load(file))
    np.savez(file, **held | {"images": held["images"][::-1]})
    with pytest.raises(ValueError, match="with network_hash = "):
        published.run(replace(job, method=("optimal",)), Clock())
    with pytest.raises(ValueError, match="holds samples by "):
        published.run(replace(job, method=("wiener",)), Clock())


def test_the_picture_shows_each_method(job, tmp_path):
    published.run(replace(job, picture=tmp_path / "new" / "picture.png"), Clock())
    with Image.open(tmp_path / "new" / "picture.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"published": None}, "published: got none, wanted a folder or .npz"),
        ({"data": "photos", "label": "photos"}, r"got images of shape \(1, 8, 8\), wanted"),
    ],
)
def test_what_cannot_be_compared(job, change, says):
    with pytest.raises(ValueError, match=says):
        published.run(replace(job, **change), Clock())


def test_the_ledger_compares_sample_by_sample(job, tmp_path):
    published.run(job, Clock())
    claim = ledger.Claim(
        id="mine", paper="niedoba2026", where="", verdict="holds", says="",
        tests=({
            "table": "published", "data": ["digits"], "rule": "less",
            "first": {"method": "pspc_square", "schedule": "cifar10"},
            "second": {"method": "wiener", "schedule": ""},
        },),
    )  # fmt: skip
    (point,) = ledger.points(claim, root=tmp_path)
    each = results.published("digits", tmp_path)
    a, b = (each[NAME, "class", name]["mse"] for name in ("pspc_square, cifar10", "wiener"))
    assert point.number == pytest.approx((a.mean() / b.mean()).item())
    assert (point.at["reference"], point.at["by"]) == (NAME, "class")
