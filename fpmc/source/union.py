"""Sources put together: training images and what was made of them."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpmc.source.arguments import as_log_weights
from fpmc.source.joined import Joined
from fpmc.source.measure import Source

__all__ = ["Copies", "union"]


@runtime_checkable
class Copies(Protocol):
    """Images that were made of others, such as :class:`fpmc.augment.Augmented`.

    Attributes:
        images: Shape (m, c, h, w).
        parents: Positions of the images that each was made of, −1 if of none; shape (m,).
    """

    images: Any
    parents: Any


def union(*sources: Source | Copies, weights: Any = None) -> Source:
    r"""The measure :math:`S = \sum_i \pi_i S_i` on the images of several sources.

    By default :math:`\pi_i` is proportional to the number of images of :math:`S_i`, those that were
    left out not counted: where the sources have no weights, all images weigh the same, and the
    union is that of multisets. Nothing is copied: the images stay where they are, in memory or on
    disk, and positions of each source follow those of the one before.

    Args:
        sources: Sources, unions too; or what :mod:`fpmc.augment` makes, whose parents are
            positions in the first source. All stored as the same type, on the same device.
        weights: π_i > 0, one for each source; scaled to sum to 1.

    Returns:
        A source. It has labels if all have; copies have those of their parents. It has parents
        where any has, and is of a dataset if no two are of different ones.

    Raises:
        TypeError: If there is none, the first is no source or another neither that nor copies, or
            they are not stored as one type.
        ValueError: If shapes or devices differ, a parent is no position in the first source, or
            weights are not positive, one for each.

    Source: Niedoba et al. (2026), section 4.3.
    """
    if not sources or not isinstance(sources[0], Source):
        got = type(sources[0]).__name__ if sources else "nothing"
        raise TypeError(f"sources: got {got} as the first, wanted an fpmc.Source")
    first, *others = sources
    members = [first, *(_member(other, first) for other in others)]
    for member in members[1:]:
        _agree(member, first)
    images = Joined(tuple(part for member in members for part in member.parts))
    labels = [member.labels for member in members]
    labels = None if any(part is None for part in labels) else torch.cat(labels)
    parents = _parents(members, [not isinstance(source, Source) for source in sources])
    named = {member.dataset for member in members} - {None}
    dataset = named.pop() if len(named) == 1 else None
    joined = Source(images, labels=labels, parents=parents, dataset=dataset)
    return joined._with_log_weights(_log_weights(members, weights))


def _member(given: Any, first: Source) -> Source:
    """A source; of copies, one with the parents as they are given and their labels."""
    if isinstance(given, Source):
        return given
    if not isinstance(given, Copies):
        raise TypeError(
            f"sources: got {type(given).__name__}, wanted an fpmc.Source or what fpmc.augment makes"
        )
    member = Source(given.images)
    parents = torch.as_tensor(given.parents)
    if len(parents) and int(parents.max()) >= len(first):
        raise ValueError(
            f"parents: got {int(parents.max())}, wanted positions in the first source, up to "
            f"{len(first) - 1}"
        )
    if tuple(parents.shape) != (len(member),):
        raise ValueError(f"parents: got shape {tuple(parents.shape)}, wanted ({len(member)},)")
    member.parents = parents.long().cpu()
    if first.labels is not None and (member.parents >= 0).all():
        member.labels = first.labels[member.parents]
    return member


def _agree(member: Source, first: Source) -> None:
    ours, theirs = first.images, member.images
    if first.shape != member.shape:
        raise ValueError(f"sources: got images of shape {first.shape} and {member.shape}")
    if ours.dtype != theirs.dtype:
        raise TypeError(
            f"sources: got {ours.dtype} and {theirs.dtype}, wanted one type; "
            "fpmc.source.to_uint8 makes pixel values of floats"
        )
    if ours.device != theirs.device:
        raise ValueError(f"sources: got them on {ours.device} and {theirs.device}, wanted one")


def _parents(members: list[Source], of_first: list[bool]) -> Int64[Tensor, " n"] | None:
    """Where each image's original is in the union; copies of copies are their originals'."""
    if all(member.parents is None for member in members):
        return None
    found, start = [], 0
    for member, made in zip(members, of_first, strict=True):
        parents = torch.full((len(member),), -1) if member.parents is None else member.parents
        if made:
            original = found[0][parents]  # for the parent −1 the last, which is not looked at
            parents = torch.where((parents >= 0) & (original >= 0), original, parents)
        else:
            parents = torch.where(parents >= 0, parents + start, parents)
        found.append(parents)
        start += len(member)
    return torch.cat(found)


def _log_weights(members: list[Source], weights: Any) -> Float[Tensor, " n"] | None:
    if weights is None and all(member.log_weights is None for member in members):
        return None
    if weights is None:
        weights = [
            len(m) if m.log_weights is None else int((m.log_weights > -torch.inf).sum())
            for m in members
        ]
    shares = as_log_weights(weights, len(members))
    own = [
        torch.full((len(m),), -math.log(len(m)), dtype=torch.float64)
        if m.log_weights is None
        else m.log_weights.cpu()
        for m in members
    ]
    return torch.cat([share + part for share, part in zip(shares, own, strict=True)])
