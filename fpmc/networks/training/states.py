"""The state of a run that may be stopped at any moment: one file, written whole."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from fpmc.storage import reason, whole

__all__ = ["Stateful", "read_state", "restore", "write_state"]

ADVICE = "Nothing was changed; name another folder for this run"
UNREADABLE = (KeyError, TypeError, ValueError, RuntimeError)


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and put back: modules, optimizers, batches."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        OSError: If the disk is full, say; what was there before stays.
    """
    made = io.BytesIO()  # PyTorch's own error of a full disk names neither file nor disk
    torch.save(dict(state), made)
    with whole(path) as beside:
        beside.write_bytes(made.getbuffer())


def read_state(
    path: Path, identity: Mapping[str, Any], device: torch.device | None = None
) -> dict[str, Any]:
    """Read the state of this run, without running any code from the file.

    Args:
        path: The file.
        identity: What makes the run the one it is; the file must hold the same under "identity".
        device: Where its tensors go.

    Raises:
        ValueError: If the file cannot be read, or holds another run's state.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        before = dict(state["identity"])
    except (*UNREADABLE, EOFError, OSError, pickle.PickleError) as error:
        raise ValueError(
            f"{path}: not a state to go on from ({reason(error)}). {ADVICE}"
        ) from error
    differ = [k for k in before | dict(identity) if before.get(k) != identity.get(k)]
    if differ:
        got, wanted = (", ".join(f"{k}={of.get(k)!r}" for k in differ) for of in (before, identity))
        raise ValueError(f"{path}: holds a run with {got}; wanted {wanted}. {ADVICE}")
    return state


def restore(path: Path, parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Put every part back to what the state says of it.

    Raises:
        ValueError: If one is missing, or fits not.
    """
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except UNREADABLE as error:
        raise ValueError(f"{path}: its state does not fit ({reason(error)}). {ADVICE}") from error
