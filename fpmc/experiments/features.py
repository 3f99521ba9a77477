"""A small classifier of a dataset's labels, in whose features sets of images are compared."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SIZE", "classifier"]

SIZE = 16
"""Features of an image: few, as covariances of a few hundred images are to be compared."""
HIDDEN = 128
STEPS = 300
DECAY = 1e-3


def classifier(
    images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], seed: int = 0
) -> tuple[
    Callable[[Float[Tensor, "m c h w"]], Float[Tensor, "m e"]],
    Callable[[Float[Tensor, "m c h w"]], Int64[Tensor, " m"]],
]:
    """Train a perceptron with one hidden layer before its features; seconds on a CPU.

    Args:
        images: What it learns, in [-1, 1].
        labels: Their classes, from 0.
        seed: Of its weights.

    Returns:
        Functions from images to their :data:`SIZE` features, and to their classes.
    """
    classes = int(labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(images[0].numel(), HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, SIZE), nn.Tanh(),
        )  # fmt: skip
        head = nn.Linear(SIZE, classes)
    network = nn.Sequential(body, head).to(images.device)
    adam = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=DECAY)
    with torch.enable_grad():
        for _ in range(STEPS):
            adam.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            adam.step()
    network.requires_grad_(False)
    return body, lambda x: network(x).argmax(1)
