"""Paths of a robot in a maze: demonstrations in PointMaze of gymnasium-robotics.

    python -m fpmc.data.demonstrations

A point is pushed by forces from a start in the left corridor of :mod:`fpmc.maze` to a goal in the
right one, above the block or below it, which a fair coin decides. A controller goes from waypoint
to waypoint, each somewhere in the middle of the next cell: with p, v the place and the velocity,

    force = GAIN (waypoint - p) - DAMPING v, cut to [-1, 1] along each axis.

Its path until it is near the goal becomes 64 places, equally spaced in time, and each place two
pixel values. Starts, goals, coins and waypoints are drawn by the seed and the path's number, so a
path does not depend on how many are made. The physics are MuJoCo's: another version of it may give
other digits. (The waypoint controller of D4RL's data is not in a released package; this one is of
the same kind.)

Source: Fu et al. (2020), "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", Maze2D.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from tqdm import tqdm

from fpmc.data.parts import Part
from fpmc.maze import EXTENT, MAP, STEPS
from fpmc.storage import BROKEN, home, try_writing, whole

__all__ = ["FILE", "N_TEST", "N_TRAIN", "main", "make", "read", "resampled", "rounded", "route"]

FILE = "maze.npz"
"""The file below root."""
N_TRAIN, N_TEST = 2_000, 400
"""Paths to learn from, and held out."""
SEED = 0
STARTS, GOALS = ((2, 1), (3, 1), (4, 1)), ((2, 7), (3, 7), (4, 7))
"""Cells, (row, column), in which a path starts and ends."""
GAIN, DAMPING = 3.0, 0.5
JITTER = 0.2
"""Cells: how far along each axis a waypoint may be from the centre of its cell."""
REACHED, ARRIVED = 0.4, 0.1
"""Cells: how near is near enough, to a waypoint and to the goal."""
MOST = 2_000
"""Steps of the simulator, of 0.01 s each, after which a path counts as lost."""
ADVICE = "pip install 'fpmc[maze]'"


def route(start: tuple[int, int], goal: tuple[int, int], high: bool) -> list[tuple[int, int]]:
    """The cells from a start in the left corridor to a goal in the right one.

    Args:
        start: Row and column of a cell of the left corridor.
        goal: Those of a cell of the right one.
        high: Whether to go above the block.

    Returns:
        The cells after the start, the goal the last, each beside the one before.

    Raises:
        ValueError: If start or goal is no such cell.
    """
    last = len(MAP[0]) - 2
    for name, (row, column), wanted in (("start", start, 1), ("goal", goal, last)):
        if column != wanted or not 0 < row < len(MAP) - 1:
            raise ValueError(f"{name}: got {(row, column)}, wanted a row and column {wanted}")
    across, way = (1, -1) if high else (len(MAP) - 2, 1)
    away = [(row, 1) for row in range(start[0] + way, across + way, way)]
    along = [(across, column) for column in range(2, last + 1)]
    back = [(row, last) for row in range(across - way, goal[0] - way, -way)]
    return away + along + back


def resampled(places: Float[np.ndarray, "n 2"], steps: int = STEPS) -> Float[np.ndarray, "t 2"]:
    """The same path by places that are equally spaced in time, the first and the last among them.

    Args:
        places: Places at equal intervals of time, two or more, shape (n, 2).
        steps: t, how many there are to be, two or more.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(places) < 2 or steps < 2:
        raise ValueError(f"places: got {len(places)} for {steps} steps, wanted two or more of both")
    now, wanted = np.arange(len(places)), np.linspace(0, len(places) - 1, steps)
    return np.stack([np.interp(wanted, now, axis) for axis in places.T], axis=1)


def rounded(places: Float[np.ndarray, "t 2"]) -> UInt8[np.ndarray, "2 1 t"]:
    """A path in cells as an image of pixel values, each to 1/63 of a cell.

    Raises:
        ValueError: If a place is more than :data:`fpmc.maze.EXTENT` from the centre on an axis.
    """
    if not (np.abs(places) <= EXTENT).all():
        raise ValueError(f"places: got some beyond {EXTENT:g} cells from the centre, or NaN")
    return np.round((places.T[:, None] / EXTENT + 1) * 127.5).astype(np.uint8)


class _Robot:
    """PointMaze with the map of :mod:`fpmc.maze`.

    Raises:
        ImportError: If gymnasium-robotics is not there; says what to install.
    """

    def __init__(self) -> None:
        try:
            point = import_module("gymnasium_robotics.envs.maze.point_maze")
        except ImportError as error:
            raise ImportError(
                f"maze: no gymnasium-robotics ({error}). Install it: {ADVICE}"
            ) from error
        rows = [list(row) for row in MAP]
        self.env = point.PointMazeEnv(maze_map=rows, continuing_task=True, reset_target=False)
        Path(self.env.tmp_xml_file_path).unlink(missing_ok=True)  # which it leaves behind

    def path(self, seed: int, number: int) -> tuple[Float[np.ndarray, "n 2"], bool]:
        """A demonstration's places, and whether it goes above the block.

        Raises:
            RuntimeError: If the goal is not reached.
        """
        rng = np.random.default_rng([seed, number])
        start, goal = (cells[rng.integers(len(cells))] for cells in (STARTS, GOALS))
        high = bool(rng.integers(2))
        cell = {"reset_cell": np.array(start), "goal_cell": np.array(goal)}
        state, _ = self.env.reset(seed=int(rng.integers(2**31)), options=cell)
        centres = [self.env.maze.cell_rowcol_to_xy(at) for at in route(start, goal, high)[:-1]]
        targets = [centre + rng.uniform(-JITTER, JITTER, 2) for centre in centres]
        targets.append(state["desired_goal"])
        places = [state["achieved_goal"]]
        for _ in range(MOST):
            near = ARRIVED if len(targets) == 1 else REACHED
            if np.linalg.norm(places[-1] - targets[0]) < near:
                targets.pop(0)
            if not targets:
                return np.array(places), high
            force = GAIN * (targets[0] - places[-1]) - DAMPING * state["observation"][2:]
            state = self.env.step(np.clip(force, -1, 1))[0]
            places.append(state["achieved_goal"])
        raise RuntimeError(f"maze: path {number} of seed {seed} did not reach its goal")


def make(
    n: int, seed: int = SEED, *, first: int = 0, progress: bool = False
) -> tuple[UInt8[np.ndarray, "n 2 1 t"], Int64[np.ndarray, " n"]]:
    """Demonstrations, and the way of each: 0 above the block, 1 below.

    Args:
        n: How many.
        seed: Their seed.
        first: The number of the first.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: If gymnasium-robotics is not there; says what to install.
        RuntimeError: If a path does not reach its goal, which another version may bring about.
    """
    robot, numbers = _Robot(), range(first, first + n)
    made = [robot.path(seed, i) for i in tqdm(numbers, desc="maze", disable=not progress)]
    images = [rounded(resampled(places)) for places, _ in made]
    return np.stack(images), np.array([0 if high else 1 for _, high in made], np.int64)


def read(root: Path) -> tuple[Part, Part]:
    """The demonstrations to learn from and those held out, of a file that this module made.

    Raises:
        FileNotFoundError: If it is not there; says how to make it.
        ValueError: If it cannot be read, or holds something else.
    """
    path = root / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"maze: no {path}. Make it: {ADVICE}, then python -m fpmc.data.demonstrations, with "
            "--root (or FPMC_DATA) if it is to lie elsewhere"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = tuple(Part(file[part], file[f"{part}_ways"]) for part in ("train", "test"))
    except (*BROKEN, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a file of demonstrations ({error})") from error
    for part in parts:
        images, ways = part.images, part.labels
        if images.dtype != np.uint8 or images.shape[1:] != (2, 1, STEPS):
            got = f"{images.dtype} of shape {images.shape}"
            raise ValueError(f"{path}: got {got}, wanted uint8 (n, 2, 1, {STEPS})")
        if ways.dtype != np.int64 or ways.shape != images.shape[:1]:
            raise ValueError(f"{path}: got ways of shape {ways.shape} for {len(images)} paths")
    return parts


def write(root: Path, progress: bool = True) -> Path:
    """Make the file that :func:`read` reads. Returns its path; errors are those of :func:`make`."""
    root.mkdir(parents=True, exist_ok=True)
    try_writing(root, "root")
    train, test = (
        make(n, first=first, progress=progress) for n, first in ((N_TRAIN, 0), (N_TEST, N_TRAIN))
    )
    arrays: dict[str, Any] = dict(
        zip(("train", "train_ways", "test", "test_ways"), (*train, *test), strict=True)
    )
    with whole(root / FILE) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return root / FILE


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m fpmc.data.demonstrations --help``."""
    parser = argparse.ArgumentParser(prog="python -m fpmc.data.demonstrations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", help="where to (default: FPMC_DATA, or ~/.cache/fpmc)")
    root: str | os.PathLike | None = parser.parse_args(arguments).root
    try:
        print(write(home(root)))
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
