#!/usr/bin/env bash
# Two multistep schedulers of diffusers stop one step before the image, and cannot be told not to.
#
# Library: diffusers 0.42.1, torch 2.13.0.
# Guess: with prediction_type="sample" and an exact denoiser, every scheduler that preserves
#   variance ends on the denoiser's last answer, as DDIM and DPMSolverMultistep do, whose final level
#   is 0 unless final_sigmas_type says otherwise.
# Seen: DEISMultistepScheduler and SASolverScheduler have no final_sigmas_type. Their last level is
#   the noise of the first training step, 0.01 with the default betas. So samples of a denoiser that
#   answers with points of +-0.9 keep noise of 0.01, more than a grey level of 255 over [-1, 1],
#   where those of DDIM, DPMSolverMultistep, DPMSolverSinglestep and UniPC are exact to 1e-4.
#   Six others refuse prediction_type="sample".
# For users: ask the denoiser once more at that level, or take another scheduler, before samples are
#   compared pixel by pixel or with their nearest training image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
cat > "$folder/leftover.py" <<'PYTHON'
from importlib.metadata import version

import diffusers
import torch

draws = torch.Generator().manual_seed(0)
POINTS = torch.where(torch.rand(5, 1, 4, 4, generator=draws) > 0.5, 0.9, -0.9).double()
NOISE = torch.randn(64, 1, 4, 4, generator=draws)


def denoise(z, sigma):
    """Posterior means over the points, from z = x + sigma * noise."""
    distance = (z[:, None] - POINTS).square().sum((2, 3, 4))
    return torch.einsum("bn,nchw->bchw", torch.softmax(-distance / (2 * sigma**2), 1), POINTS)


def left(name):
    """How far samples are from their nearest points, as a root mean square."""
    scheduler = getattr(diffusers, name)(prediction_type="sample")
    if "clip_sample" in scheduler.config:
        scheduler = getattr(diffusers, name)(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(50)
    z = NOISE
    for k, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "sigmas"):
            sigma = scheduler.sigmas[k].double()
            alpha = 1 / (1 + sigma**2).sqrt()
        else:
            alpha = scheduler.alphas_cumprod[t].double().sqrt()
            sigma = (1 - alpha**2).sqrt() / alpha
        told = denoise(z.double() / alpha, sigma).float()
        options = {"generator": draws} if name == "SASolverScheduler" else {}
        z = scheduler.step(told, t, z, **options).prev_sample
    return (z[:, None] - POINTS).square().mean((2, 3, 4)).amin(1).mean().sqrt().item()


print("diffusers", version("diffusers"), "torch", torch.__version__)
exact = ("DDIM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep")
noisy = ("DEISMultistep", "SASolver")
found = {name: left(f"{name}Scheduler") for name in (*exact, *noisy)}
for name, value in found.items():
    print(f"{name}Scheduler: samples are {value:.5f} from their nearest points")
    known = getattr(diffusers, f"{name}Scheduler")().config
    if name in noisy:
        assert "final_sigmas_type" not in known
assert all(found[name] < 1e-4 for name in exact)
assert all(0.008 < found[name] < 0.012 for name in noisy)

refused = []
for name in (
    "EDMDPMSolverMultistep", "EDMEuler", "EulerAncestralDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "PNDM",
):  # fmt: skip
    try:
        left(f"{name}Scheduler")
    except (ValueError, NotImplementedError, AttributeError) as error:
        refused.append(name)
        print(f"{name}Scheduler: {type(error).__name__}: {str(error)[:70]}")
assert len(refused) == 6
PYTHON
"$folder/venv/bin/python" "$folder/leftover.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
