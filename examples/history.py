"""The history of convnets in a figure: parameters, operations and errors.

Draws operations against parameters for every network of this package, and errors on ImageNet
against operations, after the slide on the analysis of deep networks (Canziani et al. 2016).
Operations and parameters are computed; the errors are published ones.

Usage: python examples/history.py [PICTURE]
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlc_jax import models
from dlc_jax.errors import InputError
from dlc_jax.models import summary
from dlc_jax.runs import plots
from dlc_jax.utils import progress_bar
from dlc_jax.utils.drawing import default_style

# Top-1 error in percent, one crop of 224x224, of the weights that torchvision publishes
# (IMAGENET1K_V1, from its table of models).
ONE_CROP = {
    "alexnet": 43.478,
    "vgg11": 30.980,
    "vgg13": 30.072,
    "vgg16": 28.408,
    "vgg19": 27.624,
    "vgg11-bn": 29.630,
    "vgg13-bn": 28.414,
    "vgg16-bn": 26.640,
    "vgg19-bn": 25.782,
    "googlenet": 30.222,
    "resnet18": 30.242,
    "resnet34": 26.686,
    "resnet50": 23.870,
    "resnet101": 22.626,
    "resnet152": 21.688,
}
# Top-1 error in percent of single networks, many crops: the slide's table (He et al. 2015, table
# 4). Its VGG is the deepest, VGG-19; its ResNet-34 has shortcuts B.
MANY_CROPS = {
    "vgg19": 24.4,
    "prelu-net": 21.59,
    "bn-inception": 21.99,
    "resnet34": 21.84,
    "resnet50": 20.74,
    "resnet101": 19.87,
    "resnet152": 19.38,
}


def main(picture: str = "history.png") -> None:
    described = []
    with progress_bar.stages() as bar:
        for count, name in enumerate(models.names()):
            bar(name, count, len(models.names()))
            described.append(summary.describe(name))
    errors = {"one crop (torchvision's weights)": ONE_CROP, "many crops (He et al.)": MANY_CROPS}
    plots.save(draw(described, errors), Path(picture))
    years = [row["year"] for row in described]
    print(f"{len(described)} networks from {min(years)} to {max(years)}: {picture}")


@default_style()
def draw(described: Sequence[dict[str, Any]], errors: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the parameters, operations and errors of networks, after Canziani et al. 2016.

    Args:
      described: Descriptions of the networks by `dlc_jax.models.summary.describe`.
      errors: The networks' errors in percent, for each of two kinds of measurement.
    """
    figure = Figure(figsize=(13, 6.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in described if row["parameters"] and row["multiply_adds"]]
    costs = {row["name"]: (row["parameters"], row["multiply_adds"]) for row in rows}
    years = [row["year"] for row in rows]
    scatter = left.scatter(*zip(*costs.values(), strict=True), c=years, cmap="viridis", s=28)
    figure.colorbar(scatter, ax=left, label="year")
    left.set(xscale="log", yscale="log", xlabel="parameters", ylabel="multiply-adds per image")
    left.set_title("each network on the images of its paper", fontsize="small")
    # Networks with batch normalization have almost the same costs as those without.
    left_labels = [(name, cost) for name, cost in costs.items() if not name.endswith("-bn")]
    right_labels: list[tuple[str, tuple[float, float]]] = []
    for marker, colour, (kind, percents) in zip(
        "os", ("#1f77b4", "#d62728"), errors.items(), strict=True
    ):
        points = [(costs[name][1] / 1e9, error) for name, error in percents.items()]
        sizes = [costs[name][0] / 1e6 for name in percents]
        style: dict[str, Any] = {"marker": marker, "color": colour, "alpha": 0.5, "label": kind}
        right.scatter(*zip(*points, strict=True), s=sizes, **style)
        right_labels += zip(percents, points, strict=True)
    right.set(xscale="log", xlabel="billion multiply-adds per image", ylabel="top-1 error (%)")
    right.set_title("error on ImageNet; areas are parameters", fontsize="small")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    figure.draw_without_rendering()
    for axes, labels in ((left, left_labels), (right, right_labels)):
        _label_points(axes, labels, 72 / figure.dpi)
    return figure


def _label_points(
    axes: Axes, points: Sequence[tuple[str, tuple[float, float]]], scale: float
) -> None:
    """Writes names beside points, where they overlap other points and names least.

    Args:
      axes: Axes with their final layout.
      points: Names and coordinates.
      scale: Size of a pixel in points (1/72 inch).
    """
    centres = [axes.transData.transform(point) * scale for _, point in points]
    boxes = [(x - 3.0, y - 3.0, x + 3.0, y + 3.0) for x, y in centres]
    for (name, point), (x, y) in zip(points, centres, strict=True):
        width, height = 3.8 * len(name), 7.0
        candidates = []
        for right, up in itertools.product((6.0, -6.0 - width), (0, 1, -1, 2, -2, 3, -3)):
            bottom = y + (up - 0.5) * height
            candidates.append((x + right, bottom, x + right + width, bottom + height))
        box = min(candidates, key=lambda box: sum(_overlap(box, other) for other in boxes))
        boxes.append(box)
        axes.annotate(
            name,
            point,
            xytext=(box[0] - x, box[1] - y + 1),
            textcoords="offset points",
            fontsize=6.5,
            in_layout=False,
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"history.py: {error}")
