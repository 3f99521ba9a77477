"""Forked processes, which lack the threads that PyTorch believes to have, and wait for them."""

import os

import torch

__all__ = ["refuse_to_hang"]


class _Threads:
    """What this process and those it was forked from did.

    Attributes:
        used: Whether this process, or one that it was forked from, computed with several threads.
        lost: Whether it was forked after that.
    """

    used = False
    lost = False


def refuse_to_hang() -> None:
    """Note that this process computes now, or say why it would wait for ever.

    Raises:
        RuntimeError: If it was forked from one that computed with several threads, and would use
            several, too.
    """
    if torch.get_num_threads() == 1:
        return
    if _Threads.lost:
        raise RuntimeError(
            "this process was forked from one that had computed with several threads, for which "
            "PyTorch would wait for ever: call torch.set_num_threads(1) in it first, or start it "
            "by multiprocessing's 'spawn'"
        )
    _Threads.used = True


def _forked() -> None:
    _Threads.lost = _Threads.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
