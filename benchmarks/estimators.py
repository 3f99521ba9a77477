"""Fewer estimators than pixels: three ways to thin out a collection's masks."""

import torch
from jaxtyping import Bool, Float, Int64
from sklearn.cluster import KMeans
from torch import Tensor

from fpmc.operators import Dense

__all__ = ["cells", "clusters", "strided"]


def cells(masks: Float[Tensor, "k h w"], side: int) -> tuple[Dense, Dense]:
    """The mask of one pixel in each cell of side × side, which answers for all pixels of it."""
    rows, columns = (torch.arange(n) // side for n in masks.shape[1:])
    return _shared(masks, (rows[:, None] * (int(columns.max()) + 1) + columns).flatten())


def clusters(masks: Float[Tensor, "k h w"], k: int, seed: int = 0) -> tuple[Dense, Dense]:
    """The mask nearest to the mean of each of k clusters of masks, for all of its pixels."""
    fitted = KMeans(k, n_init=1, random_state=seed).fit(masks.flatten(1).double().numpy())
    which = torch.from_numpy(fitted.labels_).long()
    means = torch.from_numpy(fitted.cluster_centers_)
    away = (masks.flatten(1) - means[which]).square().sum(1)
    order = torch.argsort(away)
    first = {int(which[i]): int(i) for i in order.flip(0)}
    return _shared(masks, which, [first[c] for c in range(k)])


def strided(masks: Float[Tensor, "k h w"], step: int) -> tuple[Dense, Dense]:
    """The masks of every step-th pixel each way, whose answers overlap as all masks' did.

    A pixel that none of them holds is answered by the nearest of them.
    """
    h, w = masks.shape[1:]
    kept = [i * w + j for i in range(step // 2, h, step) for j in range(step // 2, w, step)]
    queries = masks[kept]
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    nearest = torch.cdist(places, places[kept]).argmin(1)
    bare = (queries.sum(0) == 0).flatten()
    responses = queries.flatten(1).clone()
    responses[nearest[bare], bare.nonzero().flatten()] = 1
    return Dense(queries), Dense(responses.view_as(queries))


def _shared(
    masks: Float[Tensor, "k h w"], which: Int64[Tensor, " p"], chosen: list[int] | None = None
) -> tuple[Dense, Dense]:
    """A mask for each group of pixels: the chosen ones, or that of the group's median pixel."""
    members: Bool[Tensor, "g p"] = which == torch.arange(int(which.max()) + 1)[:, None]
    if chosen is None:
        chosen = [int(one.nonzero().median()) for one in members]
    return Dense(masks[chosen]), Dense(members.to(masks).view(-1, *masks.shape[1:]))
