"""Datasets: images that come with installed packages, and archives as EDM's dataset tool writes."""

from fpmc.data.datasets import NAMES, Dataset, load

__all__ = ["NAMES", "Dataset", "load"]
