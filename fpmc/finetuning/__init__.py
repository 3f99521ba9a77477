"""Soft queries and responses: collections tuned to a network, a noise level at a time.

Source: Niedoba et al. (2026), sections 4.1, 4.2 and C.3.
"""

from fpmc.finetuning.files import SHIPPED, load
from fpmc.finetuning.loop import FineTuned, finetune
from fpmc.finetuning.module import SoftFPMC

__all__ = ["SHIPPED", "FineTuned", "SoftFPMC", "finetune", "load"]
