"""Figures: what they show, and what they refuse."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from fpmc import metrics, plotting
from tests.helpers import images

mpl.use("Agg")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def closed_figures():
    plotting.use_style()
    yield
    plt.close("all")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_pixel_and_see_through_gaps(channels):
    rows = {"a": images(4, (channels, 6, 5), 0), "b": 3 * images(4, (channels, 6, 5), 1)}
    figure = plotting.image_grid(rows, [str(i) for i in range(4)])
    (picture,) = figure.axes[0].images
    canvas = np.asarray(picture.get_array())
    expected = ((rows["b"][2].clamp(-1, 1) + 1) / 2).expand(3, 6, 5).permute(1, 2, 0)
    np.testing.assert_allclose(canvas[7:13, 12:17, :3], expected, atol=1e-6)
    assert (canvas[6] == 0).all()
    assert picture.get_interpolation() == "nearest"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_labels_may_repeat():
    x = images(2, (1, 3, 3), 0)
    figure = plotting.image_grid([("same", x), ("same", -x)])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["same", "same"]


def test_a_strip_names_its_noise_levels():
    figure = plotting.sigma_strip({"z": images(3, (1, 3, 3), 0)}, [0.002, 1, 80.0])
    titles = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert titles == ["σ = 0.002", "σ = 1", "σ = 80"]


def test_masks_are_visible_on_light_and_dark_pages():
    shown = plotting.mask_image(torch.tensor([[[0.0, 1.0]]]), 3)
    assert shown.shape == (1, 3, 1, 2)
    assert -1 < shown.min() < shown.max() < 1


def test_a_curve_has_a_band_of_two_standard_errors():
    _, ax = plt.subplots()
    estimates = [
        metrics.mse(images(9, (1, 4, 4), i), images(9, (1, 4, 4), i + 5)) for i in range(2)
    ]
    plotting.plot_estimates(ax, [0.1, 1.0], estimates, "optimal")
    (line,), (band,) = ax.lines, ax.collections
    np.testing.assert_allclose(line.get_ydata(), [float(e) for e in estimates])
    heights = band.get_paths()[0].vertices[:, 1]
    ends = [e * np.exp(sign * 2 * e.standard_error / e) for e in estimates for sign in (-1, 1)]
    assert (heights.min(), heights.max()) == pytest.approx((min(ends), max(ends)))
    assert line.get_color() == plotting.COLOURS["optimal"]
    assert ax.get_xscale() == "log"


def test_where_means_are_not_positive_the_band_is_that_of_the_means():
    _, ax = plt.subplots()
    estimates = [metrics.Estimate(mean, 0.5, 9) for mean in (-1.0, 2.0)]
    plotting.plot_estimates(ax, [0.1, 1.0], estimates, "optimal")
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((-2, 3))


@pytest.mark.usefixtures("as_users_do")
@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ({}, None, "rows: got none"),
        ({"a": torch.zeros(2, 2, 3, 3)}, None, "rows: got images of 2 channels"),
        ({"a": torch.zeros(2, 1, 3, 3), "b": torch.zeros(3, 1, 3, 3)}, None, "b: got shape (3, 1,"),
        ({"a": torch.zeros(2, 1, 3, 3)}, ["x"], "columns: got 1 titles, wanted 2"),
    ],
)
def test_bad_input_is_named(rows, columns, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        plotting.image_grid(rows, columns)


def test_a_table_is_text_in_a_terminal_and_a_table_in_a_notebook():
    rows = [
        {"method": "LS", "error": metrics.Estimate(0.0125, 0.00071, 9), "left": 0.51239},
        {"method": "ELS", "error": metrics.Estimate(2.0, 0.5, 9), "left": 1.0},
    ]
    table = plotting.Table(rows)
    assert "0.01250 ± 0.00071" in repr(table)
    head, rule, first, second = table._repr_markdown_().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["method", "error", "left"]
    assert rule.startswith("|:-")  # text stands on the left
    assert rule.endswith("-:|")  # numbers on the right
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "LS",
        "0.01250 ± 0.00071",
        "0.512",
    ]
    assert "ELS" in second


def test_a_bar_in_a_tables_heading_or_cell_is_text():
    table = plotting.Table([{"|A| / |D|": "1", "of": "|x|"}])
    assert repr(table).splitlines()[0].split() == ["|A|", "/", "|D|", "of"]
    for line in table._repr_markdown_().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_a_table_has_rows_with_the_same_headings(rows):
    with pytest.raises(ValueError, match="rows: wanted one or more"):
        plotting.Table(rows)


def test_names_that_end_in_digits_are_text_and_a_dash_is_a_number_that_is_missing():
    rows = [{"method": "LS, p = 7", "share": "30 %", "loop": "–"}]
    rows += [{"method": "LS, p = 15", "share": "– %", "loop": "1,234"}]
    _, rule, *_ = plotting.Table(rows)._repr_markdown_().splitlines()
    left, *numbers = rule.strip("|").split("|")
    assert left.startswith(":")
    assert all(side.endswith(":") for side in numbers)


def test_numbers_in_bold_with_a_mark_or_a_unit_stand_on_the_right():
    rows = [{"gain": "**0.1 ± 0.02**", "ratio": "0.97 ?", "time": "3 ms", "data": "a day"}]
    rows += [{"gain": "-0.1 ± 0.02", "ratio": "1.00", "time": "0.2 h", "data": "3 days ago"}]
    _, rule, *_ = plotting.Table(rows)._repr_markdown_().splitlines()
    *numbers, text = rule.strip("|").split("|")
    assert all(side.endswith(":") for side in numbers)
    assert text.startswith(":")


def contrast(one, other):
    """Of two colours, by WCAG 2.2: 1 for equal ones, 21 for black on white."""

    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return linear @ np.array([0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_curves_stand_out_on_pages_of_any_theme():
    plotting.use_style()
    css = (ROOT / "book" / "_static" / "fpmc.css").read_text()
    page = plt.rcParams["figure.facecolor"]
    assert plt.rcParams["savefig.facecolor"] == page
    assert to_rgb(page) == to_rgb(re.search(r"background-color: (#\w{6})", css)[1])  # its margin
    assert contrast(plotting.INK, page) >= 4.5
    for name, colour in plotting.COLOURS.items():
        assert contrast(colour, page) >= 3, name


@pytest.mark.parametrize(("theme", "row"), [("light", "#f3f4f5"), ("dark", "#29313d")])
def test_links_stand_out_on_every_second_row_of_a_table(theme, row):
    css = (ROOT / "book" / "_static" / "fpmc.css").read_text()
    link = re.search(rf'html\[data-theme="{theme}"\] {{\n  --pst-color-link: (#\w{{6}});', css)[1]
    assert contrast(link, row) >= 4.5


def test_a_colour_has_a_marker_of_its_own():
    assert len(set(plotting.MARKERS.values())) == len(plotting.COLOURS)
    assert len(set(plotting.COLOURS.values())) == len(plotting.COLOURS)
