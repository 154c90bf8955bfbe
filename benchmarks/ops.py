"""Times the convolutions and poolings of a ResNet-18 and a VGG-16 in dlc_jax and PyTorch."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import command, machine
from harness.workers import Worker, running

from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder

# The rivals and the packages that they require.
RIVALS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torch-channels-last": ("torch",),
    "xla": (),
    # dlc_jax with the CPU as one device.
    "one-device": (),
}


@dataclass(frozen=True)
class Operation:
    """A convolution or a max-pooling, padded so that stride 1 keeps the size.

    Attributes:
      networks: networks that contain it.
      size: height and width of the images.
      channels: channels of the images.
      features: channels of the result; 0 for a pooling.
      window: height and width of the kernel or the window.
      stride: stride along both axes.
    """

    networks: str
    size: int
    channels: int
    features: int
    window: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """A name such as `conv3x3 32x32x64 to 64`."""
        kind = "conv" if self.features else "pool"
        stride = f" / {self.stride}" if self.stride > 1 else ""
        shape = f"{self.size}x{self.size}x{self.channels}"
        result = f" to {self.features}" if self.features else ""
        return f"{kind}{self.window}x{self.window}{stride} {shape}{result}"


# Every convolution and pooling of both networks on 32x32 images: ResNet-18 with a 3x3 stem
# and no stem pooling, VGG-16 with its five stages.
OPERATIONS = [
    Operation("resnet18, vgg16", 32, 3, 64),
    Operation("resnet18, vgg16", 32, 64, 64),
    Operation("vgg16", 16, 64, 128),
    Operation("resnet18, vgg16", 16, 128, 128),
    Operation("vgg16", 8, 128, 256),
    Operation("resnet18, vgg16", 8, 256, 256),
    Operation("vgg16", 4, 256, 512),
    Operation("resnet18, vgg16", 4, 512, 512),
    Operation("vgg16", 2, 512, 512),
    Operation("resnet18", 32, 64, 128, stride=2),
    Operation("resnet18", 16, 128, 256, stride=2),
    Operation("resnet18", 8, 256, 512, stride=2),
    Operation("resnet18", 32, 64, 128, window=1, stride=2),
    Operation("resnet18", 16, 128, 256, window=1, stride=2),
    Operation("resnet18", 8, 256, 512, window=1, stride=2),
    Operation("vgg16", 32, 64, 0, window=2, stride=2),
    Operation("vgg16", 16, 128, 0, window=2, stride=2),
    Operation("vgg16", 8, 256, 0, window=2, stride=2),
    Operation("vgg16", 4, 512, 0, window=2, stride=2),
    Operation("vgg16", 2, 512, 0, window=2, stride=2),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time the forward pass and both gradients of the convolutions and poolings of a ResNet-18 "
        "and a VGG-16 on images of 32x32.",
        "  python benchmarks/ops.py --rivals torch,xla --rounds 5",
    )
    add = parser.add_argument
    add(
        "--rounds",
        type=command.integer(1),
        default=5,
        help="measurements of each program; medians are reported (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=command.integer(1),
        default=64,
        help="batch size (default: %(default)s)",
    )
    add(
        "--rivals",
        type=command.names,
        default=("torch",),
        help=f"what to compare with, separated by commas: {', '.join(RIVALS)} (dlc_jax with the "
        "CPU as one device) (default: torch)",
    )
    options = parser.parse_args(arguments)

    make_folder(options.output_dir)
    with command.progress() as progress:
        results = run(
            rounds=options.rounds,
            batch_size=options.batch_size,
            rivals=options.rivals,
            progress=progress,
        )
    command.show(table(results), save(options.output_dir, results), results, options.json)


def run(
    *,
    rounds: int,
    batch_size: int,
    rivals: Sequence[str],
    operations: Sequence[Operation] = OPERATIONS,
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Times each operation by each program in turn.

    Args:
      rounds: number of measurements, of which the median is taken.
      batch_size: batch size.
      rivals: names from `RIVALS`.
      operations: the operations.
      progress: called before each operation.

    Returns:
      The medians of each operation in milliseconds, the ratios and their geometric means, with
      machine, versions, date and commit.

    Raises:
      InputError: a rival is unknown or can't run here.
    """
    command.check_choice("rival", rivals, list(RIVALS))
    names = ["dlc_jax", *rivals]
    rows: list[dict[str, Any]] = []
    with running(*map(_worker, names)) as workers:
        by_name = dict(zip(names, workers, strict=True))
        for index, operation in enumerate(operations):
            progress(operation.name, index, len(operations))
            rows.append(_measure(operation, by_name, rounds, batch_size))
    means = {
        name: round(statistics.geometric_mean(row["ratio"][name] for row in rows), 3)
        for name in rivals
    }
    measured = {"batch_size": batch_size, "rounds": rounds, "operations": rows}
    return machine.describe() | measured | {"geometric_mean_ratio": means}


def _measure(
    operation: Operation, workers: dict[str, Worker], rounds: int, batch_size: int
) -> dict[str, Any]:
    shape = dataclasses.asdict(operation) | {"batch_size": batch_size}
    del shape["networks"]
    for worker in workers.values():
        worker.request(shape=shape)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name].append(worker.request()["milliseconds"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: round(medians[name] / medians["dlc_jax"], 3) for name in [*workers][1:]}
    row = {"operation": operation.name, "networks": operation.networks}
    return row | {"median_ms": medians, "ratio": ratios, "all_ms": times}


def _worker(name: str) -> Any:
    """What starts the process of a program."""
    if name == "dlc_jax":
        return partial(Worker, "operation_jax", devices=usable_cores())
    if name == "one-device":
        return partial(Worker, "operation_jax")
    if name == "xla":
        # With a precision of their own, operations are left to XLA.
        arguments = ["--precision", "highest"]
        return partial(Worker, "operation_jax", (), arguments, devices=usable_cores())
    arguments = ["--channels-last"] if name == "torch-channels-last" else []
    return partial(Worker, "operation_pytorch", RIVALS[name], arguments)


def table(results: dict[str, Any]) -> list[str]:
    """The results as lines of text."""
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
        lines.append(f"  geometric mean of {name}'s time over dlc_jax's: {mean:.2f}")
    return lines


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and a bar chart of the ratios to each rival; returns the files."""
    from harness import plots

    path = machine.save_section(folder, "ops", results)
    files = [path]
    for rival, mean in results["geometric_mean_ratio"].items():
        ratios = {row["operation"]: row["ratio"][rival] for row in results["operations"]}
        title = f"Convolutions and poolings on {results['device']}"
        figure = plots.time_ratios(ratios, mean, rival, title)
        files.append(plots.save(figure, path.with_name(f"{path.stem}-ops-{rival}.png")))
    return files


if __name__ == "__main__":
    command.run(__file__, main)
