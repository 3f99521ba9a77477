"""Figures and tables in one style, for light and dark pages: grids, strips, curves over σ."""

import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from fpmc.checks import as_images
from fpmc.methods.registry import METHODS
from fpmc.metrics import Estimate

__all__ = [
    "COLOURS",
    "MARKERS",
    "Table",
    "image_grid",
    "mask_image",
    "matrix",
    "plot_estimates",
    "plot_identity",
    "sigma_axis",
    "sigma_strip",
    "use_style",
]

_FIRST = ("optimal", "PSPC-Square", "held-out", "DDPM++", "NCSN++", "DiT")
_COLOURS = {method.title: method.colour for method in METHODS.values()} | {
    "held-out": "#4a8f3c",
    "DDPM++": "#1f8a7d",
    "NCSN++": "#a67710",
    "DiT": "#8a63c9",
    "other": "#a06cb5",
}
COLOURS = {name: _COLOURS[name] for name in dict.fromkeys((*_FIRST, *_COLOURS))}
"""A colour per method or kind of image, the same in every figure, dark enough for a light page."""

MARKERS = dict(zip(COLOURS, "os^DvPX<>*hdp", strict=True))
"""A marker per name beside its colour, for readers who tell colours apart badly, and for print."""

Rows = Mapping[str, Float[Tensor, "m c h w"]] | Sequence[tuple[str, Float[Tensor, "m c h w"]]]

INK = "#454b55"
WIDTH = 8.0
GAP = 0.06
NUMBER = re.compile(
    r"(\*\*)?[-−–+]?[\d,.]*(e[-+]?\d+)?( ± [\d.e-]+)?( ?%| (ms|s|min|h|days|MiB|GiB))?(\*\*)?( \?)?"
)
"""What stands on the right of a table's column: a number, with its error, a unit, in bold or with a
question mark; or a dash for none."""


def use_style() -> None:
    """Set matplotlib up: dark ink on white, for pages and notebooks of any theme; sharp screens."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "axes.facecolor": "none",
            "savefig.facecolor": "white",
            "savefig.bbox": "tight",
            "figure.figsize": (6.0, 3.4),
            "figure.dpi": 110,
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlesize": 10,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": INK,
            "grid.alpha": 0.2,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "axes.prop_cycle": plt.cycler(color=list(COLOURS.values())),
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    set_matplotlib_formats("retina")


def image_grid(
    rows: Rows,
    columns: Sequence[str] | None = None,
    *,
    width: float = WIDTH,
) -> Figure:
    """Rows of images with a label each, columns with a title each; pixels stay squares.

    Args:
        rows: {label: images in [-1, 1]}, or pairs of the two where labels repeat; all of one shape
            (m, c, h, w) with c = 1 or 3; values outside [-1, 1] are clamped.
        columns: m titles, if any.
        width: The figure's width in inches, labels included.

    Raises:
        ValueError: If there is no row, the rows' shapes or the number of titles differ, or c is
            neither 1 nor 3.
    """
    pairs = list(rows.items() if isinstance(rows, Mapping) else rows)
    labels = [str(label) for label, _ in pairs]
    canvas, centres = _canvas(pairs)
    if columns is not None and len(columns) != len(centres):
        raise ValueError(f"columns: got {len(columns)} titles, wanted {len(centres)}")
    side = canvas.shape[0] / len(pairs)
    label_width = 0.085 * max(len(line) for label in labels for line in label.split("\n"))
    height = (width - label_width) * canvas.shape[0] / canvas.shape[1]
    figure, ax = plt.subplots(figsize=(width, height + (0.3 if columns else 0.0)))
    ax.imshow(canvas, interpolation="nearest", aspect="equal")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_yticks([(i + 0.5) * side - 0.5 for i in range(len(pairs))], labels)
    ax.set_xticks([])
    if columns is not None:
        ax.set_xticks(centres, list(columns))
    return figure


def sigma_strip(rows: Rows, sigmas: Sequence[float], **options) -> Figure:
    """An image grid with a noise level per column. Arguments as in :func:`image_grid`."""
    return image_grid(rows, [f"σ = {sigma:.2g}" for sigma in sigmas], **options)


def mask_image(mask: Float[Tensor, "*m h w"], channels: int) -> Float[Tensor, "*m c h w"]:
    """A mask with values 0 … 1 as an image: 0 almost black, 1 light grey, visible on any page."""
    return (1.5 * mask - 0.9).unsqueeze(-3).expand(*mask.shape[:-2], channels, -1, -1)


def matrix(ax: Axes, values: Tensor, title: str) -> None:
    """Draw a matrix of numbers ≥ 0, white (0) to blue (its largest), with a frame.

    With a shared y axis, matrices of different heights hang from the top on one scale.
    """
    rows, columns = values.shape
    ax.imshow(values.detach().cpu(), cmap="Blues", vmin=0, interpolation="nearest")
    frame = {"fill": False, "edgecolor": INK, "clip_on": False}
    ax.add_patch(plt.Rectangle((-0.5, -0.5), columns, rows, **frame))
    ax.set_ylim(max(rows - 0.5, *ax.get_ylim()), -0.5)
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)


class Table:
    """Rows under headings: a notebook renders a table, a terminal prints text.

    Args:
        rows: What stands in each row, {heading: value}, all with the same headings. An
            :class:`fpmc.metrics.Estimate` stands with its standard error, a float with three
            digits; all else as it is.

    Raises:
        ValueError: If there are no rows, or their headings differ.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]]):
        if not rows or any(list(row) != list(rows[0]) for row in rows):
            raise ValueError("rows: wanted one or more, all with the same headings")
        self.head = list(rows[0])
        self.cells = [[_cell(value) for value in row.values()] for row in rows]

    def _repr_markdown_(self) -> str:
        return self._as("pipe", lambda text: text.replace("|", r"\|"))

    def __repr__(self) -> str:
        return self._as("simple", str)

    def _as(self, form: str, written: Callable[[str], str]) -> str:
        """Text on the left, numbers and shares on the right."""
        columns = zip(*self.cells, strict=True)
        sides = ["right" if all(map(NUMBER.fullmatch, column)) else "left" for column in columns]
        head, *cells = [[written(text) for text in row] for row in (self.head, *self.cells)]
        return tabulate(
            cells, head, form, disable_numparse=True, colalign=sides, headersalign=sides
        )


def _cell(value: object) -> str:
    if isinstance(value, Estimate):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sigma_axis(ax: Axes) -> None:
    """A logarithmic axis of noise levels."""
    ax.set_xscale("log")
    ax.set_xlabel("noise level σ")


def plot_estimates(
    ax: Axes, sigmas: Sequence[float], estimates: Sequence[Estimate], label: str, **options
) -> None:
    """A curve over σ with a band of two standard errors to either side.

    Where all means are positive the band is that of their logarithm, to first order
    mean · exp(± 2 errors / mean): on a logarithmic axis it is as wide above as below, and never
    reaches 0.

    Args:
        ax: Where to draw.
        sigmas: The noise levels.
        estimates: A mean with its standard error at each.
        label: The curve's name; one of :data:`COLOURS` gives it that colour and its marker.
        options: For the line.
    """
    options.setdefault("color", COLOURS.get(label, COLOURS["other"]))
    options.setdefault("marker", MARKERS.get(label, "o"))
    middle = np.array(estimates, dtype=float)
    error = 2 * np.array([estimate.standard_error for estimate in estimates])
    low, high = middle - error, middle + error
    if (middle > 0).all():
        low, high = middle * np.exp(-error / middle), middle * np.exp(error / middle)
    sigmas = np.asarray(sigmas, dtype=float)
    ax.plot(sigmas, middle, markersize=4, label=label, **options)
    ax.fill_between(sigmas, low, high, color=options["color"], alpha=0.2, linewidth=0)
    sigma_axis(ax)


def plot_identity(ax: Axes, sigmas: Sequence[float]) -> None:
    """The error of returning z untouched, σ² per value, as a dotted line."""
    ax.plot(sigmas, [s**2 for s in sigmas], ":", color=INK, label="not denoising at all, σ²")


def _canvas(rows: list[tuple[str, Tensor]]) -> tuple[np.ndarray, list[float]]:
    """One RGBA picture of all rows with see-through gaps, and the columns' centres."""
    if not rows:
        raise ValueError("rows: got none, wanted at least one row of images")
    shape = as_images(rows[0][1], str(rows[0][0])).shape
    m, c, h, w = shape
    if c not in (1, 3):
        raise ValueError(f"rows: got images of {c} channels, wanted 1 (grey) or 3 (colour)")
    gap = max(1, round(GAP * w))
    canvas = np.zeros((len(rows) * (h + gap) - gap, m * (w + gap) - gap, 4))
    for i, (label, images) in enumerate(rows):
        if as_images(images, str(label)).shape != shape:
            raise ValueError(f"{label}: got shape {tuple(images.shape)}, wanted {tuple(shape)}")
        pixels = ((images.detach().cpu() + 1) / 2).clamp(0, 1).expand(m, 3, h, w)
        opaque = torch.cat([pixels, torch.ones(m, 1, h, w)], dim=1).permute(0, 2, 3, 1).numpy()
        for j, image in enumerate(opaque):
            top, left = i * (h + gap), j * (w + gap)
            canvas[top : top + h, left : left + w] = image
    return canvas, [j * (w + gap) + (w - 1) / 2 for j in range(m)]
