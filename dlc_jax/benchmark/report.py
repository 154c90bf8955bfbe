"""Results of the benchmarks as lines to read, and as files with a picture."""

from pathlib import Path
from typing import Any

from dlc_jax.benchmark import lecture, machine
from dlc_jax.runs import plots


def lecture_lines(results: dict[str, Any]) -> list[str]:
    """The lecture's epoch as a table."""
    lines = [
        f"the lecture's epoch, {results['images']:,} images in batches of 100, on "
        f"{results['device']} ({results['platform']})",
        f"  {'':20} {'compiling':>10} {'epoch':>10} {'least':>9} {'most':>9} {'test error':>11} "
        f"{'ours is':>12}",
    ]
    for name, measured in _contenders(results).items():
        ratio = results.get(f"ratio_vs_{name}")
        times = f"{ratio:.2f} x as fast" if ratio else ""
        lines.append(
            f"  {name:20} {measured['compile_s']:>8.2f} s {measured['median']:>8.3f} s "
            f"{min(measured['epoch_s']):>7.3f} s {max(measured['epoch_s']):>7.3f} s "
            f"{measured['test_error_percent']:>9.2f} % {times:>14}"
        )
    if "seeds" in results:
        many = results["seeds"]
        lines.append(
            f"  {many['count']} networks at once: {many['median']:.3f} s an epoch, "
            f"{many['times_of_one']:.2f} times one network's"
        )
    lines += [
        f"  float32 matrix products run at {results['dot_gflops']:.0f} GFLOP/s here; the epoch's "
        f"operations, counted directly, at {100 * results['fraction_of_dot']:.0f} % of that",
        f"  ten epochs: {results['ten_epochs_s']:.2f} s, {results['ratio_vs_gtx1080']:.2f} times "
        f"as fast as the lecture's {lecture.GTX_1080_SECONDS:g} s on a GTX 1080",
    ]
    return lines


def keep_lecture(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and their bars; returns both files."""
    path = machine.keep(folder, "lecture", results)
    seconds = {name: measured["epoch_s"] for name, measured in _contenders(results).items()}
    title = f"The lecture's program on {results['device']}"
    figure = plots.epoch_bars(seconds, lecture.reference_seconds(results["images"]), title)
    picture = path.with_name(f"{path.stem}-lecture.png")
    plots.save(figure, picture)
    return [path, picture]


def operations_lines(results: dict[str, Any]) -> list[str]:
    """The operations as a table."""
    rivals = list(results["geometric_mean_ratio"])
    head = "".join(f" {name:>20} {'ratio':>7}" for name in rivals)
    lines = [
        f"forward and both gradients, batch {results['batch_size']}, medians of "
        f"{results['rounds']} rounds, on {results['device']} ({results['platform']})",
        f"  {'':32} {'dlc_jax':>11}{head}",
    ]
    for row in results["operations"]:
        medians, ratios = row["median_ms"], row["ratio"]
        cells = "".join(f" {medians[name]:>17.2f} ms {ratios[name]:>7.2f}" for name in rivals)
        lines.append(f"  {row['operation']:32} {medians['dlc_jax']:>8.2f} ms{cells}")
    for name, mean in results["geometric_mean_ratio"].items():
        lines.append(f"  geometric mean of {name}'s time over ours: {mean:.2f}")
    return lines


def keep_operations(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and, for each rival, the bars of its ratios; returns the files."""
    path = machine.keep(folder, "ops", results)
    files = [path]
    for rival, mean in results["geometric_mean_ratio"].items():
        ratios = {row["operation"]: row["ratio"][rival] for row in results["operations"]}
        title = f"Convolutions and poolings on {results['device']}"
        picture = path.with_name(f"{path.stem}-ops-{rival}.png")
        plots.save(plots.ratio_bars(ratios, mean, rival, title), picture)
        files.append(picture)
    return files


def startup_lines(results: dict[str, Any]) -> list[str]:
    """The starting times, a line each."""
    return [
        f"new processes, medians of {results['rounds']}, on {results['device']}",
        f"  import jax: {results['import_jax_s']:.2f} s; with dlc_jax "
        f"{results['import_extra_s']:.2f} s more",
        f"  from start to the end of the first training step: {results['first_step_cold_s']:.2f} "
        f"s; with the cache of an earlier one {results['first_step_cached_s']:.2f} s",
    ]


def cifar10_lines(results: dict[str, Any]) -> list[str]:
    """Time and accuracy of each seed, and what they came to."""
    lines = [
        f"{results['recipe']} on {results['device']} ({results['platform']}): "
        f"{results['epochs']} epochs of {results['images']:,} images",
        f"  {'seed':>6} {'compiling':>11} {'training':>11} {'accuracy':>10}",
    ]
    lines += [
        f"  {run['seed']:>6} {run['compile_s']:>9.1f} s {run['train_s']:>9.2f} s "
        f"{run['accuracy_percent']:>8.2f} %"
        for run in results["runs"]
    ]
    accuracy, target = results["accuracy_percent"], results["target_percent"]
    error = accuracy["standard_error"]
    lines.append(
        f"  mean accuracy {accuracy['mean']:.2f} %"
        + (f", standard error {error:.2f}" if error is not None else "")
    )
    if results["seconds_to_target"] is None:
        lines.append(f"  the mean does not reach {target:g} %")
    else:
        seconds = results["seconds_to_target"]
        lines.append(f"  time to {target:g} %: {seconds:.2f} s of training, compiling apart")
    return lines


def _contenders(results: dict[str, Any]) -> dict[str, Any]:
    names = ["dlc_jax", *(name.replace("-", "_") for name in lecture.RIVALS)]
    return {name: results[name] for name in names if results.get(name)}
