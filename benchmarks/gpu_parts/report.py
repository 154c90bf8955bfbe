"""The GPU's results as a table, a file and a figure."""

from pathlib import Path
from typing import Any

import lecture
from harness import machine

from dlc_jax.utils.files import write_atomically


def section(results: dict[str, Any]) -> str:
    """Returns the end of the names of the files of results."""
    return "gpu-rehearsal" if results["rehearsal"] else "gpu"


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results, their table and their figure; returns the files."""
    path = machine.save_file(folder, section(results), results)
    table = path.with_suffix(".md")
    write_atomically(table, markdown(results).encode())
    return [path, table, *_figures(path, results["parts"], results["device"])]


def markdown(results: dict[str, Any]) -> str:
    """Returns the most important numbers as a Markdown table."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"# {results['device']}{', a rehearsal' if results['rehearsal'] else ''}",
        "",
        f"{results['date']}; {versions}; commit {results['commit']}.",
        "",
        "| part | what | measured |",
        "| --- | --- | --- |",
    ]
    for name, part in results["parts"].items():
        rows = _ROWS.get(name, lambda part: [])(part)
        if "failed" in part:
            rows = [*rows, ("not complete", part["failed"])]
        lines += [f"| {name} | {what} | {value} |" for what, value in rows]
    return "\n".join([*lines, ""])


def _lecture_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    names = ["dlc_jax", *(name.replace("-", "_") for name in lecture.RIVALS)]
    rows = []
    for name in names:
        if name in part:
            measured = part[name]
            epochs = len(measured["epoch_s"])
            rows.append(
                (
                    f"{epochs} epochs by {name}",
                    f"{measured['all_epochs_s']:.3f} s (compiling {measured['compile_s']:.1f} s), "
                    f"{measured['test_error_percent']:.2f} % test error",
                )
            )
    return [*rows, ("ten epochs on a GTX 1080, from the slide", "7 s")]


def _cifar10_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    if not part.get("runs"):
        return []
    error = part.get("standard_error")
    about = f", standard error {error:.3f}" if error is not None else ""
    rows = [
        (
            f"cifar10-fast, {len(part['runs'])} seeds",
            f"{part['accuracy_percent']:.2f} %{about}; {part['train_s']:.2f} s of training "
            f"(compiling {part['compile_s']:.1f} s)",
        )
    ]
    return rows + [
        (f"{name}, published", f"{value} s") for name, value in part["published_s"].items()
    ]


def _seeds_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"ten epochs of {measured['networks']} networks at once",
            f"{measured['ten_epochs_per_network_s']:.4f} s per network",
        )
        for measured in part.values()
        if isinstance(measured, dict) and "networks" in measured
    ]


def _throughput_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for batch, measured in part.get("batches", {}).items():
        peak = measured.get("fraction_of_peak")
        of_peak = f", {100 * peak:.0f} % of the card's peak" if peak else ""
        rows.append(
            (
                f"ResNet-50 in training, batches of {batch}",
                f"{measured['images_per_second']:,.0f} images per second{of_peak}",
            )
        )
    return rows


def _operations_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    if not part.get("operations"):
        return []
    mean, least = part["geometric_mean_ratio"], part["least_ratio"]
    count = len(part["operations"])
    return [(f"XLA's time over ours, {count} operations", f"mean {mean:.3f}, minimum {least:.3f}")]


def _correctness_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            f"gradients against float64, {name} precision",
            f"relative errors up to {max(errors.values()):.1e}",
        )
        for name, errors in part.get("gradients", {}).items()
    ]
    for name, value in part.get("losses", {}).get("largest_difference", {}).items():
        rows.append(
            (f"an epoch's losses against the CPU's, {name} precision", f"within {value:.1e}")
        )
    return rows


def _residual_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, measured in part.items():
        if not isinstance(measured, dict) or "goal_percent" not in measured:
            continue
        runs = [run[-1] for run in measured["runs"] if run]
        for run in runs:
            rows.append(
                (
                    f"{name}, {run['epoch']} of {measured['epochs']} epochs",
                    f"{run['accuracy_percent']:.2f} % in {run['train_s']:.1f} s of training "
                    f"(goal {measured['goal_percent']:.2f} %)",
                )
            )
    return rows


_ROWS = {
    "lecture": _lecture_rows,
    "cifar10": _cifar10_rows,
    "seeds": _seeds_rows,
    "throughput": _throughput_rows,
    "operations": _operations_rows,
    "correctness": _correctness_rows,
    "resnet18": _residual_rows,
    "resnet20": _residual_rows,
}


def _figures(path: Path, parts: dict[str, Any], device: str) -> list[Path]:
    epochs = {
        name: measured["epoch_s"]
        for name, measured in parts.get("lecture", {}).items()
        if isinstance(measured, dict) and "epoch_s" in measured
    }
    if not epochs:
        return []
    from harness import plots

    title = f"The lecture's program on {device}"
    figure = plots.epoch_times(epochs, lecture.GTX_1080_SECONDS, title)
    return [plots.save(figure, path.with_name(f"{path.stem}-lecture.png"))]
