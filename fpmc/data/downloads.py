"""Datasets that torchvision downloads and checks."""

import importlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from fpmc.data.parts import Part

__all__ = ["cifar10", "download"]


def cifar10(root: Path) -> tuple[Part, Part]:
    """CIFAR-10's 50,000 training and 10,000 test images, with their labels.

    Args:
        root: Where the download goes, or lies.

    Raises:
        ImportError: If torchvision does not work; says what to install.
        OSError: If it cannot be downloaded.
        ValueError: If what lies there is not the file that was published.
    """
    otherwise = f"put cifar10-train.zip and cifar10-test.zip into {root}"
    splits = download("CIFAR10", "cifar10", root, otherwise)
    return tuple(
        Part(
            np.ascontiguousarray(np.asarray(split.data).transpose(0, 3, 1, 2)),
            np.asarray(split.targets, np.int64),
        )
        for split in splits
    )


def download(dataset: str, name: str, root: Path, otherwise: str) -> tuple[Any, Any]:
    """The training and test split, as torchvision downloads them unless they are there.

    Args:
        dataset: The name of torchvision's class.
        name: What errors call the dataset.
        root: Where the download goes.
        otherwise: What to do where torchvision does not work.

    Raises:
        ImportError: If torchvision does not work; says what to install.
        OSError: If nothing can be downloaded.
        ValueError: If what lies there is not what was published.
    """
    try:
        kind = getattr(importlib.import_module("torchvision.datasets"), dataset)
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"{name} is read through torchvision, which does not work here ({error}). Install the "
            "build of torchvision that matches your torch from the same index, for instance "
            "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu, "
            f"or {otherwise}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        return tuple(kind(root, train=train, download=True) for train in (True, False))
    except URLError as error:
        raise OSError(
            f"{name}: cannot be downloaded to {root} ({error.reason}); {otherwise}, "
            "or remove what an earlier download left there and try again"
        ) from error
    except Exception as error:  # what unpacking a foreign file raises is many kinds
        raise ValueError(
            f"{root}: cannot be read ({error}); remove what an earlier download of {name} left "
            f"there, or {otherwise}"
        ) from error
