r"""The answer from the tiles of a source.

The softmax runs online over tiles of source images. If every pixel belongs to one estimator (R is
all ones or the identity) a single pass does: when the maximum rises, the sums made so far shrink
with it. Otherwise a first pass finds each estimator's normaliser and a second one mixes. Where the
budget has room for the log-weights of a few noisy images against the whole source, the first pass
keeps them: Q, which is what takes the time, is applied once.

Ranks that have a part of the source each put their softmaxes together after the first pass. From
then on normalisers are those of all, and what is left are sums.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.problem import Problem
from fpmc.engine.softmax import exp
from fpmc.engine.streaming.arithmetic import Dtypes, coverage, mix, start
from fpmc.engine.streaming.kept import Kept, significant
from fpmc.engine.streaming.sizes import Tile

__all__ = ["forward"]


def forward(
    z_t: Float[Tensor, "c h w b"], problem: Problem, size: Tile, types: Dtypes
) -> Float[Tensor, "c h w b"]:
    """x̂, float64.

    Args:
        z_t: Noisy images, pixels first, float64.
        problem: What is asked, Q and R ready to act on the types of log-weights and of weights.
        size: How much of the source at a time, and whether log-weights are kept.
        types: The types to compute in.
    """
    total, responses, ranks = torch.zeros_like(z_t), problem.responses, problem.ranks
    softmax = start(z_t, problem)
    kept = Kept(z_t, problem, size, types)
    for i, (x, ell) in enumerate(kept.first()):
        t = softmax.take(ell, types.weights)
        if responses.partition:
            if softmax.shrink is not None:
                total *= responses.transpose(softmax.shrink)
            total += mix(softmax.weigh(t), x.to(t), responses)
        else:
            kept.put(i, softmax.peak, t)
            softmax.weigh(t)
    if ranks is not None:
        softmax.join(ranks)
    if responses.partition:
        if ranks is not None:
            total = ranks.sum(total * responses.transpose(softmax.shrink))
        return total / responses.transpose(softmax.mass)

    for x, t, _ in kept.again(softmax.log_norm()):
        use = significant(t)
        total += mix(exp(t[..., use]), x[..., use].to(t), responses)
    if ranks is not None:
        total = ranks.sum(total)
    return total / coverage(responses, z_t)
