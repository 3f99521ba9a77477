#!/usr/bin/env bash
# PointMaze's reset_target does the opposite of what is said of it, and environments leave files.
#
# Library: gymnasium-robotics 1.4.2, with gymnasium 1.4.0 and mujoco 4.0.0.
# Guess: as the class says, with continuing_task and reset_target=True a goal that is reached stays,
#   and with False a new one is drawn; close() removes what the environment wrote; and
#   position_noise_range, which the maze's base class takes, can be given.
# Seen: True draws a new goal, and False, the default, keeps it. Each environment writes an XML file
#   into the folder for temporary files, which stays after close(). position_noise_range is a
#   TypeError: it is handed on to the simulator, which knows no such argument. So a start and a goal
#   are always up to a quarter of a cell from the centre of the cell that was asked for.
# For users: take reset_target for its name, and remove env.unwrapped.tmp_xml_file_path after making.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    gymnasium-robotics==1.4.2 gymnasium==1.4.0 mujoco==4.0.0
cat > "$folder/run.py" <<'PYTHON'
import tempfile
from pathlib import Path

import gymnasium
import gymnasium_robotics
import numpy as np
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

gymnasium.register_envs(gymnasium_robotics)
print("gymnasium-robotics", gymnasium_robotics.__version__)
said = " ".join(PointMazeEnv.__doc__.split())
assert "If `False` a new goal will be generated when reached" in said, "changed: what is said"


def left():
    return set(Path(tempfile.gettempdir()).glob("ant_maze*.xml"))


def goal_moves(reset_target):
    """Whether the goal is another one after it was reached: start and goal are in one cell."""
    env = gymnasium.make(
        "PointMaze_UMaze-v3", continuing_task=True, reset_target=reset_target, max_episode_steps=99
    )
    cell = {"reset_cell": np.array([1, 1]), "goal_cell": np.array([1, 1])}
    for seed in range(99):
        first, info = env.reset(seed=seed, options=cell)
        if info["success"]:
            break
    for _ in range(2):
        state, *_ = env.step(np.zeros(2))
    env.close()
    return not np.array_equal(first["desired_goal"], state["desired_goal"])


before = left()
moves = {given: goal_moves(given) for given in (True, False)}
print("a goal that is reached moves, by reset_target:", moves)
assert moves == {True: True, False: False}, "changed"
found = left() - before
print("files left after close():", len(found))
assert len(found) == 2, "changed"
for path in found:
    path.unlink()
try:
    gymnasium.make("PointMaze_UMaze-v3", position_noise_range=0.0)
except TypeError as error:
    print("position_noise_range=0.0:", str(error).split(" was raised")[0])
else:
    raise AssertionError("changed: position_noise_range is taken")
for path in left() - before:
    path.unlink()
PYTHON
TMPDIR="$folder" "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null
