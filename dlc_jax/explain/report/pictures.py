"""Figures of explanations.

Zero is mid-gray in signed images, and their range is symmetric. Each figure states the ranges of
its images and how values are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlc_jax.utils.drawing import default_style, drawable

ImageKind: TypeAlias = Literal["pixels", "signed", "heatmap", "probability"]

# Width of an image, height of a line above it, margin, and width of row titles, in inches.
_SIZE, _LINE, _MARGIN, _ROW_TITLES = 1.15, 0.14, 0.12, 1.0
_LEGENDS: dict[ImageKind, str] = {
    "pixels": "images: 0 black, 1 white",
    "signed": "signed: 0 mid-gray, ends of the range black and white",
    "heatmap": "heatmaps: 0 black, end of the range pale yellow",
    "probability": "probabilities: 0 black, 1 pale yellow",
}


@dataclass(frozen=True)
class ImageCell:
    """One image of a grid.

    Attributes:
      values: [height, width] or [height, width, channels].
      kind: "pixels", from 0 to 1; "signed"; "heatmap", non-negative; or "probability", from 0 to 1.
      title: Text above the image.
      box: Rectangle to draw (top, bottom, left, right), or None.
      background: Image below a heatmap, or None.
    """

    values: Float[np.ndarray, "height width *channels"]
    kind: ImageKind = "pixels"
    title: str = ""
    box: tuple[int, int, int, int] | None = None
    background: Float[np.ndarray, "height width channels"] | None = None


def image_row(
    images: Any, kind: ImageKind = "pixels", titles: Sequence[str] = (), *, background: Any = None
) -> list[ImageCell]:
    """Returns cells of images of one kind.

    Args:
      images: [images, height, width] or [images, height, width, channels].
      kind: See `ImageCell`.
      titles: Texts above the images, or none.
      background: Images below heatmaps, [images, height, width, channels].

    Example:
      >>> import numpy as np
      >>> [cell.title for cell in image_row(np.zeros((2, 8, 8, 1)), titles=["a", "b"])]
      ['a', 'b']
    """
    images = np.asarray(images, np.float32)
    titles = titles or [""] * len(images)
    backgrounds = [None] * len(images) if background is None else background
    return [
        ImageCell(image, kind, title, background=below)
        for image, title, below in zip(images, titles, backgrounds, strict=True)
    ]


@default_style()
def image_grid(
    rows: Sequence[Sequence[ImageCell]], title: str, *, row_titles: Sequence[str] = ()
) -> Figure:
    """Draws images in rows and columns.

    Args:
      rows: Rows with at least one image each; their lengths may differ.
      title: Title of the figure.
      row_titles: Texts to the left of the rows, or none.
    """
    columns = max(len(row) for row in rows)
    left = _ROW_TITLES if row_titles else _MARGIN
    heights = [_row_height(row) for row in rows]
    kinds = dict.fromkeys(cell.kind for row in rows for cell in row)
    legend = "\n".join(_LEGENDS[kind] for kind in kinds)
    top, bottom = 0.42, 0.16 * len(kinds) + _MARGIN
    # At least as wide as the title and the legend.
    width = max(left + (_SIZE + _MARGIN) * columns, 4.6)
    height = top + sum(heights) + bottom
    figure = Figure(figsize=(width, height), dpi=110)
    figure.suptitle(title, fontsize="large", y=1 - 0.12 / height, va="top", parse_math=False)
    figure.text(0.5, 0.06 / height, legend, ha="center", va="bottom", fontsize=8, color="#555555")
    start = (width - left - (_SIZE + _MARGIN) * columns) / 2 + left
    base = height - top
    for index, row in enumerate(rows):
        base -= heights[index]
        for column, cell in enumerate(row):
            x = start + column * (_SIZE + _MARGIN)
            axes = figure.add_axes(
                (x / width, base / height, _SIZE / width, _SIZE * _aspect(cell) / height)
            )
            axes.axis("off")
            draw_cell(axes, cell)
        if row_titles:
            middle = base + _SIZE * _aspect(row[0]) / 2
            figure.text(
                (start - 0.08) / width,
                middle / height,
                row_titles[index],
                ha="right",
                va="center",
                fontsize=9,
                parse_math=False,
            )
    return figure


def _aspect(cell: ImageCell) -> float:
    height, width = cell.values.shape[:2]
    return height / width


def _row_height(row: Sequence[ImageCell]) -> float:
    """Height of a row with its titles, in inches."""
    lines = max(len(_title_lines(cell)) for cell in row)
    return _SIZE * max(map(_aspect, row)) + _LINE * lines + _MARGIN


def _title_lines(cell: ImageCell) -> list[str]:
    """Title of an image, and its range unless it shows pixels."""
    lines = cell.title.split("\n") if cell.title else []
    return lines if cell.kind == "pixels" else [*lines, _format_range(cell)]


def _format_range(cell: ImageCell) -> str:
    low, high = float(np.min(cell.values)), float(np.max(cell.values))
    if cell.kind == "probability":
        return f"{low:.2f} to {high:.2f}"
    if low == high == 0:
        return "all 0"
    largest = f"{_max_abs(cell.values):.2g}"
    return f"±{largest}" if cell.kind == "signed" else f"0 to {largest}"


@default_style()
def draw_cell(axes: Axes, cell: ImageCell) -> None:
    """Draws one image, with its title and its range."""
    values = np.asarray(cell.values, np.float32)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if cell.kind == "pixels":
        axes.imshow(values.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    elif cell.kind == "signed":
        scaled = 0.5 + values / (2 * _max_abs(values))
        axes.imshow(scaled.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    else:
        high = 1 if cell.kind == "probability" else _max_abs(values)
        alpha = None
        if cell.background is not None:
            axes.imshow(cell.background.mean(-1), cmap="gray", vmin=0, vmax=1)
            alpha = 0.6
        axes.imshow(values, cmap="magma", vmin=0, vmax=high, alpha=alpha)
    if cell.box is not None:
        top, bottom, left, right = cell.box
        xs = np.array([left, right, right, left, left]) - 0.5
        ys = np.array([top, top, bottom, bottom, top]) - 0.5
        axes.plot(xs, ys, color="#d62728", linewidth=1)
    axes.set_title("\n".join(_title_lines(cell)), fontsize=8, pad=2, parse_math=False)


def feature_map_cell(maps: Float[np.ndarray, "height width maps"]) -> ImageCell:
    """Arranges feature maps in a square, with lines between them.

    Example:
      >>> import numpy as np
      >>> feature_map_cell(np.zeros((5, 5, 4))).values.shape
      (11, 11)
    """
    height, width, count = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), np.float32)
    for index in range(count):
        top, left = (height + 1) * (index // columns), (width + 1) * (index % columns)
        canvas[top : top + height, left : left + width] = maps[..., index]
    return ImageCell(canvas, "signed" if maps.min() < 0 else "heatmap")


@default_style()
def line_plot(
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, "points lines"],
    names: Sequence[str],
    title: str,
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Draws lines with a legend to the right.

    Args:
      x: Horizontal positions.
      y: Vertical positions, a column for each line.
      names: Names of the lines.
      title: Title of the figure.
      xlabel: Label of the horizontal axis.
      ylabel: Label of the vertical axis.
      xscale: Scale of the horizontal axis, as for Matplotlib.
      ylim: Limits of the vertical axis, or None.
    """
    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for line in y.T:
        axes.plot(x, line, linewidth=1.2, marker="." if len(x) < 20 else "")
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
    if ylim is not None:
        axes.set_ylim(ylim)
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3)
    # Names are set afterwards, since Matplotlib omits those that begin with an underscore.
    labels = [str(index) for index in range(len(names))]
    legend = axes.legend(axes.lines, labels, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(drawable(name, 40))
        text.set_parse_math(False)
    return figure


def _max_abs(values: Float[np.ndarray, "..."]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    # Above zero, since values are divided by it.
    return max(float(finite.max(initial=0)), 1e-30)
