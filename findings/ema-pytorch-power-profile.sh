#!/usr/bin/env bash
# ema-pytorch's power-function averages (EDM2's post-hoc EMA) are far older than their width says.
#
# Library: ema-pytorch 0.8.3, torch 2.13.0.
# Guess: KarrasEMA(sigma_rel=...) and PostHocEMA weigh training step τ of t by τ^γ, as Karras et al.
#   (2024, section 3.1) define the profile of width σ_rel. For weights that grow as τ their average is
#   t (γ + 1) / (γ + 2), up to a step or so. update_every= saves time and leaves the profile.
# Seen: with update_every=1 it is so, and averages of other widths are put together to 0.1%. At the
#   default of 100 (and at 10, as the README's example has it) the factor of an average is still that
#   of a single step, and is applied once in so many steps. After 20,000 steps the average of
#   σ_rel = 0.05 stands at step 3,037 in place of 18,946, that of 0.28 at 231 in place of 10,781, and
#   PostHocEMA puts others together from these. No warning.
# For users: update_every=1, or a factor of one's own, ((t − k) / t)^(γ + 1) for an update every k steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    ema-pytorch==0.8.3 einops==0.8.2
cat > "$folder/averaged.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import torch
from ema_pytorch import KarrasEMA, PostHocEMA

STEPS, WIDTHS = 20_000, (0.05, 0.28)


def middle(width, steps):
    """Where the average of 1, ..., steps lies: γ solves σ_rel² (γ + 2)² (γ + 3) = γ + 1."""
    r = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    gamma = r[np.isreal(r)].real.max()
    return steps * (gamma + 1) / (gamma + 2)


class Ramp(torch.nn.Module):
    """One weight, whose value is the number of the training step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))


def trained(average, net, steps):
    for step in range(1, steps + 1):
        net.weight.data.fill_(step)
        average.update()
    return average


print("ema-pytorch", version("ema-pytorch"), "torch", torch.__version__)
for width in WIDTHS:
    wanted = middle(width, STEPS)
    for options in ({"update_every": 1}, {"update_every": 10}, {}):
        average = KarrasEMA(net := Ramp(), sigma_rel=width, **options)
        every, got = average.update_every, trained(average, net, STEPS).ema_model.weight.item()
        print(f"sigma_rel {width}, an update every {every}: step {got:.0f}, wanted {wanted:.0f}")
        if every == 1:
            assert abs(got / wanted - 1) < 1e-3
        else:
            assert got < (0.8 if every == 10 else 0.2) * wanted
for every in (1, 10):
    net = Ramp()
    average = PostHocEMA(
        net, sigma_rels=WIDTHS, update_every=every, checkpoint_every_num_steps=100,
        checkpoint_folder=f"{sys.argv[1]}/{every}",
    )  # fmt: skip
    trained(average, net, 4_000)
    other = average.synthesize_ema_model(sigma_rel=0.15)
    got, wanted = next(other.parameters()).item(), middle(0.15, 4_000)
    print(f"put together to 0.15, an update every {every}: step {got:.0f}, wanted {wanted:.0f}")
    assert (abs(got / wanted - 1) < 1e-3) if every == 1 else (got < 0.4 * wanted)
PYTHON
"$folder/venv/bin/python" "$folder/averaged.py" "$folder"
