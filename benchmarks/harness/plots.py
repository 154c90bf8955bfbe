"""Figures of the benchmarks."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

# Imported first, since it ensures that Matplotlib can be imported.
from dlc_jax.utils.drawing import default_style, drawable, to_png  # isort: skip
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dlc_jax.utils.files import write_atomically

_BLUE, _RED = "#1f77b4", "#d62728"


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as a PNG file; returns the file."""
    write_atomically(path, to_png(figure))
    return path


@default_style()
def epoch_times(seconds: dict[str, Sequence[float]], reference: float, title: str) -> Figure:
    """Draws the seconds of ten epochs by program, with a reference as a vertical line.

    Args:
      seconds: The seconds of each epoch, for each program.
      reference: Seconds of ten epochs of the reference.
      title: Title of the figure.
    """
    names = list(seconds)
    figure = Figure(figsize=(7.5, 1.4 + 0.5 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    medians, minima, maxima = (
        np.array([10 * float(function(epochs)) for epochs in seconds.values()])
        for function in (np.median, np.min, np.max)
    )
    ranges = [medians - minima, maxima - medians]
    colours = [_RED if name == "dlc_jax" else _BLUE for name in names]
    axes.barh(names, medians, xerr=ranges, color=colours, height=0.6, error_kw={"capsize": 3})
    for index, median in enumerate(medians):
        axes.text(median, index - 0.33, f" {median:.3g} s", va="center", fontsize=8)
    axes.axvline(reference, color="black", linestyle="--", linewidth=1)
    axes.text(reference, -0.62, f" GTX 1080: {reference:.3g} s", fontsize=8, va="bottom")
    axes.set(xlabel="seconds for ten epochs (median, minimum and maximum)", xlim=(0, None))
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.set_title(_title(title), fontsize="medium", parse_math=False)
    return figure


@default_style()
def time_ratios(ratios: dict[str, float], mean: float, rival: str, title: str) -> Figure:
    """Draws a rival's time over dlc_jax's by operation, on a logarithmic axis.

    Args:
      ratios: The rival's time over dlc_jax's, for each operation.
      mean: The geometric mean of the ratios.
      rival: Name of the rival.
      title: Title of the figure.
    """
    names = list(ratios)
    figure = Figure(figsize=(7.5, 1.2 + 0.26 * len(names)), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = [_RED if ratio >= 1 else "grey" for ratio in ratios.values()]
    # Bars start at 1, so that those of slower operations go to the left.
    axes.barh(names, [ratio - 1 for ratio in ratios.values()], left=1, color=colours, height=0.7)
    for index, ratio in enumerate(ratios.values()):
        axes.text(max(ratio, 1), index, f" {ratio:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(mean, color="black", linewidth=1, linestyle="--")
    axes.text(mean, -0.9, f" geometric mean {mean:.2f}", fontsize=7, va="bottom")
    low, high = min([*ratios.values(), 1]), max([*ratios.values(), 1])
    axes.set(xscale="log", xlim=(0.8 * low, 1.5 * high), ylim=(len(names) - 0.4, -1.8))
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16) if 0.8 * low <= tick <= 1.5 * high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(f"{rival}'s time over dlc_jax's, forward and both gradients")
    axes.set_title(_title(title), fontsize="medium", parse_math=False)
    return figure


class Communication(NamedTuple):
    """The costs of a batch that devices share.

    Attributes:
      title: Title of the panel.
      seconds: Duration of the computation by one device.
      images: Images in the batch, and the maximum number of devices.
      size: Size of the gradients in bytes.
      links: Bytes per second in one direction and latency in seconds, for each interconnect.
    """

    title: str
    seconds: float
    images: int
    size: int
    links: Mapping[str, tuple[float, float]]


@default_style()
def scaling(measured: Sequence[dict[str, Any]], cores: int, device: str) -> Figure:
    """Draws images per second against the number of devices, which share a batch or have one each.

    Args:
      measured: The entry `measured` of the results of `benchmarks/scaling.py`.
      cores: Number of cores.
      device: Name of the machine.
    """
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    figure.suptitle(
        f"Training of the lecture network on {drawable(device, 80)}",
        fontsize="medium",
        parse_math=False,
    )
    max_devices = max(row["count"] for row in measured)
    single = measured[0]["weak"]["images_per_s"]
    for axes, (scaling, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("weak", "a batch of {} for each device"), ("strong", "a batch of {} for all together")),
        strict=True,
    ):
        ideal = [single * min(count, cores) for count in (1, cores, max(max_devices, cores))]
        axes.plot(
            [1, cores, max(max_devices, cores)], ideal, "--", color="grey",
            label=f"one device's rate times the cores used, at most {cores}",
        )  # fmt: skip
        for kind, marker, colour, label in (
            ("devices", "o", _BLUE, "devices of one process"),
            ("processes", "s", _RED, "processes of one device"),
        ):
            rows = [row for row in measured if row["kind"] == kind or row["count"] == 1]
            rates = [row[scaling]["images_per_s"] for row in rows]
            axes.plot(
                [row["count"] for row in rows], rates, f"{marker}-", color=colour, label=label
            )
        ticks = sorted({row["count"] for row in measured})
        axes.set(xscale="log", xlabel="devices", xlim=(0.9, 1.1 * max(max_devices, cores)))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title.format(measured[0][scaling]["batch_size"]), fontsize="small")
        axes.grid(alpha=0.3)
        axes.set_ylim(0, None)
    figure.axes[0].set_ylabel("images per second")
    figure.axes[0].yaxis.set_major_formatter("{x:,.0f}")
    figure.axes[0].legend(fontsize="small", loc="lower left")
    return figure


@default_style()
def communication_bounds(panels: Sequence[Sequence[Communication]]) -> Figure:
    """Draws times of computation and communication against the number of devices sharing a batch.

    Args:
      panels: Rows of panels.
    """
    rows, columns = len(panels), len(panels[0])
    figure = Figure(figsize=(4 * columns, 0.6 + 3.2 * rows), dpi=110, layout="constrained")
    flat = list(itertools.chain.from_iterable(panels))
    max_devices = max(panel.images for panel in flat)
    names = dict.fromkeys(name for panel in flat for name in panel.links)
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    for axes, panel in zip(
        np.ravel(figure.subplots(rows, columns, squeeze=False)), flat, strict=True
    ):
        _draw_panel(axes, panel, np.arange(2, max_devices + 1), colours)
        axes.set(xscale="log", yscale="log", xlim=(2, 1.1 * max_devices))
        ticks = [2**power for power in range(1, 20) if 2**power <= max_devices]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    # Each label is shown once, although each panel has a line for it.
    handles = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    legend = {label: line for line, label in itertools.chain.from_iterable(handles)}
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=4, fontsize="small"
    )
    return figure


def _draw_panel(
    axes: Axes, panel: Communication, counts: Int[np.ndarray, " counts"], colours: Mapping[str, str]
) -> None:
    shares = counts <= panel.images
    computing = 1e3 * panel.seconds / counts
    axes.plot(counts[shares], computing[shares], color="black", label="computation")
    for name, (rate, latency) in panel.links.items():
        reducing = 2e3 * (counts - 1) * (panel.size / counts / rate + latency)
        axes.plot(counts, reducing, color=colours[name], label=f"all-reduce over {name}")
        bound = np.flatnonzero(shares & (reducing >= computing))
        # If communication bounds even two devices, the lines do not cross.
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


def _title(title: str) -> str:
    return "\n".join(drawable(line, 90) for line in title.split("\n"))
