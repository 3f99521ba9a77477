"""Where a number comes from: the columns that every row of every table has."""

import datetime
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

import fpmc

__all__ = ["code_version", "cpu", "device_name", "provenance"]

ROOT = Path(__file__).parents[2]


def provenance(device: str | torch.device = "cpu", code: str | None = None) -> dict[str, str]:
    """On what, with which versions of the package, of torch and of the code, and when.

    Args:
        device: Where it was computed.
        code: The code's version, if there is no git checkout to ask.
    """
    return {
        "device": device_name(device),
        "version": fpmc.__version__,
        "torch": torch.__version__,
        "code": code or code_version(),
        "date": datetime.date.today().isoformat(),
    }


def device_name(device: str | torch.device) -> str:
    """A GPU's name, or the processor's architecture."""
    on_cuda = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_cuda else platform.machine()


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@cache
def code_version() -> str:
    """The commit of the checkout that this file lies in; "unknown" without one."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        said = ""
    return said or "unknown"
