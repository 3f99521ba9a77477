"""Files whose bytes or fields are changed at random: an answer, or one error that names the file.

python tests/fuzz_data.py --out results/fuzz/data.csv

Outside the tests. Every case follows from the seed and its number, so that
``--case 17`` repeats one, with its traceback. The table counts cases by what was changed and what
came of it: an answer, or the kind of the error. Anything else ends in status 1.
"""

import argparse
import contextlib
import csv
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

import fpmc
from fpmc import data, finetuning, networks, results, run, sensitivity
from fpmc.operators import Dense, Identity
from fpmc.storage import whole

SECONDS = 20
"""More than any case needs: one that takes longer hangs."""

MEMORY = 8 * 2**30
"""More address space than any case needs: sizes in a file are not to be believed."""

ERRORS = (ValueError, OSError, TypeError)
IMAGES = ("png", "jpg", "gif", "webp", "bmp", "tif", "ppm", "tga", "pcx", "jp2", "qoi", "avif")
JUNK = (None, True, -1, 2**70, 0.5, float("nan"), "cat", "", [], {}, [[]], [1, 2], "\ud800")


def pixels(dice: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(dice.getrandbits(32)).integers(0, 256, shape, np.uint8)


def broken(content: bytes, dice: random.Random) -> bytes:
    """The bytes cut short, with some changed, zeroed, doubled, swapped or put in."""
    content, n = bytearray(content), len(content)
    for _ in range(dice.choice((1, 1, 1, 3))):
        place, other = sorted((dice.randrange(n + 1), dice.randrange(n + 1)))
        change = dice.choice((0, 1, 1, 1, 1, 2, 3, 4, 5))
        if change == 0:
            del content[place:]
        elif change == 1:
            for _ in range(dice.choice((1, 1, 4, 64))):
                if content:
                    content[dice.randrange(len(content))] = dice.randrange(256)
        elif change == 2:
            content[place : place + 16] = bytes(len(content[place : place + 16]))
        elif change == 3:
            content[place:place] = content[place:other]
        elif change == 4:
            content = content[other:] + content[place:other] + content[:place]
        else:
            content[place:place] = dice.randbytes(dice.choice((1, 7, 300)))
    return bytes(content)


def image(dice: random.Random, folder: Path) -> Callable:
    suffix = dice.choice(IMAGES)
    shape = (9, 12) if dice.random() < 0.3 and suffix not in ("avif", "qoi") else (9, 12, 3)
    path = folder / "images" / f"a.{suffix}"
    path.parent.mkdir()
    Image.fromarray(pixels(dice, *shape)).save(path)
    path.write_bytes(broken(path.read_bytes(), dice))
    return path.parent, lambda: data.load(path.parent, n_test=0)


def archive(dice: random.Random, folder: Path) -> Callable:
    path = folder / "images.zip"
    method = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    slash = dice.choice("/\\")
    with zipfile.ZipFile(path, "w", method) as file:
        for part in ("train", "test"):
            for i in range(3):
                content = io.BytesIO()
                Image.fromarray(pixels(dice, 6, 6)).save(content, "PNG")
                file.writestr(f"{part}{slash}{i}.png", content.getvalue())
        file.writestr("dataset.json", json.dumps({"labels": None}))
    path.write_bytes(broken(path.read_bytes(), dice))
    return path, lambda: data.load(path)


def labels(dice: random.Random, folder: Path) -> Callable:
    path = folder / "images"
    (path / "00000").mkdir(parents=True)
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    for name in names:
        Image.fromarray(pixels(dice, 4, 4)).save(path / name)
    pairs = [[name, i] for i, name in enumerate(names)]
    change = dice.randrange(5)
    if change == 0:
        dice.choice(pairs)[dice.randrange(2)] = dice.choice(JUNK)
    elif change == 1:
        pairs[dice.randrange(4)] = dice.choice(JUNK)
    elif change == 2:
        pairs = [pair[::-1] if dice.random() < 0.5 else pair for pair in pairs]
    elif change == 3:
        pairs = dice.choice(JUNK)
    text = json.dumps({dice.choice(("labels", "labels", "names")): pairs}).encode()
    (path / "dataset.json").write_bytes(broken(text, dice) if change == 4 else text)
    return path, lambda: data.load(path)


def array(dice: random.Random, folder: Path) -> Callable:
    path = folder / "a.npy"
    kinds = (np.uint8,) * 12 + (np.float32, np.int64, np.bool_, "U3", "V5")
    shape = dice.choice(((5, 4, 4), (5, 4, 4, 3), (5, 3, 4, 4), (5,), (), (0, 4, 4), (2, 3, 4, 3)))
    np.save(path, np.zeros(shape, dice.choice(kinds)))
    if dice.random() < 0.7:
        path.write_bytes(broken(path.read_bytes(), dice))
    return path, lambda: data.load(path)


def arrays(dice: random.Random, folder: Path) -> Callable:
    path = folder / "a.npz"
    images, classes = pixels(dice, 6, 8, 8, 3), np.arange(6)
    fields = {"arr_0": images, "arr_1": classes}
    change = dice.randrange(5)
    if change == 0:
        fields = {"arr_0": classes, "arr_1": images}
    elif change == 1:
        fields["arr_1"] = dice.choice((classes[:3], classes - 1, classes / 2, images, np.array(3)))
    elif change == 2:
        fields = {dice.choice(("x", "images", "train_images", "x_train")): images, "y": classes}
    (np.savez if dice.random() < 0.5 else np.savez_compressed)(path, **fields)
    if change > 2:
        path.write_bytes(broken(path.read_bytes(), dice))
    return path, lambda: data.load(path)


def maps(dice: random.Random, folder: Path) -> Callable:
    path, values = folder / "maps.npz", np.ones((2, 16, 4, 4), np.float16) / 16
    fields = {"sigmas": np.array([2.0, 1.0]), "maps": values}
    change = dice.randrange(4)
    if change == 0:
        name = dice.choice(tuple(fields))
        fields[name] = dice.choice(
            (values[0], np.zeros(0), np.array("a"), -values, values * np.nan)
        )
    elif change == 1:
        fields = {"sigmas": values, "maps": fields["sigmas"]}
    np.savez(path, **fields)
    if change > 1:
        path.write_bytes(broken(path.read_bytes(), dice))
    return path, lambda: sensitivity.load(path)


def table(dice: random.Random, folder: Path) -> Callable:
    path = folder / "digits" / "denoising.csv"
    path.parent.mkdir()
    lines = (results.FOLDER / "digits" / "denoising.csv").read_text().splitlines()[:8]
    rows = [line.split(",") for line in lines]
    change = dice.randrange(4)
    for _ in range(3):
        row = dice.choice(rows)
        i, j = (dice.randrange(len(row)) for _ in "ab")
        if change == 0:
            row[i], row[j] = row[j], row[i]
        elif change == 1 and len(row) > 3:
            del row[i]
        elif change == 2:
            row[i] = dice.choice(("", "nan", "x", '"', "1e999", "-3"))
    content = "\n".join(map(",".join, rows)).encode()
    path.write_bytes(broken(content, dice) if change == 3 else content)
    return path, lambda: results.read("digits", "denoising", folder)


def network(dice: random.Random, folder: Path) -> Callable:
    path = folder / "network.safetensors"
    content = (networks.loading.FOLDER / "digits" / "ddpmpp.safetensors").read_bytes()
    head = int.from_bytes(content[:8], "little") + 8
    if dice.random() < 0.8:
        content = broken(content[:head], dice) + content[head:]
    else:
        content = broken(content, dice)
    path.write_bytes(content)
    return path, lambda: networks.load(path)


def chapter(dice: random.Random, folder: Path) -> Callable:
    path = folder / "chapter.md"
    text = (Path(run.__file__).parents[1] / "book" / "job.md").read_text(encoding="utf-8")
    start = text.index("```{code-cell}")
    end = text.index("```", start + 3)
    cell = broken(text[start:end].encode(), dice)
    path.write_bytes(text[:start].encode() + cell + text[end:].encode())
    return path, lambda: run.parameters_of(path)


def tuned(dice: random.Random, folder: Path) -> Callable:
    path, source = folder / "sigma-1.safetensors", fpmc.Source(pixels(dice, 5, 1, 4, 4))
    matrix = torch.rand(16, 4, 4, generator=torch.Generator().manual_seed(dice.getrandbits(32)))
    finetuning.files.write_level(path, 1.0, Dense(matrix), Identity((4, 4)))
    content = path.read_bytes()
    head = int.from_bytes(content[:8], "little") + 8
    change = dice.randrange(3)
    if change == 0:
        content = broken(content, dice)
    else:
        content = broken(content[:head], dice) + content[head:]
    path.write_bytes(content)
    z = torch.zeros(1, 1, 4, 4)
    return path, lambda: finetuning.load(folder, source)(z, 1.0)


KINDS = {
    "image": image,
    "archive": archive,
    "dataset.json": labels,
    "npy": array,
    "npz": arrays,
    "maps": maps,
    "table": table,
    "network": network,
    "chapter": chapter,
    "tuned": tuned,
}


def outcome(case: int, seed: int, show: bool = False) -> tuple[str, str, str]:
    """What was changed, what came of it, and the error if there was one."""
    dice = random.Random(f"{seed}/{case}")
    kind = list(KINDS)[case % len(KINDS)]
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        path, attempt = KINDS[kind](dice, Path(folder))
        signal.alarm(SECONDS)
        try:
            attempt()
            return kind, "answer", ""
        except Exception as error:
            if show:
                traceback.print_exc(file=sys.__stderr__)
            says = f"{type(error).__name__}: {error}"
            clear = isinstance(error, ERRORS) and str(path) in str(error)
            named = next((base.__name__ for base in ERRORS if isinstance(error, base)), "")
            return kind, named if clear else "unclear", says
        finally:
            signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone, with its traceback")
    parser.add_argument("--out", type=Path, help="the table to write")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("hangs")))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if given.case is not None:
        print(*outcome(given.case, given.seed, show=True), sep="\n")
        return
    counts, unclear = Counter(), 0
    for case in tqdm(range(given.cases)):
        kind, found, says = outcome(case, given.seed)
        counts[kind, found] += 1
        if found == "unclear":
            unclear += 1
            tqdm.write(f"case {case}, {kind}: {says[:300]}")
    code = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True)
    rows = [
        {
            "kind": kind,
            "outcome": found,
            "cases": n,
            "seed": given.seed,
            "version": fpmc.__version__,
            "code": code.stdout.strip(),
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        }
        for (kind, found), n in sorted(counts.items())
    ]
    for row in rows:
        print(*list(row.values())[:3], sep="\t")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with whole(given.out) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(unclear > 0)


if __name__ == "__main__":
    main()
