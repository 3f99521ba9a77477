"""An answer by the backend that the plan names, and its gradients by the one that goes back."""

from jaxtyping import Float
from torch import Tensor

from fpmc.engine.autograd import Backend, differentiable
from fpmc.engine.cuda import Cuda, TooLittleSharedMemoryError
from fpmc.engine.plan import Plan, choose, simplest
from fpmc.engine.problem import Problem
from fpmc.engine.streaming import Streaming
from fpmc.operators import Box, Operator
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
) -> Float[Tensor, "b c h w"]:
    """The collection's answer x̂ of (10), by the path that :func:`fpmc.engine.plan` chooses.

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

    Returns:
        x̂ with z's shape, type and device, differentiable in z and in the matrices of dense Q and R
        (in reverse mode, not by ``torch.func``).

    Raises:
        ValueError: If the budget is too small for a single pair of images.
    """
    problem = Problem(queries, responses, source, sigma, budget, precision)
    asked = isinstance(queries, Box) or not problem.exact  # on a CUDA device it takes a while
    largest = z.detach().abs().max().item() if asked else None
    problem = simplest(problem, largest)
    try:
        return _run(problem, z, choose(problem, len(z), z, largest))
    except TooLittleSharedMemoryError:  # which the next choice knows of
        return _run(problem, z, choose(problem, len(z), z, largest))


def backend(path: str, problem: Problem) -> Backend | Cuda:
    """The backend of this name. The compiled ones are not imported before they are needed."""
    if path in ("squares", "whole image"):
        from fpmc.engine.cpu import squares, whole_image

        return (squares.Squares if path == "squares" else whole_image.WholeImage)(problem)
    return {"cuda": Cuda, "streaming": Streaming}[path](problem)


def _run(problem: Problem, z: Tensor, chosen: Plan) -> Tensor:
    forward = backend(chosen.path, problem)
    back = forward if chosen.back == chosen.path else backend(chosen.back, problem)
    return differentiable(z, problem, forward.answer, back.vjp)
