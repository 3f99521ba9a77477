#!/usr/bin/env bash
# RePaint's resampling in denoising-diffusion-pytorch happens at timestep 3, wherever the sampler is.
#
# Library: denoising-diffusion-pytorch 2.3.4, torch 2.13.0.
# Guess: repaint.GaussianDiffusion follows algorithm 1 of Lugmayr et al. (2022): at timestep t it adds
#   the noise of a few steps and goes down them again, at t. With an exact denoiser and enough rounds,
#   inpainting draws the hidden part given the known one.
# Seen: each round overwrites t by resample_jump, 3 by default. With 250 timesteps the noisy image of
#   timestep 200 is denoised 30 times as if it were of timestep 3, then goes on at 199. For a Gaussian
#   of two pixels with correlation 0.9, one of them known, draws have 0.72 times the deviation that
#   they should have. The same rounds at t give 0.92.
#   Rounds are made every 5 timesteps here. At the default of 50 they are few, and so is what they change.
# For users: a loop of one's own, before inpaintings are taken for draws from the posterior.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 einops==0.8.2 tqdm==4.70.1 pillow==12.3.0 scipy==1.17.1 packaging==26.3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    denoising-diffusion-pytorch==2.3.4
cat > "$folder/repainted.py" <<'PYTHON'
import sys
from importlib.metadata import version
from unittest.mock import MagicMock

import torch

for name in ("accelerate", "ema_pytorch", "torchvision", "pytorch_fid", "pytorch_fid.inception",
             "pytorch_fid.fid_score"):  # fmt: skip
    sys.modules[name] = MagicMock()  # its trainer alone needs them
from denoising_diffusion_pytorch.repaint import GaussianDiffusion  # noqa: E402

B, T, JUMP, TIMES, EVERY = 4000, 250, 3, 10, 5
S, RHO, KNOWN = 0.3, 0.9, 0.4
COVARIANCE = S**2 * torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)


class Exact(torch.nn.Module):
    """The Gaussian's posterior mean; it notes at which timesteps it is asked."""

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def forward(self, x, t, _=None):
        self.asked.append(t[0].item())
        a = self.alphas[t[0]].double()
        noisy = a * COVARIANCE + (1 - a) * torch.eye(2)
        gain = a.sqrt() * COVARIANCE @ torch.linalg.inv(noisy)
        return (x.double().flatten(1) @ gain.T).view_as(x).float()


class AtTheRightTime(GaussianDiffusion):
    """The same with as many rounds, at the sampler's own timestep."""

    @torch.inference_mode()
    def p_sample_loop(self, shape, gt, mask, resample_every):
        x = torch.randn(shape)
        for t in reversed(range(self.num_timesteps)):
            x = self.p_sample(x=x, t=t, gt=gt, mask=mask)[0]
            top = min(t + JUMP, self.num_timesteps)
            for _ in range(TIMES if t > 0 and (t % resample_every == 0 or t == 1) else 0):
                for s in range(t, top):
                    noise = torch.randn_like(x)
                    x = (1 - self.betas[s]).sqrt() * x + self.betas[s].sqrt() * noise
                for s in reversed(range(t, top)):
                    x = self.p_sample(x=x, t=s, gt=gt, mask=mask)[0]
        return self.unnormalize(x)


def inpainted(made):
    """Mean and deviation of the hidden pixel, and the timesteps asked."""
    torch.manual_seed(0)
    model = Exact()
    sampler = made(
        model, image_size=(1, 2), timesteps=T, objective="pred_x0", beta_schedule="cosine"
    )
    model.asked, model.alphas = [], sampler.alphas_cumprod
    known = torch.full((B, 1, 1, 2), (KNOWN + 1) / 2)
    mask = torch.tensor([1.0, 0.0]).expand(B, 1, 1, 2)
    found = sampler.p_sample_loop(known.shape, gt=known, mask=mask, resample_every=EVERY)
    hidden = 2 * found[..., 1] - 1
    return hidden.mean().item(), hidden.std().item(), model.asked


print("denoising-diffusion-pytorch", version("denoising-diffusion-pytorch"))
wanted = RHO * KNOWN, S * (1 - RHO**2) ** 0.5
print(f"exact: mean {wanted[0]:.3f}, deviation {wanted[1]:.3f}")
shares = {}
for name, made in (("its own", GaussianDiffusion), ("at the right time", AtTheRightTime)):
    mean, deviation, asked = inpainted(made)
    shares[name] = deviation / wanted[1]
    after = asked[asked.index(200) :][:33]
    print(f"{name}: mean {mean:.3f}, deviation {deviation:.3f}; timesteps from 200 on:", *after)
    assert abs(mean - wanted[0]) < 0.02
    assert after[:32] == [200, *([3] * 30 if made is GaussianDiffusion else [202, 201, 200] * 10),
                          199]  # fmt: skip
assert shares["its own"] < 0.77
assert shares["at the right time"] > 0.88
PYTHON
"$folder/venv/bin/python" "$folder/repainted.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
