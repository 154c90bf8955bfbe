"""Times an epoch of the lecture's program in dlc_jax, PyTorch and plain Flax."""

import importlib.util
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import command, machine
from harness.arrays import arrays_file, read_arrays
from harness.workers import Worker, running

from dlc_jax import data
from dlc_jax.data.dataset import Examples
from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder

# The rivals and the packages that they require.
RIVALS = {
    "torch": ("torch",),
    "torch-channels-last": ("torch",),
    "torch-compile": ("torch",),
    "flax": ("flax",),
    # dlc_jax, with activations and gradients in bfloat16.
    "dlc_jax-bfloat16": (),
}

# Ten epochs on a GTX 1080, in seconds (Fleuret, EE-559, lecture 1a).
GTX_1080_SECONDS = 7.0

# Floating-point operations per image with direct convolution: the forward pass and the gradient of
# the weights of each layer, and the gradient of the inputs of all layers but the first.
_LAYERS = {
    "conv1": 2 * (5 * 5 * 1) * 32 * 24 * 24,
    "conv2": 2 * (5 * 5 * 32) * 64 * 4 * 4,
    "fc1": 2 * 256 * 200,
    "fc2": 2 * 200 * 10,
}
OPERATIONS_PER_IMAGE = 3 * sum(_LAYERS.values()) - _LAYERS["conv1"]

_EXAMPLES = """\
  python benchmarks/lecture.py --rivals torch,flax --epochs 5
  python benchmarks/lecture.py --arrays mnist.npz --seeds 64 --json"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time an epoch of the lecture's program in dlc_jax and in other frameworks. Each runs in "
        "a process of its own, and they take turns. Compilation is timed separately.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--epochs",
        type=command.integer(1),
        default=5,
        help="epochs of each program; medians are reported (default: %(default)s)",
    )
    add(
        "--rivals",
        type=command.names,
        help=f"programs to compare with, separated by commas: {', '.join(RIVALS)} (default: torch "
        "and flax, if installed)",
    )
    add(
        "--seeds",
        type=command.integer(0),
        default=0,
        help="also train this many networks at once (default: %(default)s)",
    )
    add(
        "--arrays",
        type=command.path,
        metavar="FILE",
        help=".npz file of x_train, y_train, x_test, y_test to use instead of TFDS's MNIST",
    )
    add("--data-dir", type=command.path, metavar="DIR", help="folder of TFDS's datasets")
    options = parser.parse_args(arguments)

    make_folder(options.output_dir)
    rivals = installed(("torch", "flax")) if options.rivals is None else options.rivals
    if options.arrays:
        splits = read_arrays(options.arrays)
    else:
        dataset: Any = data.load("mnist", options.data_dir)
        splits = dataset.train, dataset.test
    with command.progress() as progress:
        results = run(
            splits, epochs=options.epochs, rivals=rivals, seeds=options.seeds, progress=progress
        )
    files = save(options.output_dir, results)
    command.show(table(results), files, results, options.json)


def installed(rivals: Sequence[str]) -> tuple[str, ...]:
    """Returns the rivals whose packages are installed."""
    return tuple(
        rival for rival in rivals if all(importlib.util.find_spec(name) for name in RIVALS[rival])
    )


def reference_seconds(images: int) -> float:
    """Returns the lecture's time for ten epochs of 60,000 images, scaled to `images`."""
    return GTX_1080_SECONDS * images / 60_000


def run(
    splits: tuple[Examples, Examples],
    *,
    epochs: int,
    rivals: Sequence[str],
    seeds: int = 0,
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Times epochs of each program in turn.

    Args:
      splits: Training and test split, uint8 images 28x28x1.
      epochs: Number of epochs of each program.
      rivals: Names from `RIVALS`.
      seeds: Number of networks to train at once in addition; 0 for none.
      progress: Called before each step.

    Returns:
      The measurements, with machine, versions, date and commit.

    Raises:
      InputError: A rival is unknown or can't run here.
    """
    command.check_choice("rival", rivals, list(RIVALS))
    names = ["dlc_jax", *rivals, *(["seeds"] if seeds else [])]
    with arrays_file(splits) as arrays:
        factories = [_worker(name, arrays, seeds) for name in names]
        with running(partial(Worker, "matmul"), *factories) as (matmul, *workers):
            by_name = dict(zip(names, workers, strict=True))
            measured, rates = _measure(matmul, by_name, epochs, progress)
    images = len(splits[0].labels)
    return machine.describe() | _summary(measured, statistics.median(rates), images, seeds)


def _worker(name: str, arrays: Path, seeds: int) -> Any:
    """A function that starts the process of a program."""
    arguments = ["--arrays", str(arrays)]
    if name == "dlc_jax":
        return partial(Worker, "lecture_dlc_jax", (), arguments, devices=usable_cores())
    if name == "dlc_jax-bfloat16":
        arguments += ["--dtype", "bfloat16"]
        return partial(Worker, "lecture_dlc_jax", (), arguments, devices=usable_cores())
    if name == "seeds":
        return partial(Worker, "lecture_dlc_jax", (), [*arguments, "--seeds", str(seeds)])
    if name == "flax":
        return partial(Worker, "lecture_flax", RIVALS[name], arguments)
    option = name.removeprefix("torch")
    return partial(
        Worker, "lecture_pytorch", RIVALS[name], [*arguments, *([f"-{option}"] if option else [])]
    )


def _measure(
    matmul: Worker, workers: dict[str, Worker], epochs: int, progress: command.Progress
) -> tuple[dict[str, Any], list[float]]:
    total, done = len(workers) * (epochs + 2), 0
    measured: dict[str, Any] = {}
    for name, worker in workers.items():
        progress(f"{name}: compiling", done, total)
        seconds = worker.request(method="compile")["seconds"]
        measured[name] = {"compile_s": seconds, "epoch_s": []}
        done += 1
    rates = []
    for epoch in range(1, epochs + 1):
        rates.append(matmul.request()["gflops"])
        for name, worker in workers.items():
            progress(f"{name}: epoch {epoch}", done, total)
            measured[name]["epoch_s"].append(worker.request(method="epoch")["seconds"])
            done += 1
    for name, worker in workers.items():
        progress(f"{name}: testing", done, total)
        measured[name]["test_error_percent"] = worker.request(method="test")["error_percent"]
        measured[name]["median"] = statistics.median(measured[name]["epoch_s"])
        done += 1
    return measured, rates


def _summary(
    measured: dict[str, Any], dot_gflops: float, images: int, seeds: int
) -> dict[str, Any]:
    ours = measured["dlc_jax"]["median"]
    results: dict[str, Any] = {"images": images, "dlc_jax": measured["dlc_jax"]}
    for name in RIVALS:
        key = name.replace("-", "_")
        results[key] = measured.get(name)
        ratio = round(measured[name]["median"] / ours, 3) if name in measured else None
        results[f"ratio_vs_{key}"] = ratio
    results |= {
        "dot_gflops": round(dot_gflops, 1),
        "fraction_of_dot": round(OPERATIONS_PER_IMAGE * images / ours / dot_gflops / 1e9, 3),
        "ten_epochs_s": round(10 * ours, 3),
        "ratio_vs_gtx1080": round(reference_seconds(images) / (10 * ours), 3),
    }
    if seeds:
        ratio = round(measured["seeds"]["median"] / ours, 3)
        results["seeds"] = measured["seeds"] | {"count": seeds, "times_of_one": ratio}
    return results


def table(results: dict[str, Any]) -> list[str]:
    """Returns the results as lines of text."""
    lines = [
        f"the lecture's epoch, {results['images']:,} images in batches of 100, on "
        f"{results['device']} ({results['platform']})",
        f"  {'':20} {'compiling':>10} {'epoch':>10} {'minimum':>9} {'maximum':>9} "
        f"{'test error':>11} {'dlc_jax is':>14}",
    ]
    for name, measured in _by_program(results).items():
        ratio = results.get(f"ratio_vs_{name}")
        lines.append(
            f"  {name:20} {measured['compile_s']:>8.2f} s {measured['median']:>8.3f} s "
            f"{min(measured['epoch_s']):>7.3f} s {max(measured['epoch_s']):>7.3f} s "
            f"{measured['test_error_percent']:>9.2f} % "
            f"{f'{ratio:.2f} x as fast' if ratio else '':>14}"
        )
    if "seeds" in results:
        seeds = results["seeds"]
        lines.append(
            f"  {seeds['count']} networks at once: {seeds['median']:.3f} s per epoch, "
            f"{seeds['times_of_one']:.2f} times one network's"
        )
    return [
        *lines,
        f"  float32 matrix products run at {results['dot_gflops']:.0f} GFLOP/s; the epoch's "
        f"operations, as direct convolution, at {100 * results['fraction_of_dot']:.0f} % of that",
        f"  ten epochs: {results['ten_epochs_s']:.2f} s, {results['ratio_vs_gtx1080']:.2f} times "
        f"as fast as the lecture's {GTX_1080_SECONDS:g} s on a GTX 1080",
    ]


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and a bar chart; returns both files."""
    from harness import plots

    path = machine.save_section(folder, "lecture", results)
    seconds = {name: measured["epoch_s"] for name, measured in _by_program(results).items()}
    title = f"The lecture's program on {results['device']}"
    figure = plots.epoch_times(seconds, reference_seconds(results["images"]), title)
    return [path, plots.save(figure, path.with_name(f"{path.stem}-lecture.png"))]


def _by_program(results: dict[str, Any]) -> dict[str, Any]:
    names = ["dlc_jax", *(name.replace("-", "_") for name in RIVALS)]
    return {name: results[name] for name in names if results.get(name)}


if __name__ == "__main__":
    command.run(__file__, main)
