"""Explanations as figures.

Signed images have zero at mid-grey and a range that is as far below it as above; each picture
states the range of what it shows, and how values of each kind are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# First, as it sees to it that Matplotlib can be imported.
from dlc_jax.utils.drawing import displayed, own_style

Kind = Literal["pixels", "signed", "heat", "probability"]

# Inches: an image's width, a line of text above it, and the margins.
_SIZE, _LINE, _MARGIN, _ROW_TITLES = 1.15, 0.14, 0.12, 1.0
_LEGENDS: dict[Kind, str] = {
    "pixels": "images: 0 black, 1 white",
    "signed": "signed: mid-grey is 0, black and white the range's ends",
    "heat": "heat: black is 0, pale yellow the range's end",
    "probability": "probabilities: black is 0, pale yellow is 1",
}


@dataclass(frozen=True)
class Cell:
    """One image of a picture.

    Attributes:
      values: [height, width] or [height, width, channels].
      kind: "pixels", from 0 to 1; "signed", with zero at mid-grey; "heat", from zero up; or
        "probability", from 0 to 1.
      title: what stands above it.
      box: rows and columns (top, bottom, left, right) of a rectangle to draw, or None.
      under: of heat, the image that it is laid over, or None.
    """

    values: Float[np.ndarray, "height width *channels"]
    kind: Kind = "pixels"
    title: str = ""
    box: tuple[int, int, int, int] | None = None
    under: Float[np.ndarray, "height width channels"] | None = None


def cells(
    images: Any, kind: Kind = "pixels", titles: Sequence[str] = (), *, under: Any = None
) -> list[Cell]:
    """A row of images of one kind.

    Args:
      images: [images, height, width] or [images, height, width, channels].
      kind: see `Cell`.
      titles: what stands above each, or nothing.
      under: see `Cell`; [images, height, width, channels].
    """
    images = np.asarray(images, np.float32)
    texts = titles or [""] * len(images)
    below = [None] * len(images) if under is None else under
    return [
        Cell(image, kind, text, under=beneath)
        for image, text, beneath in zip(images, texts, below, strict=True)
    ]


@own_style()
def rows_of_images(
    rows: Sequence[Sequence[Cell]], title: str, *, row_titles: Sequence[str] = ()
) -> Figure:
    """Images in rows and columns.

    Args:
      rows: what stands in each row, at least one image; rows may be of different lengths.
      title: what the picture shows.
      row_titles: what stands at the left of each row.
    """
    columns = max(len(row) for row in rows)
    left = _ROW_TITLES if row_titles else _MARGIN
    heights = [_height(row) for row in rows]
    kinds = dict.fromkeys(cell.kind for row in rows for cell in row)
    legend = "\n".join(_LEGENDS[kind] for kind in kinds)
    top, bottom = 0.42, 0.16 * len(kinds) + _MARGIN
    # The least width is that of the title and the legend.
    width = max(left + (_SIZE + _MARGIN) * columns, 4.6)
    height = top + sum(heights) + bottom
    figure = Figure(figsize=(width, height), dpi=110)
    figure.suptitle(title, fontsize="large", y=1 - 0.12 / height, va="top", parse_math=False)
    figure.text(0.5, 0.06 / height, legend, ha="center", va="bottom", fontsize=8, color="#555555")
    start = (width - left - (_SIZE + _MARGIN) * columns) / 2 + left
    base = height - top
    for place, row in enumerate(rows):
        base -= heights[place]
        for column, cell in enumerate(row):
            x = start + column * (_SIZE + _MARGIN)
            axes = figure.add_axes(
                (x / width, base / height, _SIZE / width, _SIZE * _aspect(cell) / height)
            )
            axes.axis("off")
            draw(axes, cell)
        if row_titles:
            middle = base + _SIZE * _aspect(row[0]) / 2
            figure.text(
                (start - 0.08) / width,
                middle / height,
                row_titles[place],
                ha="right",
                va="center",
                fontsize=9,
                parse_math=False,
            )
    return figure


def _aspect(cell: Cell) -> float:
    height, width = cell.values.shape[:2]
    return height / width


def _height(row: Sequence[Cell]) -> float:
    """Of a row with its titles, in inches."""
    lines = max(len(_lines(cell)) for cell in row)
    return _SIZE * max(map(_aspect, row)) + _LINE * lines + _MARGIN


def _lines(cell: Cell) -> list[str]:
    """What stands above an image: its title, and its range where that is not an image's own."""
    lines = cell.title.split("\n") if cell.title else []
    return lines if cell.kind == "pixels" else [*lines, _range(cell)]


def _range(cell: Cell) -> str:
    least, most = float(np.min(cell.values)), float(np.max(cell.values))
    if cell.kind == "probability":
        return f"{least:.2f} to {most:.2f}"
    if least == most == 0:
        return "0 everywhere"
    largest = _figure(_largest(cell.values))
    return f"±{largest}" if cell.kind == "signed" else f"0 to {largest}"


@own_style()
def draw(axes: Axes, cell: Cell) -> None:
    """Draws one image, with its title and its range."""
    values = np.asarray(cell.values, np.float32)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if cell.kind == "pixels":
        axes.imshow(values.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    elif cell.kind == "signed":
        shown = 0.5 + values / (2 * _largest(values))
        axes.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1)
    else:
        most = 1 if cell.kind == "probability" else _largest(values)
        if cell.under is not None:
            axes.imshow(cell.under.mean(-1), cmap="gray", vmin=0, vmax=1)
        axes.imshow(
            values, cmap="magma", vmin=0, vmax=most, alpha=None if cell.under is None else 0.6
        )
    if cell.box is not None:
        top, bottom, left, right = cell.box
        xs = np.array([left, right, right, left, left]) - 0.5
        ys = np.array([top, top, bottom, bottom, top]) - 0.5
        axes.plot(xs, ys, color="#d62728", linewidth=1)
    axes.set_title("\n".join(_lines(cell)), fontsize=8, pad=2, parse_math=False)


def maps_in_a_square(maps: Float[np.ndarray, "height width maps"]) -> Cell:
    """Feature maps side by side, about as many rows as columns, with a line between them."""
    height, width, count = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), np.float32)
    for place in range(count):
        top, left = (height + 1) * (place // columns), (width + 1) * (place % columns)
        canvas[top : top + height, left : left + width] = maps[..., place]
    return Cell(canvas, "signed" if maps.min() < 0 else "heat")


@own_style()
def curves(
    x: Float[np.ndarray, " points"],
    values: Float[np.ndarray, "points curves"],
    names: Sequence[str],
    title: str,
    **settings: Any,
) -> Figure:
    """Curves beside a legend.

    Args:
      x: what they are drawn over.
      values: a column a curve.
      names: what the curves are.
      title: what the picture shows.
      **settings: `xlabel`, `ylabel`, `xscale` and the like, as for `Axes.set`.
    """
    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for curve in values.T:
        axes.plot(x, curve, linewidth=1.2, marker="." if len(x) < 20 else "")
    axes.set(**settings)
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3)
    # Names are set afterwards: Matplotlib leaves out those that begin with an underscore.
    places = [str(place) for place in range(len(names))]
    legend = axes.legend(axes.lines, places, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(displayed(name, 40))
        text.set_parse_math(False)
    return figure


def _largest(values: Float[np.ndarray, "..."]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    # An image of zeros has a range, too.
    return max(float(finite.max(initial=0)), 1e-30)


def _figure(value: float) -> str:
    return f"{value:.2g}"
