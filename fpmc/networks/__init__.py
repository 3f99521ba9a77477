"""Denoising networks: DDPM++, NCSN++ and DiT with EDM's preconditioning, of means or of draws.

Training is in :mod:`fpmc.networks.train`, also as ``python -m fpmc.networks.train``.
"""

from fpmc.networks.architectures import ARCHITECTURES, build
from fpmc.networks.checkpoints import save
from fpmc.networks.dit import DiT
from fpmc.networks.drawing import Drawing
from fpmc.networks.loading import DRAWING, OFFICIAL, SHIPPED, card, label, load
from fpmc.networks.path import Path
from fpmc.networks.preconditioning import Preconditioned
from fpmc.networks.unet import UNet

__all__ = [
    "ARCHITECTURES",
    "DRAWING",
    "OFFICIAL",
    "SHIPPED",
    "DiT",
    "Drawing",
    "Path",
    "Preconditioned",
    "UNet",
    "build",
    "card",
    "label",
    "load",
    "save",
]
