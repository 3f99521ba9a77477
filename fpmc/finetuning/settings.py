"""What a tuning run does: everything that its outcome depends on, but for images and networks."""

from dataclasses import dataclass

from fpmc.checks import (
    as_fraction,
    as_noise_level,
    as_not_negative,
    as_positive,
    as_whole_number,
)
from fpmc.finetuning.module import LEARN
from fpmc.finetuning.parametrisation import ZEROS, as_map
from fpmc.finetuning.step import CUT

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of a run, checked.

    Attributes:
        sigma: The noise level σ > 0.
        learn: "qr", "q" or "r".
        steps: Steps in all; 0 keeps the start if it is better than what was given.
        batch: Images of a step.
        rate: AdamW's constant learning rate.
        weight_decay: AdamW's decay of θ to 0, where the exponential is 1.
        subset: Source images drawn for each step; None for all.
        every: Steps between validations; None for an epoch.
        mapping: "exponential" or "softplus".
        zeros: Where zeros start, see :mod:`fpmc.finetuning.parametrisation`.
        cut: What a step may leave out, see :mod:`fpmc.finetuning.step`.
        seed: Of order, noise and draws. A whole number, no generator: each step makes its own from
            it and the step's number, so that a run that was stopped goes on to the same bits.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If one lies outside its range.
    """

    sigma: float
    learn: str = "qr"
    steps: int = 2000
    batch: int = 256
    rate: float = 0.05
    weight_decay: float = 0.0
    subset: int | None = None
    every: int | None = None
    mapping: str = "exponential"
    zeros: float = ZEROS
    cut: float = CUT
    seed: int = 0

    def __post_init__(self):
        checked = {
            "sigma": as_noise_level(self.sigma),
            "steps": as_whole_number(self.steps, "steps", 0),
            "batch": as_whole_number(self.batch, "batch", 1),
            "rate": as_positive(self.rate, "rate"),
            "weight_decay": as_not_negative(self.weight_decay, "weight_decay"),
            "zeros": as_fraction(self.zeros, "zeros", zero=False),
            "cut": as_fraction(self.cut, "cut"),
            "seed": as_whole_number(self.seed, "seed", 0, 2**32 - 1),
        }
        for name in ("subset", "every"):
            if getattr(self, name) is not None:
                checked[name] = as_whole_number(getattr(self, name), name, 1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.learn not in LEARN:
            raise ValueError(f"learn: got {self.learn!r}, wanted one of {', '.join(LEARN)}")
        as_map(self.mapping)
