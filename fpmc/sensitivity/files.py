"""Sensitivity maps in files, and those of the shipped networks."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fpmc.checks import as_whole_number
from fpmc.networks.loading import FOLDER, SHIPPED
from fpmc.storage import missing, reason, whole

__all__ = ["averaged_over", "load", "read", "write"]

OF_AUTHORS = (
    "of maps (step, y, x, h, w), divide each by its sum over (h, w), and write "
    "{sigma: maps[step].reshape(h * w, h, w)} with fpmc.sensitivity.write"
)
"""How maps as the papers' authors keep them become ours."""


def load(network: str | os.PathLike) -> dict[float, Float[Tensor, "k h w"]]:
    """A network's sensitivity maps, {sigma: maps}: the shipped ones, or those in a file.

    Args:
        network: A shipped DDPM++, such as "photos/ddpmpp", whose maps are at the sampler's 18 noise
            levels, or a file that :func:`write` or ``python -m fpmc.sensitivity`` kept. (No method
            here is tuned to the other shipped networks; that command computes their maps.)

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is neither a name nor a path.
        ValueError: If no maps are shipped for it, or the file is cut short or holds something
            else.
    """
    if not isinstance(network, str | os.PathLike):
        raise TypeError(f"network: got {type(network).__name__}, wanted a name or a path")
    if network in _shipped():
        return read(FOLDER / f"{network}.npz")
    path = Path(network)
    if path.suffix in (".safetensors", ".pkl"):
        raise ValueError(
            f"network: got {network}, wanted the file of its maps, as "
            f"python -m fpmc.sensitivity --network {network} --out FILE.npz makes"
        )
    if network in SHIPPED:
        raise ValueError(
            f"network: the maps of {network} are not shipped, wanted one of "
            f"{', '.join(_shipped())}, or the file that "
            f"python -m fpmc.sensitivity --network {network} --out FILE.npz makes"
        )
    if isinstance(network, str) and not path.suffix and not path.exists():
        raise ValueError(
            f"network: got {network!r}, wanted one of {', '.join(_shipped())}, or a file of maps, "
            "as python -m fpmc.sensitivity --network NETWORK --out FILE.npz makes"
        )
    return read(path)


def averaged_over(network: str | os.PathLike) -> int | None:
    """The number of noisy images that each of stored maps is an average over.

    Args:
        network: As :func:`load` takes it.

    Returns:
        None if the file does not say.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short or holds no maps.
    """
    path = FOLDER / f"{network}.npz" if network in _shipped() else network
    with _opened(path) as file:
        return int(file["images"]) if "images" in file else None


def write(
    path: str | os.PathLike,
    maps: Mapping[float, Float[Tensor, "k h w"]],
    dtype: type[np.floating] = np.float16,
    *,
    keep: float | Callable[[float], float] = 1.0,
    digits: int | Callable[[float], int] | None = None,
    images: int | None = None,
) -> None:
    r"""Keep maps, {sigma: maps}, in a compressed .npz file, whole or not at all.

    With ``keep`` below 1 a map's largest values are stored until their sum reaches that share, and
    of the rest, at most a share 1 − keep, only its sum: :func:`read` spreads it evenly over the
    pixels that were left out. None of these gets more than any that was stored, so that the
    smallest set of pixels that holds a share τ ≤ keep is the same as without.

    Args:
        path: Where to; an existing file is replaced.
        maps: {sigma: maps}, each map with a sum of 1.
        dtype: The type of the stored values, float16 or float32.
        keep: The share of each map that is stored value by value, above 0, up to 1; a number, or
            a function from sigma to one.
        digits: Significant binary digits of the stored values, at most the type's own; a number,
            or a function from sigma to one. Fewer take less room, and move every value by a share
            of up to :math:`2^{-\text{digits}}`. All that the type has if left out.
        images: The number of noisy images that each map is an average over, kept beside them.

    Raises:
        TypeError: If the type is neither, or the number of images not a whole number.
        ValueError: If there are no maps, their shapes differ or are others, a map does not sum to
            1, or ``keep``, ``digits`` or ``images`` lies outside its range.
    """
    if dtype not in (np.float16, np.float32):
        raise TypeError(f"dtype: got {dtype!r}, wanted np.float16 or np.float32")
    _check(maps)
    share = keep if callable(keep) else lambda sigma: keep
    kept = np.array([share(sigma) for sigma in maps])
    outside = kept[~((kept > 0) & (kept <= 1))]
    if len(outside):
        raise ValueError(f"keep: got {outside[0]:g}, wanted more than 0, at most 1")
    wanted = digits if callable(digits) else lambda sigma: digits
    stored, sums = [], []
    for (sigma, value), part in zip(maps.items(), kept, strict=True):
        rounded = _rounded(len(value) * value.double().cpu().numpy(), wanted(sigma)).astype(dtype)
        sums.append(rounded.sum((1, 2), dtype=np.float64))
        stored.append(rounded if part == 1 else _largest(rounded, part))
    arrays = {"sigmas": np.array(list(maps)), "maps": np.stack(stored)}
    if (kept < 1).any():
        arrays |= {"sums": np.stack(sums), "keep": kept}
    if images is not None:
        arrays["images"] = np.array(as_whole_number(images, "images", 1))
    with whole(path) as beside, beside.open("wb") as file:
        _archive(file, arrays)


def _check(maps: Mapping[float, Float[Tensor, "k h w"]]) -> None:
    shapes = {tuple(value.shape) for value in maps.values()}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 3 or shape[0] != shape[1] * shape[2]:
        raise ValueError(f"maps: got shapes {sorted(shapes)}, wanted one, (h · w, h, w)")
    for sigma, value in maps.items():
        sums = value.detach().double().sum((1, 2))
        if not (value >= 0).all() or not ((sums - 1).abs() < 1e-3).all():
            raise ValueError(
                f"maps: got one at sigma = {sigma:g} that is no share of the sensitivity, wanted "
                "values ≥ 0 that sum to 1: divide each map by its sum over (h, w)"
            )


def _archive(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """What ``np.savez_compressed`` does, by bzip2, which makes maps a quarter smaller."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read(path: str | os.PathLike) -> dict[float, Float[Tensor, "k h w"]]:
    """The maps that :func:`write` kept, float32, each summing to 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut short or is none of these.
    """
    with _opened(path) as file:
        values = file["maps"].astype(np.float64)
        sums = file["sums"] if "sums" in file else values.sum((2, 3))
        sigmas = [float(sigma) for sigma in file["sigmas"]]
        values = torch.from_numpy(_spread(values, sums).astype(np.float32))
        return dict(zip(sigmas, values, strict=True))


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """A file of maps; whatever it does not give is an error that names it."""
    try:
        loaded = np.load(path, allow_pickle=False)
        with nullcontext(loaded) if isinstance(loaded, np.ndarray) else loaded as file:
            if isinstance(file, np.ndarray) or not {"maps", "sigmas"} <= set(file):
                raise ValueError(f"it has no maps{_described(file)}")
            yield file
    except FileNotFoundError as error:
        raise missing(path) from error
    except Exception as error:
        raise ValueError(f"{path}: not a file of sensitivity maps ({reason(error)})") from error


def _described(file: Mapping[str, np.ndarray] | np.ndarray) -> str:
    """What a foreign file holds, and how maps as the papers' authors keep them become ours."""
    arrays = {"an array": file} if isinstance(file, np.ndarray) else file
    shapes = {name: getattr(array, "shape", None) for name, array in arrays.items()}
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    described = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
    if any(name.endswith("data.pkl") for name in arrays):
        return f" but what torch.save writes; {OF_AUTHORS}"
    if any(len(shape) == 5 and shape[1:3] == shape[3:] for shape in shapes.values()):
        return f" but {described}: {OF_AUTHORS}"
    return f" but {described}" if described else " and nothing that NumPy reads"


def _shipped() -> list[str]:
    return sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/*.npz"))


def _rounded(values: np.ndarray, digits: int | None) -> np.ndarray:
    """The nearest numbers with so many significant binary digits."""
    if digits is None:
        return values
    if digits < 1:
        raise ValueError(f"digits: got {digits}, wanted at least 1")
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**digits), exponent - digits)


def _largest(maps: np.ndarray, keep: float) -> np.ndarray:
    """Each map's largest values, the first of equal ones first, to this share; zeros elsewhere."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    order = np.argsort(-flat, axis=1, kind="stable")
    falling = np.take_along_axis(flat, order, 1)
    before = falling.cumsum(1) - falling
    falling[before >= keep * falling.sum(1, keepdims=True)] = 0
    np.put_along_axis(flat, order, falling, 1)
    return flat.reshape(maps.shape).astype(maps.dtype)


def _spread(values: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Maps with a sum of 1: what the values lack to the sums, spread over the zeros."""
    zeros = values == 0
    rest = np.maximum(sums - values.sum((2, 3)), 0) / np.maximum(zeros.sum((2, 3)), 1)
    return (values + zeros * rest[..., None, None]) / sums[..., None, None]
