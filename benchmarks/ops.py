"""Times convolutions and poolings of dlc_jax, XLA and PyTorch."""

import dataclasses
import importlib.util
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import command, machine
from harness.tables import text_table
from harness.workers import Worker, running

from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder

# The rivals and the packages that they require.
RIVALS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torch-channels-last": ("torch",),
    "xla": (),
    # With each core a device, among which the batch is divided.
    "dlc_jax-spread": (),
    "xla-spread": (),
}
# PyTorch's faster layout of each operation, when both are measured.
_TORCH = ("torch", "torch-channels-last")
BETTER_LAYOUT = "torch-better-layout"


@dataclass(frozen=True)
class Operation:
    """A convolution or a max-pooling.

    Convolutions are padded so that stride 1 keeps the size, transposed ones so that the result is
    larger by the stride.

    Attributes:
      networks: Networks that contain it.
      size: Height and width of the images.
      channels: Channels of the images.
      features: Channels of the result; 0 for a pooling.
      window: Height and width of the kernel or the window.
      stride: Stride along both axes.
      batch_size: Number of images.
      groups: Groups of channels and features of a convolution.
      transposed: Whether a convolution is transposed.
    """

    networks: str
    size: int
    channels: int
    features: int
    window: int = 3
    stride: int = 1
    batch_size: int = 64
    groups: int = 1
    transposed: bool = False

    @property
    def kind(self) -> str:
        """The kind of which it is a part of the mean."""
        if not self.features:
            return "pooling"
        if self.transposed:
            return "transposed convolution"
        return "convolution" if self.groups == 1 else "grouped convolution"

    @property
    def name(self) -> str:
        """A name such as `conv3x3 32x32x64 to 64`."""
        kind = "conv" if self.features else "pool"
        kind = "transposed" if self.transposed else kind
        stride = f" / {self.stride}" if self.stride > 1 else ""
        shape = f"{self.size}x{self.size}x{self.channels}"
        result = f" to {self.features}" if self.features else ""
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{kind}{self.window}x{self.window}{stride} {shape}{result}{groups}"


# ResNet-18 with a 3x3 stem and no stem pooling and VGG-16 on images of 32x32; AlexNet and a part
# of GoogLeNet on images of 96x96; the lecture's network.
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
    Operation("alexnet", 96, 3, 64, window=11, stride=4, batch_size=32),
    Operation("alexnet", 11, 64, 192, window=5, batch_size=32),
    Operation("alexnet", 5, 192, 384, batch_size=32),
    Operation("alexnet", 5, 384, 256, batch_size=32),
    Operation("googlenet", 96, 3, 64, window=7, stride=2, batch_size=32),
    Operation("googlenet", 24, 64, 64, window=1, batch_size=32),
    Operation("googlenet", 24, 64, 192, batch_size=32),
    Operation("googlenet", 12, 192, 96, window=1, batch_size=32),
    Operation("googlenet", 12, 96, 128, batch_size=32),
    Operation("googlenet", 12, 16, 32, window=5, batch_size=32),
    Operation("googlenet", 6, 480, 192, window=1, batch_size=32),
    Operation("googlenet", 6, 96, 208, batch_size=32),
    Operation("googlenet", 6, 16, 48, window=5, batch_size=32),
    Operation("lecture", 28, 1, 32, window=5, batch_size=100),
    Operation("lecture", 12, 32, 64, window=5, batch_size=100),
    Operation("vgg16", 32, 64, 0, window=2, stride=2),
    Operation("vgg16", 16, 128, 0, window=2, stride=2),
    Operation("vgg16", 8, 256, 0, window=2, stride=2),
    Operation("vgg16", 4, 512, 0, window=2, stride=2),
    Operation("vgg16", 2, 512, 0, window=2, stride=2),
    Operation("alexnet", 23, 64, 0, window=3, stride=2, batch_size=32),
    Operation("googlenet", 12, 192, 0, window=3, stride=1, batch_size=32),
    Operation("lecture", 24, 32, 0, window=3, stride=3, batch_size=100),
    # The generator of DCGAN (Radford et al. 2015) for 32x32.
    Operation("dcgan", 4, 256, 128, window=4, stride=2, transposed=True),
    Operation("dcgan", 8, 128, 64, window=4, stride=2, transposed=True),
    Operation("dcgan", 16, 64, 3, window=4, stride=2, transposed=True),
    # MobileNet, ResNeXt-50 and the original AlexNet.
    Operation("mobilenet", 32, 64, 64, batch_size=32, groups=64),
    Operation("mobilenet", 16, 128, 128, stride=2, batch_size=32, groups=128),
    Operation("resnext50", 16, 128, 128, batch_size=32, groups=32),
    Operation("alexnet", 11, 96, 256, window=5, batch_size=32, groups=2),
]

# Multiply-adds in the forward pass of a random convolution.
_MIN_COST, _MAX_COST = 2e7, 4e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time the forward pass and both gradients of the convolutions and poolings of a ResNet-18, "
        "a VGG-16, an AlexNet, a GoogLeNet and the lecture's network, and of some random "
        "convolutions, and transposed and grouped convolutions. Each is a program of its own, on "
        "JAX's default single device.",
        "  python benchmarks/ops.py --rivals torch,xla --rounds 5",
    )
    add = parser.add_argument
    add(
        "--rounds",
        type=command.integer(1),
        default=3,
        help="measurements of each program; medians are reported (default: %(default)s)",
    )
    add(
        "--rivals",
        type=command.names,
        help=f"what to compare with, separated by commas: {', '.join(RIVALS)} (default: all that "
        "are installed; the last two use each core as a device)",
    )
    add(
        "--random",
        type=command.integer(0),
        default=12,
        help="number of random convolutions (default: %(default)s)",
    )
    add(
        "--seed",
        type=command.integer(0),
        default=0,
        help="random seed of their shapes (default: %(default)s)",
    )
    options = parser.parse_args(arguments)

    make_folder(options.output_dir)
    rivals = installed() if options.rivals is None else options.rivals
    operations = [*random_convolutions(options.random, options.seed), *OPERATIONS]
    with command.progress() as progress:
        results = run(
            rounds=options.rounds, rivals=rivals, operations=operations, progress=progress
        )
    command.show(table(results), save(options.output_dir, results), results, options.json)


def installed() -> tuple[str, ...]:
    """The rivals whose packages are installed."""
    return tuple(
        name for name, needs in RIVALS.items() if all(map(importlib.util.find_spec, needs))
    )


def random_convolutions(count: int, seed: int) -> list[Operation]:
    """Convolutions of random shapes that are neither tiny nor take seconds."""
    rng = random.Random(seed)
    found: list[Operation] = []
    while len(found) < count:
        size, window, stride = (
            rng.randint(5, 64),
            rng.randint(1, 11),
            rng.choice((1, 1, 1, 2, 3, 4)),
        )
        channels, features = (round(2 ** rng.uniform(2, 8)) for _ in range(2))
        batch_size = rng.choice((16, 32, 64, 128, 256))
        cost = batch_size * (size / stride) ** 2 * window**2 * channels * features
        if window <= size and _MIN_COST <= cost <= _MAX_COST:
            found.append(Operation("random", size, channels, features, window, stride, batch_size))
    return found


def run(
    *,
    rounds: int,
    rivals: Sequence[str],
    operations: Sequence[Operation] = OPERATIONS,
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Times each operation by each program in turn.

    Args:
      rounds: Number of measurements, of which the median is taken.
      rivals: Names from `RIVALS`.
      operations: The operations.
      progress: Called before each operation.

    Returns:
      The medians of each operation in milliseconds, the ratios and their geometric means and
      minimums, with machine, versions, date and commit.

    Raises:
      InputError: A rival is unknown or can't run here.
    """
    command.check_choice("rival", rivals, list(RIVALS))
    names = ["dlc_jax", *rivals]
    rows: list[dict[str, Any]] = []
    with running(*map(_worker, names)) as workers:
        by_name = dict(zip(names, workers, strict=True))
        for index, operation in enumerate(operations):
            progress(operation.name, index, len(operations))
            rows.append(_measure(operation, by_name, rounds))
    measured = {"rounds": rounds, "operations": rows}
    kinds = dict.fromkeys(row["kind"] for row in rows)
    summary = {kind: _summary([row for row in rows if row["kind"] == kind]) for kind in kinds}
    return machine.describe() | measured | {"summary": summary}


def _measure(operation: Operation, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    shape = dataclasses.asdict(operation)
    del shape["networks"]
    for worker in workers.values():
        worker.request(shape=shape)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name].append(worker.request()["milliseconds"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: round(medians[name] / medians["dlc_jax"], 3) for name in [*workers][1:]}
    if all(name in ratios for name in _TORCH):
        ratios[BETTER_LAYOUT] = min(ratios[name] for name in _TORCH)
    return {
        "operation": operation.name,
        "networks": operation.networks,
        "kind": operation.kind,
        "batch_size": operation.batch_size,
        "median_ms": medians,
        "ratio": ratios,
        "all_ms": times,
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The geometric mean and the minimum of the ratios of each rival."""
    ratios = {name: [row["ratio"][name] for row in rows] for name in rows[0]["ratio"]}
    return {
        name: {
            "geometric_mean": round(statistics.geometric_mean(values), 3),
            "minimum": min(values),
        }
        for name, values in ratios.items()
    }


def _worker(name: str) -> Any:
    """What starts the process of a program."""
    if name in _TORCH:
        arguments = ["--channels-last"] if name == "torch-channels-last" else []
        return partial(Worker, "operation_pytorch", RIVALS[name], arguments)
    devices = usable_cores() if name.endswith("-spread") else 1
    arguments = ["--xla"] if name.startswith("xla") else []
    return partial(Worker, "operation_jax", (), arguments, devices=devices)


def table(results: dict[str, Any]) -> list[str]:
    """The results as lines of text."""
    rows = []
    for row in results["operations"]:
        cells = {"operation": f"{row['operation']}, batch {row['batch_size']}"}
        cells |= {f"{name} ms": f"{value:.2f}" for name, value in row["median_ms"].items()}
        cells |= {f"{name} ratio": f"{value:.2f}" for name, value in row["ratio"].items()}
        rows.append(cells)
    lines = [
        f"forward and both gradients, medians of {results['rounds']} rounds, on "
        f"{results['device']} ({results['platform']}); ratio: a rival's time over dlc_jax's",
        *text_table(rows),
    ]
    for kind, summary in results["summary"].items():
        for name, ratio in summary.items():
            lines.append(
                f"  {kind}: {name}'s time over dlc_jax's: geometric mean "
                f"{ratio['geometric_mean']:.2f}, minimum {ratio['minimum']:.2f}"
            )
    return lines


def save(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the results and a bar chart of the ratios to each rival; returns the files."""
    from harness import plots

    path = machine.save_section(folder, "ops", results)
    files = [path]
    rows = [row for row in results["operations"] if row["kind"] == "convolution"]
    summary = results["summary"].get("convolution", {})
    # The strongest ones, if they were measured.
    drawn = [name for name in (BETTER_LAYOUT, "xla") if name in summary] or list(summary)
    for rival in drawn:
        ratio = summary[rival]
        ratios = {
            f"{row['operation']}, batch {row['batch_size']}": row["ratio"][rival] for row in rows
        }
        title = f"Convolutions on {results['device']}"
        figure = plots.time_ratios(ratios, ratio["geometric_mean"], rival, title)
        files.append(plots.save(figure, path.with_name(f"{path.stem}-ops-{rival}.png")))
    return files


if __name__ == "__main__":
    command.run(__file__, main)
