"""Tuning runs: what they find, keep, refuse, and how they go on."""

import csv
import errno
import json
import lzma
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import fpmc
from fpmc.finetuning import FineTuned, files, finetune, load
from fpmc.finetuning.__main__ import main
from fpmc.finetuning.files import packed, read_level, write_level
from fpmc.finetuning.images import Tuned, see_some_left
from fpmc.finetuning.outcome import HeldOut
from fpmc.operators import Box, Dense, Identity, Ones
from tests.helpers import images, matrix, relative

SHAPE = (1, 4, 4)
PIXELS = SHAPE[1:]
SIGMA = 0.6
BINARY = matrix(16, PIXELS, 0).ceil() + torch.eye(16, dtype=torch.float64).view(16, *PIXELS)


def smooth(n, seed):
    """Images whose pixels have much in common, as those of natural images have."""
    values = images(n, SHAPE, seed) + images(n, (1, 1, 1), seed + 1000)
    return (values / 2).clamp(-1, 1)


SOURCE, HELD_OUT, TEST = fpmc.Source(smooth(80, 0)), smooth(40, 1), smooth(40, 2)


def collection(q=BINARY, r=BINARY):
    return fpmc.FPMC(Dense(q.clamp(max=1)), Dense(r.clamp(max=1)), SOURCE)


def target():
    """A network that is a collection, with known queries, which answers with the whole source: it
    is found by tuning on images that are not in the source, of which nothing is left out.
    """
    q = 0.2 + 2 * images(16, PIXELS, 9, torch.float64).abs()
    return fpmc.FPMC(Dense(q), Identity(PIXELS), SOURCE), q


def tune(denoiser, network, steps=30, images=None, **options) -> FineTuned:
    options = {"validation": HELD_OUT, "batch": 16, "progress": False, "steps": steps} | options
    return finetune(denoiser, network, images, SIGMA, **options)


def _wider(denoiser, z, sigma):
    return denoiser(z, 2 * sigma)


@pytest.mark.sweep
def test_a_network_that_is_a_collection_is_recovered():
    network, q = target()
    start = fpmc.FPMC(Dense(torch.ones_like(q)), Identity(PIXELS), SOURCE)
    found = tune(start, network, 200, smooth(400, 11), learn="q", every=50)
    given, tuned = (found.card["validation"][name][0] for name in ("given", "tuned"))
    assert tuned < given / 50
    got = found.denoiser.operators(SIGMA)[0].dense()
    assert relative(got, q) < 0.25 * relative(torch.ones_like(q), q)


@pytest.mark.sweep
def test_a_factor_that_sigma_absorbs_is_found():
    q = 4 * BINARY.clamp(max=1)
    given = fpmc.FPMC(Dense(q), Identity(PIXELS), SOURCE)
    wider = partial(_wider, given)
    found = tune(given, wider, 200, smooth(400, 11), learn="q", every=50)
    assert found.card["validation"]["tuned"][0] < found.card["validation"]["given"][0] / 50
    seen = found.denoiser.operators(SIGMA)[0].dense()[q > 0]
    assert seen.log().abs().max() < 0.15


@pytest.mark.sweep
@pytest.mark.parametrize("learn", ["qr", "q", "r"])
@pytest.mark.parametrize("rate", [0.05, 3.0])
def test_what_is_returned_is_never_worse(rate, learn):
    network, _ = target()
    found = tune(collection(), network, rate=rate, learn=learn, every=3, test=TEST)
    errors = [row["validation"] for row in found.history]
    given, tuned = (found.card["validation"][name][0] for name in ("given", "tuned"))
    assert tuned == pytest.approx(min([given, *errors]))
    assert tuned <= given
    assert found.card["test"]["images"] == 40
    assert [row["step"] for row in found.history] == list(range(0, 31, 3))
    if "q" not in learn:
        assert torch.equal(found.denoiser.operators(SIGMA)[0].dense(), BINARY.clamp(max=1))


def test_the_start_is_said_to_be_near():
    found = tune(collection(), target()[0], 0)
    assert found.card["start_to_given"] < 0.01 * found.card["validation"]["given"][0]
    assert len(found.history) == 1


def test_precision_is_that_of_the_given_collection(tmp_path):
    network, _ = target()
    exact = tune(collection(), network, 5)
    found = tune(collection().with_precision("float32"), network, 5, out=tmp_path)
    assert (found.denoiser.precision, exact.denoiser.precision) == ("float32", "exact")
    assert found.card["precision"] == "float32"
    tuned, wanted = (one.card["validation"]["tuned"][0] for one in (found, exact))
    assert tuned == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(ValueError, match="holds a run that differs in data"):
        tune(collection(), network, 5, out=tmp_path)


@pytest.mark.parametrize("every", [2, 5])
def test_nothing_is_validated_twice(every, monkeypatch):
    asked, answer = [], HeldOut.answer

    def counted(held, denoiser):
        asked.append(held)
        return answer(held, denoiser)

    monkeypatch.setattr(HeldOut, "answer", counted)
    found = tune(collection(), target()[0], 5, every=every)
    assert len(asked) == 1 + len(found.history)


def test_all_of_the_source_is_the_full_step_and_a_part_is_another():
    network, _ = target()
    full, whole, part = (tune(collection(), network, 5, subset=n) for n in (None, 80, 20))
    assert str(full.history) == str(whole.history) != str(part.history)


def test_own_images_are_left_out_wherever_the_source_has_them():
    pixels = (images(6, SHAPE, 3) * 127.5 + 127.5).round().to(torch.uint8)
    source = fpmc.Source(torch.cat([pixels, pixels[:2]]))
    tuned = Tuned(None, source)
    assert tuned.positions(torch.tensor([0, 3])).tolist() == [0, 3, 6]
    floats = fpmc.source.to_float(pixels[[4, 1]])
    others = Tuned(torch.cat([floats, smooth(1, 8)]), source)
    assert others.positions(torch.tensor([0, 1, 2])).tolist() == [1, 4, 7]


def test_an_infinite_loss_keeps_the_best():
    network, _ = target()
    with pytest.warns(UserWarning, match=r"at step \d+: .* is kept; try a lower rate"):
        found = tune(collection(), network, rate=1e5, every=1)
    assert "at step" in found.card["stopped"]
    assert found.card["validation"]["tuned"][0] <= found.card["validation"]["given"][0]


def test_a_network_that_answers_nonsense_ends_the_run():
    calls = []

    def network(z, sigma):
        calls.append(len(z))
        return z * (float("nan") if len(calls) > 4 else 0.5)

    with pytest.warns(UserWarning, match="the loss is not finite at step 4"):
        found = tune(collection(), network)
    assert found.card["stopped"] == "the loss is not finite at step 4"


def test_files_bring_the_collection_back(tmp_path):
    network, _ = target()
    found = tune(collection(), network, out=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tmp_path, SOURCE)
    z = HELD_OUT + SIGMA
    assert relative(loaded(z, 1.3 * SIGMA), found.denoiser(z, SIGMA)) != 0
    assert relative(loaded(z, SIGMA), found.denoiser(z, SIGMA)) < 0.05
    card = json.loads((tmp_path / "sigma-0.6.json").read_text())
    assert card["cut_cost"] <= 0.1 * card["validation"]["tuned"][1]
    with (tmp_path / "sigma-0.6.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation"]) for row in rows] == [r["validation"] for r in found.history]
    other = load(tmp_path, fpmc.Source(smooth(30, 7)))
    assert other(z, SIGMA).shape == z.shape
    with pytest.raises(ValueError, match=r"source: got images of shape \(1, 5, 5\)"):
        load(tmp_path, fpmc.Source(images(3, (1, 5, 5), 0)))


def test_more_steps_go_on_from_what_was_done(tmp_path):
    network, _ = target()
    options = {"every": 5, "rate": 2.0}
    first = tune(collection(), network, 15, out=tmp_path, **options)
    assert first.card["best_step"] != 15
    more = tune(collection(), network, 30, out=tmp_path, **options)
    assert str(more.history) == str(tune(collection(), network, 30, **options).history)
    with pytest.raises(ValueError, match="holds a run that differs in rate"):
        tune(collection(), network, 30, out=tmp_path, every=5)
    for content, reason in ((b"nothing", ".+"), (b"", "EOFError"), (bytes(5000), "it is broken.*")):
        (tmp_path / "sigma-0.6.state").write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"not a state to go on from \({reason}\). Nothing was"
        ):
            tune(collection(), network, 20, out=tmp_path)
    (tmp_path / "sigma-0.6.state").unlink()
    before = (tmp_path / "sigma-0.6.safetensors").read_bytes()
    for name in ("sigma-0.6.safetensors", "sigma-0.6.safetensors.xz"):
        (tmp_path / "sigma-0.6.safetensors").rename(tmp_path / name)
        with pytest.raises(ValueError, match=r"holds sigma-0\.6 tuned and no state to go on from"):
            tune(collection(), network, 20, out=tmp_path)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    "op",
    [Ones(PIXELS), Identity(SHAPE), Box(PIXELS, 2, "clip"), Dense(matrix(7, PIXELS, 4) * 1e4)],
)
def test_operators_are_kept(op, tmp_path):
    write_level(tmp_path / "a.safetensors", 0.25, op, op)
    sigma, (queries, responses) = read_level(tmp_path / "a.safetensors")
    assert sigma == 0.25
    for got in (queries, responses):
        assert type(got) is type(op)
        torch.testing.assert_close(got.dense(), op.dense(), rtol=5e-4, atol=0)


def test_compressed_operators_are_the_same_bits_and_have_the_same_digest(tmp_path):
    plain, small = tmp_path / "plain", tmp_path / "small"
    op = Dense(matrix(7, PIXELS, 4))
    for folder in (plain, small):
        folder.mkdir()
    for sigma in (0.25, 2.5):
        name = f"sigma-{sigma}.safetensors"
        write_level(plain / name, sigma, op, op)
        (small / f"{name}.xz").write_bytes(lzma.compress((plain / name).read_bytes()))
        for read in (read_level(plain / name), read_level(small / f"{name}.xz")):
            assert read[0] == sigma
            assert all(torch.equal(got.dense(), packed(op, 0).dense()) for got in read[1])
    assert files.digest(plain) == files.digest(small)
    z = torch.randn(2, *SOURCE.shape)
    assert torch.equal(load(plain, SOURCE)(z, 0.3), load(small, SOURCE)(z, 0.3))
    (small / "sigma-2.5.safetensors").write_bytes((plain / "sigma-2.5.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"small: got sigma-2\.5\.safetensors twice"):
        load(small, SOURCE)
    write_level(tmp_path / "a.safetensors.xz", 0.25, op, op)
    assert (tmp_path / "a.safetensors.xz").read_bytes().startswith(b"\xfd7zXZ")
    assert torch.equal(
        read_level(tmp_path / "a.safetensors.xz")[1][0].dense(), packed(op, 0).dense()
    )


@pytest.mark.parametrize("kind", [torch.uint8, torch.float64])
def test_the_default_type_changes_nothing(kind, tmp_path):
    """Sources that are read by compiled passes (uint8), and others."""
    pixels = (SOURCE.images * 127.5 + 127.5).round().to(torch.uint8)
    source = fpmc.Source(pixels if kind == torch.uint8 else SOURCE.images.double())
    given, (network, _) = fpmc.methods.pspc_square(source, 3), target()
    z, errors, answers = HELD_OUT[:2].clone(), [], []
    network = network.with_precision("float32")
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            found = tune(given, network, 3, out=tmp_path / str(default), subset=60)
            errors.append([row["validation"] for row in found.history])
            answers.append(load(tmp_path / str(default), source)(z, SIGMA))
        finally:
            torch.set_default_dtype(torch.float32)
    assert errors[0] == errors[1]
    assert torch.equal(*answers)


def test_a_cut_leaves_every_pixel_a_response():
    given = Dense(torch.tensor([[1.0, 0.004, 0.0], [0.5, 0.003, 0.01]]).view(2, 1, 3))
    cut = packed(given, 0.1).dense().view(2, 3)
    assert (cut[:, 1:] == 0).all()
    covering = packed(given, 0.1, covering=True).dense().view(2, 3)
    assert (covering.sum(0) > 0).all()


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "sigma-1.safetensors"
    ones = Ones(SOURCE.shape[1:])
    write_level(path, 1.0, ones, ones)
    whole = lzma.compress(path.read_bytes())
    path.write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"sigma-1\.safetensors: no tuned collection"):
        load(tmp_path, SOURCE)
    path.unlink()
    path = tmp_path / "sigma-1.safetensors.xz"
    for content in (whole[:-9], whole[:40] + b"\0" + whole[41:], b"", lzma.compress(b"[]")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"sigma-1\.safetensors\.xz: no tuned collection"):
            load(tmp_path, SOURCE)
    with pytest.raises(FileNotFoundError, match="no tuned noise levels there"):
        load(tmp_path / "none", SOURCE)


@pytest.mark.usefixtures("as_users_do")
def test_bad_input_is_named():
    network, _ = target()
    for options, says in (
        ({"validation": SOURCE.images[:3]}, "validation: got 3 images that are in images too"),
        ({"test": HELD_OUT[:2]}, "test: got 2 images that are in validation too"),
        ({"validation": HELD_OUT[:, :, 1:]}, r"validation: got shape \(40, 1, 3, 4\)"),
        ({"batch": 80}, "batch: got 80, wanted fewer: a step leaves its images and their copies"),
        ({"batch": 79, "subset": 1}, r"source, and none is left of its 80 images, of which 1 were"),
        ({"subset": 81}, "subset: got 81, wanted at most the source's 80"),
        ({"rate": 0}, "rate: got 0"),
        ({"learn": "x"}, "learn: got 'x'"),
        ({"weight_decay": -1}, "weight_decay: got -1, wanted a finite number from 0"),
        ({"out": "/proc/nowhere"}, "out: got '/proc/nowhere', wanted a folder"),
    ):
        with pytest.raises(ValueError, match=says):
            tune(collection(), network, **options)
    with pytest.raises(TypeError, match=r"denoiser: got Gaussian, wanted an fpmc\.FPMC"):
        tune(fpmc.methods.wiener(SOURCE), network)
    with pytest.raises(TypeError, match="network: got str, wanted a denoiser"):
        tune(collection(), "digits/ddpmpp")
    with pytest.raises(TypeError, match="collection: got int, wanted a name or a path"):
        load(3, SOURCE)
    with pytest.raises(ValueError, match=r"network: gave shape \(40, 1, 2, 4\)"):
        tune(collection(), lambda z, sigma: z[:, :, 1:3])
    photos = fpmc.networks.load("photos/ddpmpp")
    with pytest.raises(ValueError, match=r"network: got one for images of \(3, 16, 16\)"):
        tune(collection(), photos)


def test_a_batch_may_be_all_but_one_image_of_those_that_have_weight():
    source, most = SOURCE.without(range(4, 80)), torch.arange(3)
    for only in (None, torch.tensor([0, 3])):
        see_some_left(source, most, only, 3)
        with pytest.raises(ValueError, match="batch: got 4, wanted fewer"):
            see_some_left(source, torch.arange(4), only, 4)
    with pytest.raises(ValueError, match="of its 80 images, of which 3 were drawn"):
        see_some_left(source, most, torch.tensor([0, 4, 79]), 3)


def test_a_full_disk_is_a_line_and_leaves_no_part(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    words = (
        f"--data digits --method pspc_flex --level 10 --steps 1 --batch 2 --n 20 --out {tmp_path}"
    )
    with pytest.raises(SystemExit, match=r"^error: .*No space left on device"):
        main(words.split())
    assert not list(tmp_path.iterdir())


def test_the_command_line_tunes_levels_in_turn(tmp_path, capsys):
    words = f"--data digits --n 40 --levels 3 --level all --steps 2 --batch 8 --out {tmp_path}"
    main([*words.split(), "--method", "pspc_flex", "--learn", "q"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["level 0", "level 1", "level 2"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for bad, says in (
        ("--level 18 --method optimal", "--level: got '18', wanted a number from 0 to 17, or all"),
        ("--level 1 --method lukoianov --schedule x", "--schedule: got 'x'"),
        ("--level 1 --method optimal --network photos/ddpmpp", "photos/ddpmpp is for images"),
        ("--level 1 --method optimal --levels 0", "--levels: got 0, wanted between 2 and 10000"),
        ("--level 1 --method optimal --budget nan", "--budget: got nan, wanted a finite number"),
        ("--level 1 --method optimal --budget inf", "--budget: got inf, wanted a finite number"),
        ("--level 1 --method optimal --save-minutes -1", "save_minutes: got -1.0, wanted a number"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{says}"):
            main(["--data", "digits", *bad.split()])


KILLED = """
    import os, random, signal, sys
    import torch
    torch.set_num_threads(1)
    from tests.test_finetuning_runs import collection, target, tune
    network, out = target()[0], sys.argv[1]
    denoiser = collection()

    def attempt(folder, calls, how):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = [calls]
        def dying(z, sigma):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), how)
            return network(z, sigma)
        try:
            tune(denoiser, dying, 12, out=folder, every=4, save_minutes=0)
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(0)

    assert attempt(out + "/whole", 0, signal.SIGKILL) == 0
    rng, codes = random.Random(0), []
    while not codes or codes[-1] != 0:
        how = signal.SIGKILL if len(codes) % 2 else signal.SIGTERM
        codes.append(attempt(out + "/killed", rng.randint(2, 8), how))
        assert len(codes) < 40
    print(codes)
"""


def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert {-9, 143} <= set(codes)
    for name in ("sigma-0.6.safetensors", "sigma-0.6.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


SHIPPED = {"digits/ddpmpp/pspc_flex": (None, [4, 10, 13]), "photos/ddpmpp/pspc_flex": (32, [8])}
"""How many images, None for all, and at which noise levels of the sampler."""


@pytest.mark.parametrize("name", fpmc.finetuning.SHIPPED)
def test_what_is_shipped_is_nearer_to_its_network(name):
    n, levels = SHIPPED[name]
    data, network, _ = name.split("/")
    images = fpmc.data.load(data)
    source, answering = fpmc.Source(images.train), fpmc.networks.load(f"{data}/{network}")
    maps = fpmc.sensitivity.load(f"{data}/{network}")
    given, tuned = fpmc.methods.pspc_flex(source, maps, data), load(name, source)
    for sigma in fpmc.diffusion.edm_sigmas(18)[levels].tolist():
        z = fpmc.diffusion.add_noise(fpmc.source.to_float(images.test[:n]), sigma, 0)
        network_says = answering(z, sigma).detach()
        before = fpmc.metrics.mse(given(z, sigma), network_says)
        assert fpmc.metrics.mse(tuned(z, sigma), network_says) < 0.8 * before


def test_a_shipped_level_that_was_not_tuned_is_the_masks():
    images = fpmc.data.load("photos")
    source = fpmc.Source(images.train[:200])
    given = fpmc.methods.pspc_flex(source, fpmc.sensitivity.load("photos/ddpmpp"), "photos")
    tuned = load("photos/ddpmpp/pspc_flex", source)
    for sigma in fpmc.diffusion.edm_sigmas(18)[[0, 4, 14, 17]].tolist():
        z = fpmc.diffusion.add_noise(fpmc.source.to_float(images.test[:4]), sigma, 0)
        assert torch.allclose(tuned(z, sigma), given(z, sigma), atol=1e-5)
