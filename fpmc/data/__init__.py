"""Datasets: images that come with installed packages, and archives as EDM's dataset tool writes."""

from fpmc.data.datasets import EMBEDDED, NAMES, Dataset, load
from fpmc.data.fingerprint import fingerprint

__all__ = ["EMBEDDED", "NAMES", "Dataset", "fingerprint", "load"]
