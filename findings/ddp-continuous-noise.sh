#!/usr/bin/env bash
# Continuous-time samplers of denoising-diffusion-pytorch leave noise of 0.01 in samples, and more
# steps leave more.
#
# Library: denoising-diffusion-pytorch 2.3.4, torch 2.13.0.
# Guess: with an exact network, ContinuousTimeGaussianDiffusion and
#   VParamContinuousTimeGaussianDiffusion end on the network's last answer, as GaussianDiffusion does:
#   where all training images are one, samples are that image.
# Seen: time 0 of their schedules is noise of 0.010 (linear) or 0.0125 (cosine), and the last step
#   goes there, not to the image. With 500 steps, the default, samples keep noise of 0.0085 to 0.010,
#   more than a grey level of 255 over [-1, 1]; with 2,000 steps 0.010 to 0.012. No option changes
#   that. GaussianDiffusion's are exact.
# For users: ask the network once more at time 0, before samples are compared pixel by pixel or with
#   their nearest training image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 einops==0.8.2 tqdm==4.70.1 pillow==12.3.0 scipy==1.17.1 packaging==26.3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    denoising-diffusion-pytorch==2.3.4
cat > "$folder/leftover.py" <<'PYTHON'
import sys
from importlib.metadata import version
from unittest.mock import MagicMock

import torch

for name in ("accelerate", "ema_pytorch", "torchvision", "pytorch_fid", "pytorch_fid.inception",
             "pytorch_fid.fid_score"):  # fmt: skip
    sys.modules[name] = MagicMock()  # its trainer alone needs them
import denoising_diffusion_pytorch as ddp  # noqa: E402

IMAGE = 0.3


class Exact(torch.nn.Module):
    """What a network learns where every training image is 0.3: the noise, v, or the image."""

    channels = out_dim = 1
    self_condition = False

    def __init__(self, kind):
        super().__init__()
        self.kind, self.random_or_learned_sinusoidal_cond = kind, kind != "image"
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, log_snr, _=None):
        if self.kind == "image":
            return torch.full_like(x, IMAGE)
        alpha, sigma = (level.sigmoid().sqrt().view(-1, 1, 1, 1) for level in (log_snr, -log_snr))
        noise = (x - alpha * IMAGE) / sigma
        return noise if self.kind == "noise" else alpha * noise - sigma * IMAGE


def left(made, kind, **options):
    torch.manual_seed(0)
    samples = made(Exact(kind), image_size=32, **options).sample(4)
    return (2 * samples - 1 - IMAGE).square().mean().sqrt().item()


print("denoising-diffusion-pytorch", version("denoising-diffusion-pytorch"))
continuous = ddp.ContinuousTimeGaussianDiffusion
ways = {
    "noise, linear": (continuous, "noise", {"noise_schedule": "linear"}),
    "noise, cosine": (continuous, "noise", {"noise_schedule": "cosine"}),
    "v": (ddp.VParamContinuousTimeGaussianDiffusion, "v", {}),
}
for name, (made, kind, options) in ways.items():
    found = [left(made, kind, channels=1, num_sample_steps=n, **options) for n in (50, 500, 2000)]
    print(f"{name}: noise left after 50, 500, 2000 steps:", *(f"{value:.4f}" for value in found))
    assert 0.001 < found[0] < found[1] < found[2]
    assert 0.008 < found[1] < 0.011
    assert 0.009 < found[2] < 0.0125
discrete = left(ddp.GaussianDiffusion, "image", objective="pred_x0", timesteps=100)
print(f"GaussianDiffusion: {discrete:.7f}")
assert discrete < 1e-6
PYTHON
"$folder/venv/bin/python" "$folder/leftover.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
