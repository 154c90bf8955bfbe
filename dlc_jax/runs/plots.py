"""Matplotlib figures of training and its results; `save` writes one to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

# Imported first, since it ensures that Matplotlib can be imported.
from dlc_jax.utils.drawing import default_style, drawable, to_png  # isort: skip
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlc_jax.typing import AnyArray
from dlc_jax.utils.files import write_atomically
from dlc_jax.utils.text import display_width

_TRAIN, _TEST = "#1f77b4", "#d62728"
# For more classes, only colors are shown.
_READABLE_CLASSES = 50


class Images(Protocol):
    """Images by index: an array, or an object that reads them from disk."""

    def __getitem__(self, index: Any, /) -> Any: ...


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, atomically."""
    write_atomically(path, to_png(figure))


@default_style()
def curves(
    losses: Sequence[Float[np.ndarray, " steps"]],
    test_errors: Sequence[float],
    title: str,
    epochs: Sequence[int] | None = None,
) -> Figure:
    """Draws training loss and test error over the epochs.

    Args:
      losses: For each epoch, the training loss of each step, in nats.
      test_errors: For each epoch, the fraction of test examples that were misclassified.
      title: Title of the figure.
      epochs: Numbers of the epochs; by default from 1.
    """
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(_title(title), parse_math=False)
    epochs = range(1, len(test_errors) + 1) if epochs is None else epochs
    for epoch, epoch_losses in zip(epochs, losses, strict=True):
        steps = epoch - 1 + np.arange(1, len(epoch_losses) + 1) / len(epoch_losses)
        left.plot(steps, epoch_losses, color=_TRAIN, alpha=0.25, linewidth=0.5)
    means = [epoch_losses.mean() for epoch_losses in losses]
    left.plot(epochs, means, "o-", color=_TRAIN, markersize=4)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    left.set_title("each step, and the epoch's mean", fontsize="small")
    percents = 100 * np.array(test_errors)
    right.plot(epochs, percents, "o-", color=_TEST, markersize=4)
    right.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, 1.1 * max([*percents, 0.1])))
    if len(percents):
        right.set_title(f"{percents[-1]:.2f} % after the last epoch", fontsize="small")
    for axes in (left, right):
        axes.set_xlim(0, max([*epochs, 1]) + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure


@default_style()
def confusion(
    labels: Int[np.ndarray, " examples"],
    predictions: Int[np.ndarray, " examples"],
    class_names: Sequence[str],
) -> Figure:
    """Draws the confusion matrix.

    Args:
      labels: True classes.
      predictions: Predicted classes.
      class_names: Names of the classes.
    """
    classes = len(class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    # With many classes, names and numbers would be too small to read.
    readable = classes <= _READABLE_CLASSES
    side = classes if readable else 0.25 * _READABLE_CLASSES
    figure = Figure(figsize=(1.6 + 0.55 * side, 1.4 + 0.5 * side), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    # The diagonal is left out, since the mistakes would be invisible beside it.
    mistakes = np.where(np.eye(classes, dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(mistakes.max(), 1))
    for (row, column), count in np.ndenumerate(counts) if readable else ():
        if count:
            bright = mistakes[row, column] > mistakes.max() / 2
            weight = "bold" if row == column else "normal"
            axes.text(
                column, row, f"{count}", ha="center", va="center", fontsize=8, weight=weight,
                color="white" if bright else "black",
            )  # fmt: skip
    if readable:
        names = [drawable(name, 24) for name in class_names]
        rotation = 0 if max(map(display_width, names)) <= 2 else 45
        axes.set_xticks(range(classes), names, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
    wrong = counts.sum() - counts.trace()
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_title(f"{wrong:,} of {counts.sum():,} test images misclassified", fontsize="medium")
    return figure


@default_style()
def mistakes(
    images: Images,
    labels: Int[np.ndarray, " examples"],
    probabilities: Float[np.ndarray, "examples classes"],
    class_names: Sequence[str],
    max_images: int = 60,
) -> Figure:
    """Draws misclassified test images, those with the highest predicted probability first.

    Args:
      images: Test images, each uint8 [height, width, channels].
      labels: True classes.
      probabilities: Predicted probabilities.
      class_names: Names of the classes.
      max_images: Maximum number of images.
    """
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:max_images]
    columns = 10
    rows = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(columns * 0.95, 0.8 + rows * 1.2), dpi=120, layout="constrained")
    figure.suptitle(
        f"{len(shown)} of {len(wrong)} misclassified test images, the most confident first\n"
        "prediction and its probability, truth in brackets",
        fontsize="medium",
    )
    axes = figure.subplots()
    axes.axis("off")
    for position, index in enumerate(shown):
        row, column = divmod(position, columns)
        left, top = column + 0.06, 1.27 * row + 0.37
        extent = (left, left + 0.88, top + 0.88, top)
        axes.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255, extent=extent)
        predicted = predictions[index]
        percent = 100 * probabilities[index, predicted]
        prediction, truth = (
            drawable(class_names[label], 10) for label in (predicted, labels[index])
        )
        axes.text(
            column + 0.5, top - 0.03, f"{prediction}: {percent:.0f} %\n({truth})",
            ha="center", va="bottom", fontsize=7, parse_math=False,
        )  # fmt: skip
    # `imshow` has set the limits to those of the last image.
    axes.set(xlim=(0, columns), ylim=(1.27 * rows, 0), aspect="equal")
    return figure


@default_style()
def grid(images: UInt8[AnyArray, "examples height width channels"], title: str) -> Figure:
    """Draws images in rows of twelve.

    Args:
      images: The images.
      title: Title of the figure.
    """
    columns = min(12, len(images))
    rows = -(-len(images) // columns)
    count, height, width, channels = images.shape
    # One white pixel between images.
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index in range(count):
        top, left = (height + 1) * (index // columns), (width + 1) * (index % columns)
        canvas[top : top + height, left : left + width] = images[index]
    figure = Figure(figsize=(0.75 * columns, 0.5 + 0.75 * rows), dpi=120, layout="constrained")
    figure.suptitle(_title(title), fontsize="medium", parse_math=False)
    axes = figure.subplots()
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")
    return figure


@default_style()
def predictions(
    pictures: Sequence[tuple[np.ndarray, np.ndarray]], predictions: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draws pictures beside the network's input and its predictions.

    Args:
      pictures: Original and network input of each picture, uint8 [height, width, channels].
      predictions: For each picture, `image` (its path) and `probabilities`, largest first.
    """
    count = len(pictures)
    figure = Figure(figsize=(7, 0.4 + 1.5 * count), dpi=100, layout="constrained")
    rows = figure.subplots(count, 3, squeeze=False, width_ratios=(1, 1, 2))
    for axes, pair, prediction in zip(rows, pictures, predictions, strict=True):
        for panel, image in zip(axes[:2], pair, strict=True):
            panel.imshow(
                image.squeeze(axis=2) if image.shape[2] == 1 else image,
                cmap="gray",
                vmin=0,
                vmax=255,
            )
            panel.axis("off")
        name = drawable(str(prediction["image"]), 45)
        best = list(prediction["probabilities"].items())[:3]
        lines = [name, *(f"{drawable(label, 30)}  {100 * p:.1f} %" for label, p in best)]
        axes[2].axis("off")
        axes[2].text(0, 0.5, "\n".join(lines), va="center", fontsize="small", parse_math=False)
    rows[0][0].set_title("the picture", fontsize="small")
    rows[0][1].set_title("the network's input", fontsize="small")
    return figure


def _title(title: str) -> str:
    return "\n".join(drawable(line, 90) for line in title.split("\n"))
