"""The weights that a training starts from, when they are another network's."""

import inspect
from typing import Any

from torch import Tensor

from fpmc.networks.architectures import ARCHITECTURES, build
from fpmc.networks.preconditioning import Preconditioned

__all__ = ["start_from"]

FRESH = 0.1
"""Factor of the fresh weights of ξ, where a network of means learns to draw."""


def start_from(network: Preconditioned, start: Preconditioned, name: str) -> None:
    """Give a network the weights of another of its architecture, dropout aside.

    A network that draws may start from one of means, which lacks the weights of ξ: those keep
    their fresh values, times :data:`FRESH`. At ξ = 0 it then answers as the network of means does,
    and elsewhere not far from it.

    Args:
        network: What is trained, fresh from :func:`fpmc.networks.build`.
        start: The other one.
        name: What the error calls it.

    Raises:
        ValueError: If the two differ otherwise in the names or the shapes of their weights, in σ_d,
            or in an option that the same weights mean something else by, as a DiT's heads.
    """
    fresh, state = network.state_dict(), start.state_dict()
    if _differing(state, fresh):
        without = _without_xi(network)
        if without is None or _differing(state, without):
            raise ValueError(_message(network, start, name))
        for weight in _differing(fresh, without):
            state[weight] = _widened(state[weight], fresh[weight], network)
    own, given = _meaning(network), _meaning(start)
    for option, value in own.items():
        if given.get(option, value) != value:
            raise ValueError(
                f"start: {name!r} is another network: got {option} = {given[option]}, "
                f"wanted {value}"
            )
    network.load_state_dict(state)


def _meaning(network: Preconditioned) -> dict[str, Any]:
    """What decides beside the weights how a network answers, and their shapes do not tell."""
    found, made = {"sigma_data": float(network.sigma_data)}, network.architecture
    if made is None:
        return found
    kind, own = ARCHITECTURES[made["arch"]]
    options = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    options |= {**own, **made["options"]}
    told_by_shapes = ("shape", "xi", "attention")
    return found | {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if name not in (*told_by_shapes, "dropout")
    }


def _without_xi(network: Preconditioned) -> dict[str, Tensor] | None:
    """The weights of the network of means that a network that draws is like, if it draws."""
    made = network.architecture
    if not made["options"].get("xi"):
        return None
    options = made["options"] | {"xi": False}
    return build(made["arch"], tuple(made["shape"]), **options).state_dict()


def _widened(given: Tensor, fresh: Tensor, network: Preconditioned) -> Tensor:
    """Weights of a first layer, (out, in, ...), with columns for ξ where the network has them."""
    end = fresh.shape[1] - getattr(network.model, "behind_xi", 0)
    begin = end - (fresh.shape[1] - given.shape[1])
    weights = FRESH * fresh
    weights[:, :begin], weights[:, end:] = given[:, :begin], given[:, begin:]
    return weights


def _differing(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Names that one lacks, or whose tensors have other shapes."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (got, wanted)]
    return [name for name in got | wanted if shapes[0].get(name) != shapes[1].get(name)]


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "none"


def _message(network: Preconditioned, start: Preconditioned, name: str) -> str:
    states = start.state_dict(), network.state_dict()
    differ = _differing(*states)
    some = (f"{k} {', '.join(_shape(state, k) for state in states)}" for k in differ[:3])
    return (
        f"start: {name!r} is another network: got {start.size:,} parameters, "
        f"wanted {network.size:,}\n{len(differ)} tensors differ in name or shape, "
        f"first (got, wanted): {'; '.join(some)}"
    )
