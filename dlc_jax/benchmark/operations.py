"""Single convolutions and poolings, forward and both gradients, against PyTorch."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.rounds import Contender, Report, contenders
from dlc_jax.errors import InputError
from dlc_jax.utils.environment import usable_cores

# The rivals, and what each needs.
RIVALS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torch-channels-last": ("torch",),
    "xla": (),
    # Ours again, with the CPU as one device.
    "one-device": (),
}


@dataclass(frozen=True)
class Operation:
    """A convolution or a max-pooling, padded so that stride 1 keeps the size.

    Attributes:
      networks: where it occurs.
      size: height and width of the images.
      channels: of the images.
      features: of the result; 0 for a pooling.
      window: height and width of kernel or window.
      stride: along both axes.
    """

    networks: str
    size: int
    channels: int
    features: int
    window: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """As in `conv3x3 32x32x64 to 64`."""
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


def run(
    *,
    rounds: int,
    batch_size: int,
    rivals: Sequence[str],
    operations: Sequence[Operation] = OPERATIONS,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Times each operation by each contender in turn.

    Args:
      rounds: how often; the median counts.
      batch_size: images.
      rivals: some of `RIVALS`.
      operations: which operations.
      report: called with what runs next, and how many steps are done of how many.

    Returns:
      For each operation the medians in milliseconds, the ratios and their geometric means,
      with machine, versions, date and commit.

    Raises:
      InputError: a rival is unknown or can't run here.
    """
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise InputError(f"there is no rival {unknown[0]!r}; choose from {', '.join(RIVALS)}")
    names = ["dlc_jax", *rivals]
    rows: list[dict[str, Any]] = []
    with contenders(*map(_factory, names)) as started:
        for place, operation in enumerate(operations):
            report(operation.name, place, len(operations))
            shape = dataclasses.asdict(operation) | {"batch_size": batch_size}
            del shape["networks"]
            times: dict[str, list[float]] = {name: [] for name in names}
            for contender in started:
                contender.ask(shape=shape)
            for _ in range(rounds):
                for name, contender in zip(names, started, strict=True):
                    times[name].append(contender.ask()["milliseconds"])
            medians = {name: statistics.median(values) for name, values in times.items()}
            ratios = {name: round(medians[name] / medians["dlc_jax"], 3) for name in rivals}
            row = {"operation": operation.name, "networks": operation.networks}
            rows.append(row | {"median_ms": medians, "ratio": ratios, "all_ms": times})
    means = {
        name: round(statistics.geometric_mean(row["ratio"][name] for row in rows), 3)
        for name in rivals
    }
    measured = {"batch_size": batch_size, "rounds": rounds, "operations": rows}
    return machine.describe() | measured | {"geometric_mean_ratio": means}


def _factory(name: str) -> Any:
    if name == "dlc_jax":
        return partial(Contender, "operation_jax", cores=usable_cores())
    if name == "one-device":
        return partial(Contender, "operation_jax")
    if name == "xla":
        arguments = ["--precision", "highest"]
        return partial(Contender, "operation_jax", (), arguments, cores=usable_cores())
    arguments = ["--channels-last"] if name == "torch-channels-last" else []
    return partial(Contender, "operation_pytorch", RIVALS[name], arguments)
