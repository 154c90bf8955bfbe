"""Pictures of training and its results, as Matplotlib figures; `save` writes one."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

# First, as it sees to it that Matplotlib can be imported.
from dlc_jax.utils.drawing import displayed, own_style, png
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from dlc_jax.utils.files import write_atomically
from dlc_jax.utils.text import width

_TRAIN, _TEST = "#1f77b4", "#d62728"
# Of more of them only colours are shown.
_READABLE_CLASSES = 50


class Images(Protocol):
    """Images by their places: an array, or what reads them from disk."""

    def __getitem__(self, place: Any, /) -> Any: ...


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, atomically."""
    write_atomically(path, png(figure))


@own_style()
def curves(
    losses: Sequence[Float[np.ndarray, " steps"]], test_errors: Sequence[float], title: str
) -> Figure:
    """Training loss and test error over the epochs.

    Args:
      losses: for each epoch, the training loss of each step, in nats.
      test_errors: for each epoch, the fraction of test examples that were misclassified.
      title: what was trained.
    """
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(_title(title), parse_math=False)
    epochs = np.arange(1, len(test_errors) + 1)
    for epoch, of_epoch in zip(epochs, losses, strict=True):
        steps = epoch - 1 + np.arange(1, len(of_epoch) + 1) / len(of_epoch)
        left.plot(steps, of_epoch, color=_TRAIN, alpha=0.25, linewidth=0.5)
    left.plot(epochs, [of_epoch.mean() for of_epoch in losses], "o-", color=_TRAIN, markersize=4)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    left.set_title("each step, and the epoch's mean", fontsize="small")
    percents = 100 * np.array(test_errors)
    right.plot(epochs, percents, "o-", color=_TEST, markersize=4)
    right.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, 1.1 * max([*percents, 0.1])))
    if len(percents):
        right.set_title(f"{percents[-1]:.2f} % after the last epoch", fontsize="small")
    for axes in (left, right):
        axes.set_xlim(0, max(len(epochs), 1) + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure


@own_style()
def confusion(
    labels: Int[np.ndarray, " examples"],
    predictions: Int[np.ndarray, " examples"],
    class_names: Sequence[str],
) -> Figure:
    """How often each class was taken for each other."""
    classes = len(class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    # Of many classes neither names nor numbers can be read.
    readable = classes <= _READABLE_CLASSES
    side = classes if readable else 0.25 * _READABLE_CLASSES
    figure = Figure(figsize=(1.6 + 0.55 * side, 1.4 + 0.5 * side), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    # The diagonal would drown the mistakes, which are what one looks for.
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
        names = [displayed(name, 24) for name in class_names]
        rotation = 0 if max(map(width, names)) <= 2 else 45
        axes.set_xticks(range(classes), names, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
    wrong = counts.sum() - counts.trace()
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_title(f"{wrong:,} of {counts.sum():,} test images misclassified", fontsize="medium")
    return figure


@own_style()
def mistakes(
    images: Images,
    labels: Int[np.ndarray, " examples"],
    probabilities: Float[np.ndarray, "examples classes"],
    class_names: Sequence[str],
    most: int = 60,
) -> Figure:
    """The test images that the network got wrong, the surest of its mistakes first.

    Args:
      images: the test images, each uint8 [height, width, channels] by its place.
      labels: their classes.
      probabilities: the network's, for each class.
      class_names: what the classes are called.
      most: how many to show at most.
    """
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:most]
    columns = 10
    rows = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(columns * 0.95, 0.8 + rows * 1.2), dpi=120, layout="constrained")
    figure.suptitle(
        f"{len(shown)} of {len(wrong)} misclassified test images, the surest first\n"
        "prediction and its probability, truth in brackets",
        fontsize="medium",
    )
    axes = figure.subplots()
    axes.axis("off")
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = column + 0.06, 1.27 * row + 0.37
        extent = (left, left + 0.88, top + 0.88, top)
        axes.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255, extent=extent)
        predicted = predictions[index]
        percent = 100 * probabilities[index, predicted]
        said, truth = (displayed(class_names[label], 10) for label in (predicted, labels[index]))
        axes.text(
            column + 0.5, top - 0.03, f"{said}: {percent:.0f} %\n({truth})",
            ha="center", va="bottom", fontsize=7, parse_math=False,
        )  # fmt: skip
    # Each imshow fitted the axes to its own image.
    axes.set(xlim=(0, columns), ylim=(1.27 * rows, 0), aspect="equal")
    return figure


@own_style()
def grid(images: UInt8[np.ndarray, "examples height width channels"], title: str) -> Figure:
    """Images side by side, twelve in a row.

    Args:
      images: as many as are shown.
      title: what they are.
    """
    columns = min(12, len(images))
    rows = -(-len(images) // columns)
    count, height, width, channels = images.shape
    # A pixel of white between neighbours.
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for place in range(count):
        top, left = (height + 1) * (place // columns), (width + 1) * (place % columns)
        canvas[top : top + height, left : left + width] = images[place]
    figure = Figure(figsize=(0.75 * columns, 0.5 + 0.75 * rows), dpi=120, layout="constrained")
    figure.suptitle(_title(title), fontsize="medium", parse_math=False)
    axes = figure.subplots()
    axes.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")
    return figure


@own_style()
def answers(
    pictures: Sequence[tuple[np.ndarray, np.ndarray]], predictions: Sequence[Mapping[str, Any]]
) -> Figure:
    """Pictures, what a network got of each, and what it takes them for.

    Args:
      pictures: each one's original and the network's input, uint8 [height, width, channels].
      predictions: for each picture, `image` (its path) and `probabilities`, largest first.
    """
    count = len(pictures)
    figure = Figure(figsize=(7, 0.4 + 1.5 * count), dpi=100, layout="constrained")
    rows = figure.subplots(count, 3, squeeze=False, width_ratios=(1, 1, 2))
    for axes, pair, prediction in zip(rows, pictures, predictions, strict=True):
        for place, image in zip(axes[:2], pair, strict=True):
            place.imshow(
                image.squeeze(axis=2) if image.shape[2] == 1 else image,
                cmap="gray",
                vmin=0,
                vmax=255,
            )
            place.axis("off")
        name = displayed(str(prediction["image"]), 45)
        best = list(prediction["probabilities"].items())[:3]
        lines = [name, *(f"{displayed(label, 30)}  {100 * p:.1f} %" for label, p in best)]
        axes[2].axis("off")
        axes[2].text(0, 0.5, "\n".join(lines), va="center", fontsize="small", parse_math=False)
    rows[0][0].set_title("the picture", fontsize="small")
    rows[0][1].set_title("the network's input", fontsize="small")
    return figure


@own_style()
def epoch_bars(seconds: dict[str, Sequence[float]], reference: float, title: str) -> Figure:
    """Seconds of ten epochs by contender, with a reference as the line to beat.

    Args:
      seconds: for each contender, the seconds of each epoch.
      reference: seconds of ten epochs.
      title: what was measured, and on what.
    """
    names = list(seconds)
    figure = Figure(figsize=(7.5, 1.4 + 0.5 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    tens = [10 * float(np.median(of_one)) for of_one in seconds.values()]
    spread = [
        [ten - 10 * min(of_one) for ten, of_one in zip(tens, seconds.values(), strict=True)],
        [10 * max(of_one) - ten for ten, of_one in zip(tens, seconds.values(), strict=True)],
    ]
    colours = [_TEST if name == "dlc_jax" else _TRAIN for name in names]
    axes.barh(names, tens, xerr=spread, color=colours, height=0.6, error_kw={"capsize": 3})
    for place, ten in enumerate(tens):
        axes.text(ten, place - 0.33, f" {ten:.3g} s", va="center", fontsize=8)
    axes.axvline(reference, color="black", linestyle="--", linewidth=1)
    axes.text(reference, -0.62, f" GTX 1080: {reference:.3g} s", fontsize=8, va="bottom")
    axes.set(xlabel="seconds for ten epochs (median; lines from least to most)", xlim=(0, None))
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.set_title(_title(title), fontsize="medium", parse_math=False)
    return figure


@own_style()
def ratio_bars(ratios: dict[str, float], mean: float, rival: str, title: str) -> Figure:
    """How many times a rival's time is of ours, by operation, on a logarithmic axis.

    Args:
      ratios: for each operation, the rival's time over ours.
      mean: their geometric mean.
      rival: its name.
      title: what was measured, and on what.
    """
    names = list(ratios)
    figure = Figure(figsize=(7.5, 1.2 + 0.26 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = [_TEST if ratio >= 1 else "grey" for ratio in ratios.values()]
    # From 1 on, so that what is slower goes to the left.
    axes.barh(names, [ratio - 1 for ratio in ratios.values()], left=1, color=colours, height=0.7)
    for place, ratio in enumerate(ratios.values()):
        axes.text(max(ratio, 1), place, f" {ratio:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(mean, color="black", linewidth=1, linestyle="--")
    axes.text(mean, -0.9, f" geometric mean {mean:.2f}", fontsize=7, va="bottom")
    most, least = max([*ratios.values(), 1]), min([*ratios.values(), 1])
    axes.set(xscale="log", xlim=(0.8 * least, 1.5 * most), ylim=(len(names) - 0.4, -1.8))
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16) if 0.8 * least <= tick <= 1.5 * most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(f"{rival}'s time over ours, forward and both gradients")
    axes.set_title(_title(title), fontsize="medium", parse_math=False)
    return figure


class Bound(NamedTuple):
    """What a batch costs computers that share it.

    Attributes:
      title: whose.
      seconds: of the computation by one of them.
      images: in the batch; no more computers can share it.
      size: of the gradients, in bytes.
      links: for each interconnect, its bytes a second in one direction and its latency in seconds.
    """

    title: str
    seconds: float
    images: int
    size: int
    links: Mapping[str, tuple[float, float]]


@own_style()
def scaling(measured: Sequence[dict[str, Any]], cores: int, device: str) -> Figure:
    """Images a second against the number of devices, which share a batch or have one each.

    Args:
      measured: as `dlc_jax.benchmark.scaling.run` returns it.
      cores: how many there are, beyond which nothing can be gained.
      device: what it was measured on.
    """
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    figure.suptitle(
        f"The lecture network's training on {displayed(device, 80)}",
        fontsize="medium",
        parse_math=False,
    )
    most = max(row["count"] for row in measured)
    single = measured[0]["weak"]["images_per_s"]
    for axes, (scaling, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("weak", "a batch of {} for each device"), ("strong", "a batch of {} for all together")),
        strict=True,
    ):
        ideal = [single * min(count, cores) for count in (1, cores, max(most, cores))]
        axes.plot(
            [1, cores, max(most, cores)], ideal, "--", color="grey",
            label=f"one device's rate times the cores used, {cores} at most",
        )  # fmt: skip
        for kind, marker, colour, label in (
            ("devices", "o", _TRAIN, "devices of one process"),
            ("processes", "s", _TEST, "processes of one device"),
        ):
            rows = [row for row in measured if row["kind"] == kind or row["count"] == 1]
            rates = [row[scaling]["images_per_s"] for row in rows]
            axes.plot(
                [row["count"] for row in rows], rates, f"{marker}-", color=colour, label=label
            )
        ticks = sorted({row["count"] for row in measured})
        axes.set(xscale="log", xlabel="devices", xlim=(0.9, 1.1 * max(most, cores)))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title.format(measured[0][scaling]["batch_size"]), fontsize="small")
        axes.grid(alpha=0.3)
        axes.set_ylim(0, None)
    figure.axes[0].set_ylabel("images a second")
    figure.axes[0].yaxis.set_major_formatter("{x:,.0f}")
    figure.axes[0].legend(fontsize="small", loc="lower left")
    return figure


@own_style()
def bounds(panels: Sequence[Sequence[Bound]]) -> Figure:
    """Time to compute and to communicate against the number of devices that share a batch.

    Args:
      panels: rows of them.
    """
    rows, columns = len(panels), len(panels[0])
    figure = Figure(figsize=(4 * columns, 0.6 + 3.2 * rows), dpi=110, layout="constrained")
    flat = list(itertools.chain.from_iterable(panels))
    most = max(panel.images for panel in flat)
    names = dict.fromkeys(name for panel in flat for name in panel.links)
    colours = {name: f"C{place}" for place, name in enumerate(names)}
    for axes, panel in zip(
        np.ravel(figure.subplots(rows, columns, squeeze=False)), flat, strict=True
    ):
        _bound(axes, panel, np.arange(2, most + 1), colours)
        axes.set(xscale="log", yscale="log", xlim=(2, 1.1 * most))
        ticks = [2**power for power in range(1, 20) if 2**power <= most]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    # Each of them once, whichever panels have it.
    named = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    legend = {label: line for line, label in itertools.chain.from_iterable(named)}
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=4, fontsize="small"
    )
    return figure


def _bound(
    axes: Axes, panel: Bound, counts: Int[np.ndarray, " counts"], colours: Mapping[str, str]
) -> None:
    shares = counts <= panel.images
    computing = 1e3 * panel.seconds / counts
    axes.plot(counts[shares], computing[shares], color="black", label="computation")
    for name, (rate, latency) in panel.links.items():
        reducing = 2e3 * (counts - 1) * (panel.size / counts / rate + latency)
        axes.plot(counts, reducing, color=colours[name], label=f"all-reduce over {name}")
        bound = np.flatnonzero(shares & (reducing >= computing))
        # Where already the first ones are, there is no crossing to show.
        if len(bound) and bound[0]:
            at = bound[0]
            axes.plot(counts[at], reducing[at], "o", color=colours[name], markersize=5)
            axes.annotate(
                str(counts[at]), (counts[at], reducing[at]), xytext=(4, 4),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
    axes.set_title(panel.title, fontsize="small", parse_math=False)
    axes.set_xlabel(f"devices that share {panel.images} images", fontsize="small")
    axes.set_ylabel("milliseconds", fontsize="small")
    axes.grid(alpha=0.3)


@own_style()
def history(
    described: Sequence[dict[str, Any]], errors: Mapping[str, Mapping[str, float]]
) -> Figure:
    """What networks cost, and what it buys, after Canziani et al. 2016.

    Args:
      described: the networks, as `dlc_jax.models.report.describe` returns them.
      errors: for each of two kinds of measurement, networks' errors in percent.
    """
    figure = Figure(figsize=(13, 6.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in described if row["parameters"] and row["multiply_adds"]]
    costs = {row["name"]: (row["parameters"], row["multiply_adds"]) for row in rows}
    years = [row["year"] for row in rows]
    points = left.scatter(*zip(*costs.values(), strict=True), c=years, cmap="viridis", s=28)
    figure.colorbar(points, ax=left, label="year")
    left.set(xscale="log", yscale="log", xlabel="parameters", ylabel="multiply-adds an image")
    left.set_title("each network on the images of its paper", fontsize="small")
    # Batch normalisation changes next to nothing of either.
    left_names = [(name, at) for name, at in costs.items() if not name.endswith("-bn")]
    right_names: list[tuple[str, tuple[float, float]]] = []
    for marker, colour, (kind, of_kind) in zip("os", (_TRAIN, _TEST), errors.items(), strict=True):
        places = [(costs[name][1] / 1e9, error) for name, error in of_kind.items()]
        sizes = [costs[name][0] / 1e6 for name in of_kind]
        style: dict[str, Any] = {"marker": marker, "color": colour, "alpha": 0.5, "label": kind}
        right.scatter(*zip(*places, strict=True), s=sizes, **style)
        right_names += zip(of_kind, places, strict=True)
    right.set(xscale="log", xlabel="billion multiply-adds an image", ylabel="top-1 error (%)")
    right.set_title("error on ImageNet; areas are parameters", fontsize="small")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    figure.draw_without_rendering()
    for axes, names in ((left, left_names), (right, right_names)):
        _name(axes, names, 72 / figure.dpi)
    return figure


def _name(axes: Axes, places: Sequence[tuple[str, tuple[float, float]]], scale: float) -> None:
    """Names beside points, each where it covers the least of points and other names.

    Args:
      axes: laid out already.
      places: names and coordinates.
      scale: points on paper in a pixel.
    """
    centres = [axes.transData.transform(place) * scale for _, place in places]
    taken = [(x - 3.0, y - 3.0, x + 3.0, y + 3.0) for x, y in centres]
    for (name, place), (x, y) in zip(places, centres, strict=True):
        width, height = 3.8 * len(name), 7.0
        boxes = []
        for right, up in itertools.product((6.0, -6.0 - width), (0, 1, -1, 2, -2, 3, -3)):
            bottom = y + (up - 0.5) * height
            boxes.append((x + right, bottom, x + right + width, bottom + height))
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        axes.annotate(
            name,
            place,
            xytext=(box[0] - x, box[1] - y + 1),
            textcoords="offset points",
            fontsize=6.5,
            in_layout=False,
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _title(title: str) -> str:
    return "\n".join(displayed(line, 90) for line in title.split("\n"))
