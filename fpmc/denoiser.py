"""What every denoiser is to those who call it: D(z, σ) as samplers of any package ask for it.

A sampler gives σ as a number, as a tensor of any type without dimensions, or as one for each image,
and may pass class labels as a third argument. It may read the range of noise levels, round a level
to one that the denoiser knows, and move the denoiser to a device.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import EXTREME, as_device, as_images, as_noise_levels, kind
from fpmc.forks import refuse_to_hang
from fpmc.modes import opaque, refuse_transforms

__all__ = ["DropIn", "grouped", "question", "question_of_one_level"]


@opaque(
    "the checks of an fpmc denoiser read values; without fullgraph=True they are made as they are, "
    "and of a network network.denoise(z, sigmas) is one graph"
)
def question(
    z: Any, sigma: Any, class_labels: Any, shape: tuple[int, int, int]
) -> tuple[Float[Tensor, "b c h w"], list[float]]:
    """The arguments of a call, checked: noisy images, and a noise level for each.

    Args:
        z: Noisy images, shape (b, c, h, w); b may be 0.
        sigma: One level σ > 0 for all, or a tensor or array of them with shape (b,) or
            (b, 1, 1, 1).
        class_labels: None: nothing here is conditioned on classes.
        shape: The (c, h, w) that is wanted.

    Raises:
        TypeError: If z is not a floating-point tensor, or sigma no number.
        ValueError: If z has another shape or holds NaN, a noise level is not positive, there are
            not as many as images, or there are class labels.
        RuntimeError: In a forked process that would wait for ever: see :mod:`fpmc.forks`.
    """
    if class_labels is not None:
        raise ValueError(
            f"class_labels: got {kind(class_labels)}, wanted None, as this denoiser knows no "
            "classes; one of a class alone is made of source.of_class(label)"
        )
    refuse_to_hang()
    z = as_images(z, "z", shape, empty=True)
    return z, as_noise_levels(sigma, len(z))


def question_of_one_level(
    z: Any, sigma: Any, shape: tuple[int, int, int]
) -> tuple[Float[Tensor, "b c h w"], float]:
    """The same, where there is one noise level for all images, and at least one image.

    Raises:
        TypeError: As above, and if z is a tensor inside a transform of ``torch.func``.
        ValueError: As above, and if there are no images or several noise levels.
        RuntimeError: As above.
    """
    refuse_transforms(z, "z")
    z, sigmas = question(as_images(z, "z", shape), sigma, None, shape)
    sigma, *others = set(sigmas)
    if others:
        raise ValueError(f"sigma: got {len(others) + 1} noise levels, wanted one for all")
    return z, sigma


def grouped(
    denoise: Callable[[Tensor, float], Tensor], z: Float[Tensor, "b c h w"], sigmas: list[float]
) -> Float[Tensor, "b c h w"]:
    """Answers to images with a noise level each, by one call for each level that there is.

    Args:
        denoise: D(z, σ), for one σ.
        z: Noisy images, shape (b, c, h, w). Without any, nothing is called.
        sigmas: b noise levels.

    Returns:
        The answers, in the images' order; differentiable where ``denoise`` is.
    """
    levels = list(dict.fromkeys(sigmas))
    if not levels:
        return z.clone()
    if len(levels) == 1:
        return denoise(z, levels[0])
    places = {level: [i for i, sigma in enumerate(sigmas) if sigma == level] for level in levels}
    answers = torch.cat([denoise(z[index], level) for level, index in places.items()])
    order = torch.tensor([i for index in places.values() for i in index])
    return answers[order.argsort().to(answers.device)]


class DropIn:
    """A denoiser whose answers are computed for one noise level at a time, by ``_answer``.

    Attributes:
        sigma_min: The lowest noise level that is answered.
        sigma_max: The highest.
    """

    sigma_min = 1 / EXTREME
    sigma_max = EXTREME

    _transformed = False
    """Whether torch.func's transforms may pass through."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (c, h, w)."""
        raise NotImplementedError

    def _answer(self, z: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
        raise NotImplementedError

    @opaque(
        "fpmc's analytical denoisers are opaque to torch.compile, as their sums are compiled "
        "already; without fullgraph=True they are called as they are"
    )
    def __call__(
        self, z: Float[Tensor, "b c h w"], sigma: Any, class_labels: None = None
    ) -> Float[Tensor, "b c h w"]:
        """The denoised images x̂ = D(z, σ).

        Args:
            z: Noisy images, floating-point, shape (b, c, h, w). With another forward process,
                z = α x + σ ε, pass z / α and σ / α. Without any, the answer is empty.
            sigma: The noise level σ > 0: a number, a tensor or array with one element, or one with
                shape (b,) or (b, 1, 1, 1) that holds a level for each image. Images of equal levels
                are answered together.
            class_labels: None. Samplers of class-conditional networks pass it.

        Returns:
            x̂ with z's shape, type and device. What it is differentiable in, the class says.

        Raises:
            TypeError: If z is not a floating-point tensor, or sigma not a number.
            ValueError: If z's shape is another or it holds NaN, sigma is not positive, or there are
                class labels; and what the class says.
            RuntimeError: In a forked process that would wait for ever: see :mod:`fpmc.forks`.
        """
        if not self._transformed:
            refuse_transforms(z, "z")
        return grouped(self._answer, *question(z, sigma, class_labels, self.shape))

    def round_sigma(self, sigma: Any) -> Tensor:
        """The nearest noise level that can be asked for: σ itself, as a tensor."""
        return torch.as_tensor(sigma)

    def to(self, device: str | torch.device) -> "DropIn":
        """The same denoiser, whose tensors lie on a device. Answers lie where z does.

        Raises:
            ValueError: If there is no such device.
        """
        other = copy(self)
        other._move(as_device(device))
        return other

    def _move(self, device: torch.device) -> None:
        raise NotImplementedError
