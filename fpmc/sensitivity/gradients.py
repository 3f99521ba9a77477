"""How much each output pixel of a denoiser depends on each input pixel.

Source: Niedoba et al. (2025), section 4; Niedoba et al. (2026), equation (39).
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fpmc.checks import as_answer, as_generator, as_images, as_noise_level, as_whole_number
from fpmc.diffusion import Denoiser, add_noise
from fpmc.engine.memory import resolve
from fpmc.sensitivity.files import read, write
from fpmc.sensitivity.progress import Begun, Progress
from fpmc.source import to_float

__all__ = ["maps", "maps_in_turn", "maps_over", "square_sides"]


def maps(
    denoiser: Denoiser,
    sigma: float,
    images: Tensor,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    cache: str | os.PathLike | None = None,
    budget: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "k h w"]:
    r"""Gradient-sensitivity maps, one for every output pixel k = (x, y).

    .. math:: G_k \propto \mathbb{E}_{x, \; z \sim N(x, \sigma^2 I)} \;
              \frac{1}{c^2} \sum_{a, b} \left| \frac{\partial D(z, \sigma)_{a, k}}
              {\partial z_{b, \cdot}} \right|, \qquad \sum_u G_{k, u} = 1

    with a and b the channels of output and input: the absolute entries of the Jacobian, averaged
    over channels and noisy images. c h w backward passes for each image, many at once: of a module,
    from one forward pass; of another function, each from one of its own.

    Args:
        denoiser: D: a torch module that torch.func can differentiate, or any function that
            PyTorch can in reverse mode, such as an :class:`fpmc.FPMC`. It must treat the images of
            a batch apart.
        sigma: The noise level σ > 0.
        images: x, shape (n, c, h, w): uint8, or floats in [-1, 1].
        seed: Seed of the noise; 0 if neither it nor a generator is given.
        generator: A generator, in the seed's place; not with a cache, which is kept by seed.
        cache: A folder in which maps are kept, by network, images, σ and seed; made if it is
            missing. What is begun is kept there every minute, and the same call goes on from it, to
            the same bits; SIGTERM saves it and ends the program with status 143. The denoiser must
            be a torch module then, to be recognised by its weights and by its answer to one image.
        budget: Bytes of working memory; 1 GiB if left out.
        progress: Whether to show a progress bar, and to say how long it will take.

    Returns:
        Shape (h · w, h, w), float32, pixels k in row-major order; each map sums to 1.

    Raises:
        TypeError: If the images are no tensor of images, the budget no whole number, a cache is
            named for a denoiser that is no module with weights, or the answer is no tensor.
        ValueError: If sigma or the budget is not positive, the answer's shape is another than z's,
            its derivatives are NaN, or an output pixel does not depend on z at all, as those of an
            FPMC that never vary in its source; or a generator is given with a seed or a cache.
        RuntimeError: If the denoiser is not differentiable.
    """
    options = {"seed": seed, "generator": generator, "cache": cache, "budget": budget}
    ((_, found),) = maps_in_turn(denoiser, [sigma], images, **options, progress=progress)
    return found


def maps_over(
    denoiser: Denoiser, sigmas: Iterable[float], images: Tensor, **options
) -> dict[float, Float[Tensor, "k h w"]]:
    """The maps at several noise levels, {sigma: maps}: see :func:`maps` for the rest."""
    return dict(maps_in_turn(denoiser, sigmas, images, **options))


def maps_in_turn(
    denoiser: Denoiser,
    sigmas: Iterable[float],
    images: Tensor,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    cache: str | os.PathLike | None = None,
    budget: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[float, Float[Tensor, "k h w"]]]:
    """The same, one level after the other, as pairs of σ and its maps.

    With ``progress``, one bar runs over all levels, and after a few seconds a line says how long
    they will take.
    """
    sigmas = [as_noise_level(sigma) for sigma in sigmas]
    if generator is not None and cache is not None:
        raise ValueError("generator: got one, and a cache, which keeps maps by seed: wanted a seed")
    if generator is None:
        seed = as_whole_number(0 if seed is None else seed, "seed", 0, 2**63 - 1)
    budget = resolve(budget)
    is_bytes = isinstance(images, Tensor) and images.dtype == torch.uint8
    x = as_images(to_float(images) if is_bytes else images, "images")
    shown = Progress(len(sigmas) * _rows(x), len(sigmas), progress)
    with shown.bar:
        for sigma in sigmas:
            shown.at(sigma)
            if cache is None:
                drawn = as_generator(seed, generator)
                yield sigma, _maps(denoiser, sigma, x, drawn, budget, shown, None)
            else:
                yield sigma, _kept(denoiser, sigma, x, seed, Path(cache), budget, shown)


def _kept(
    denoiser: Denoiser,
    sigma: float,
    x: Tensor,
    seed: int,
    cache: Path,
    budget: int,
    shown: Progress,
) -> Float[Tensor, "k h w"]:
    """Maps from the cache, or computed and kept there."""
    key = _key(denoiser, sigma, x, seed)
    path, begun = cache / f"{key}.npz", cache / f"{key}-begun.npz"
    if path.is_file():
        shown.skip(_rows(x))
        return read(path)[sigma]
    found = _maps(denoiser, sigma, x, seed, budget, shown, begun)
    cache.mkdir(parents=True, exist_ok=True)
    write(path, {sigma: found}, dtype=np.float32)
    begun.unlink(missing_ok=True)
    return found


def _rows(x: Float[Tensor, "n c h w"]) -> int:
    """How many rows the Jacobians of all images have at a noise level."""
    return x.numel()


def square_sides(maps: Float[Tensor, "k h w"], share: float) -> Int[Tensor, " k"]:
    """For every pixel, the odd side of the smallest square around it that holds a share of its map.

    The square is centred at the pixel and cut at the border. Figure 4 of Niedoba et al. (2024) and
    figure 3 of Niedoba et al. (2025) have the mean of such sides.

    Args:
        maps: Shape (h · w, h, w), each summing to 1.
        share: Above 0, up to 1.

    Raises:
        ValueError: If the share lies outside, or the maps' shape is another.
    """
    k, h, w = maps.shape
    if k != h * w:
        raise ValueError(f"maps: got shape {tuple(maps.shape)}, wanted (h · w, h, w)")
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share}, wanted more than 0, at most 1")
    rows, columns = torch.arange(h), torch.arange(w)
    down = (rows[:, None] - rows).abs().reshape(h, 1, h, 1)
    across = (columns[:, None] - columns).abs().reshape(1, w, 1, w)
    ring = torch.maximum(down, across).reshape(k, h * w)
    held = torch.zeros(k, max(h, w), dtype=torch.float64)
    held.scatter_add_(1, ring, maps.reshape(k, h * w).double().cpu())
    return 2 * (held.cumsum(1) < share - 1e-6).sum(1) + 1


def _maps(
    denoiser: Denoiser,
    sigma: float,
    x: Tensor,
    seed: int | torch.Generator,
    budget: int,
    shown: Progress,
    begun: Path | None,
) -> Float[Tensor, "k h w"]:
    total = _sums(denoiser, sigma, add_noise(x, sigma, seed), budget, shown, begun)
    mass = total.sum(dim=(1, 2), keepdim=True)
    if not mass.isfinite().all():
        raise ValueError("denoiser: has NaN or infinite derivatives, wanted finite ones")
    pixels = int((mass == 0).sum())
    if pixels:
        raise ValueError(
            f"denoiser: {pixels} of {len(mass)} output pixels do not depend on z at all, wanted "
            "none (pixels that never vary in an FPMC's source are answered by their constant)"
        )
    return (total / mass).float()


def _sums(
    denoiser: Denoiser,
    sigma: float,
    z: Float[Tensor, "b c h w"],
    budget: int,
    shown: Progress,
    begun: Path | None,
) -> Float[Tensor, "k h w"]:
    """The absolute entries of the Jacobians at noisy images, summed over these and channels."""
    n, c, h, w = z.shape
    k = h * w
    answer = _answer(denoiser, sigma)
    at_once = max(1, budget // max(1, _saved_bytes(answer, z[:1])))
    per_pass = max(1, min(c * k, at_once))
    batch = max(1, min(n, at_once // per_pass))
    total = torch.zeros(k, h, w, dtype=torch.float64, device=z.device)
    with Begun(begun, (per_pass, batch)) as sums:
        passes = sums.read(total)
        for part in z.split(batch):
            pull_back = None
            for rows in torch.arange(c * k, device=z.device).split(per_pass):
                if passes > 0:
                    passes -= 1
                    shown.skip(len(rows) * len(part))
                    continue
                pull_back = pull_back or _pull_back(denoiser, answer, part)
                seeds = torch.zeros(len(rows), c * k, dtype=z.dtype, device=z.device)
                seeds[torch.arange(len(rows)), rows] = 1
                seeds = seeds.reshape(-1, 1, c, h, w).expand(-1, len(part), -1, -1, -1)
                jacobian = pull_back(seeds)
                added = jacobian.abs().double().sum(dim=(1, 2))
                total.index_add_(0, rows % k, added)
                shown.add(len(rows) * len(part))
                sums.added(total)
    return total


def _pull_back(
    denoiser: Denoiser, answer: Callable[[Tensor], Tensor], z: Float[Tensor, "b c h w"]
) -> Callable[[Float[Tensor, "rows b c h w"]], Float[Tensor, "rows b c h w"]]:
    """What turns gradients with respect to the answers, many rows of them, into those to z."""
    if isinstance(denoiser, nn.Module):
        _, pull_back = torch.func.vjp(answer, z)
        return lambda seeds: torch.func.vmap(pull_back)(seeds)[0]

    def by_copies(seeds: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            copies = z.detach().repeat(len(seeds), 1, 1, 1).requires_grad_()
            (gradient,) = torch.autograd.grad(answer(copies), copies, seeds.flatten(0, 1))
        return gradient.view(seeds.shape)

    return by_copies


def _answer(denoiser: Denoiser, sigma: float) -> Callable[[Tensor], Tensor]:
    """The denoiser as a function of z alone, none of its weights to be differentiated."""
    if not isinstance(denoiser, nn.Module):
        return lambda z: as_answer(denoiser(z, sigma), z, "denoiser")
    weights = {name: value.detach() for name, value in denoiser.state_dict().items()}

    def answer(z: Tensor) -> Tensor:
        return as_answer(torch.func.functional_call(denoiser, weights, (z, sigma)), z, "denoiser")

    return answer


def _saved_bytes(answer: Callable[[Tensor], Tensor], z: Tensor) -> int:
    """Bytes of what a forward pass keeps for the backward pass, per image.

    A backward pass holds less for every row of the Jacobian: a gradient for each activation that
    is still waiting for one, and what was kept is shared by all rows.
    """
    sizes = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        answer(z.clone().requires_grad_())
    return sum(sizes)


def _key(denoiser: Denoiser, sigma: float, x: Tensor, seed: int) -> str:
    weights = denoiser.state_dict() if isinstance(denoiser, nn.Module) else {}
    if not weights:
        raise TypeError(
            f"cache: got a denoiser of type {type(denoiser).__name__}, wanted a torch module with "
            "weights, which identify it"
        )
    kind = f"{type(denoiser).__module__}.{type(denoiser).__qualname__}"
    words = (kind, repr(denoiser), sigma, seed, tuple(x.shape), list(weights))
    digest = hashlib.sha256(repr(words).encode())
    with torch.no_grad():
        told = _answer(denoiser, sigma)(add_noise(x[:1], sigma, seed))
    told = (1e3 * told).round()  # what other threads or machines round differently is the same
    for tensor in (*weights.values(), x, told):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
