"""An answer by the backend that the plan names, and its gradients by the one that goes back."""

import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.engine.autograd import Backend, differentiable
from fpmc.engine.cuda import Cuda, TooLittleSharedMemoryError
from fpmc.engine.plan import Plan, choose, simplest
from fpmc.engine.problem import Problem
from fpmc.engine.ranks import Ranks
from fpmc.engine.streaming import Streaming
from fpmc.engine.streaming.orbit import Orbit
from fpmc.engine.streaming.translations import Translations
from fpmc.features import Features
from fpmc.operators import Box, Dense, Operator
from fpmc.source import Source

__all__ = ["backend", "denoise"]


def denoise(
    z: Float[Tensor, "b c h w"],
    sigma: float,
    queries: Operator,
    responses: Operator,
    source: Source,
    budget: int | None = None,
    precision: str = "exact",
    *,
    translated: bool = False,
    ranks: Ranks | None = None,
    features: Features | None = None,
) -> Float[Tensor, "b c h w"]:
    r"""The collection's answer x̂ of (10), by the path that :func:`fpmc.engine.plan` chooses.

    Args:
        z: Noisy images, shape (b, c, h, w).
        sigma: Their noise level σ > 0.
        queries: Q, with K estimators.
        responses: R, with the same K; every pixel needs a positive sum.
        source: S.
        budget: Bytes of working memory, inputs and result not counted; 1 GiB if left out.
        precision: "exact", or what products are computed in: "float32", or on a CUDA device
            "tf32" or "bf16", of which elsewhere "float32" takes the place. Squares and whole
            images on a CPU are always exact, and so are answers that float32's range does not
            hold the way to.
        translated: Whether estimators also see the source's images translated, which clipped
            squares with one-hot responses and whole images can, always exactly:
            see :class:`fpmc.engine.problem.Problem`.
        ranks: The processes that sum over the other parts of the source, if S is one of several:
            all of them ask at once, and get the same answer.
        features: Φ, if Q acts on squared differences of :math:`\Phi z` and :math:`\Phi x_n`.

    Returns:
        x̂ with z's shape, type and device, differentiable in z and in the matrices of dense Q and R
        (in reverse mode, not by ``torch.func``).

    Raises:
        ValueError: If the budget is too small for a single pair of images, or other operators are
            to be translated, or other ranks ask something else.
    """
    how = budget, precision, translated, ranks, features
    problem = Problem(queries, responses, source, sigma, *how)
    if ranks is not None:
        _agree(problem, z)
    asked = isinstance(queries, Box) or not problem.exact  # on a CUDA device it takes a while
    largest = z.detach().abs().max().item() if asked else None
    problem = simplest(problem, largest)
    try:
        return _run(problem, z, choose(problem, len(z), z, largest))
    except TooLittleSharedMemoryError:  # which the next choice knows of
        return _run(problem, z, choose(problem, len(z), z, largest))


def backend(path: str, problem: Problem) -> Backend | Cuda:
    """The backend of this name. The compiled ones are not imported before they are needed."""
    if path in ("squares", "whole image", "displacements"):
        from fpmc.engine.cpu import displacements, squares, whole_image

        return {
            "squares": squares.Squares,
            "whole image": whole_image.WholeImage,
            "displacements": displacements.Displacements,
        }[path](problem)
    if path in ("patches", "translations"):
        settings = (problem.sigma, *problem.operators, problem.source, problem.budget)
        return Translations(problem, lambda z: denoise(z, *settings), fused=path == "patches")
    return {"cuda": Cuda, "orbit": Orbit, "streaming": Streaming}[path](problem)


def _agree(problem: Problem, z: Tensor) -> None:
    """See that all ranks ask the same, and that all of them or none will go back."""
    asked = {"z": z, "sigma": problem.sigma, "budget": problem.budget}
    asked |= {"queries": problem.queries, "responses": problem.responses}
    inputs = (z, *(op.matrix for op in problem.operators if isinstance(op, Dense)))
    gradients = torch.is_grad_enabled() and [a.requires_grad for a in inputs]
    where = {"precision": problem.precision, "device": z.device.type}
    problem.ranks.agree(z, call="answer", requires_grad=gradients, **asked, **where)


def _run(problem: Problem, z: Tensor, chosen: Plan) -> Tensor:
    forward = backend(chosen.path, problem)
    back = forward if chosen.back == chosen.path else backend(chosen.back, problem)
    return differentiable(z, problem, forward.answer, back.vjp)
