"""Datasets: images that come with installed packages, and archives in the layout of EDM's dataset tool."""

from fpmc.data.datasets import NAMES, Dataset, load

__all__ = ["NAMES", "Dataset", "load"]
