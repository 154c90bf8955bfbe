"""Times data-parallel training by number of devices, and estimates when communication bounds it.

It measures images per second of the lecture network, on simulated devices of one process and on
processes joined over loopback; and training steps, from which `scaling_parts.interconnect`
computes the number of devices at which communication takes as long as computation.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import command, machine
from harness.workers import Worker, running
from scaling_parts import report
from scaling_parts.interconnect import estimate
from scaling_parts.networks import NETWORKS

from dlc_jax.errors import InputError
from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder

_EXAMPLES = """\
  python benchmarks/scaling.py --page benchmarks/README.md
  python benchmarks/scaling.py --devices 1,2 --processes 1,2 --networks lecture --rounds 3
  python benchmarks/scaling.py --on-paper benchmarks/results/MACHINE-scaling.json"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    options = _parser().parse_args(arguments)
    if options.page is not None:
        report.read_page(options.page)
    if options.on_paper is not None:
        results, files = read(options.on_paper), [options.on_paper]
        lines = report.estimate_lines(results)
    else:
        make_folder(options.output_dir)
        with command.progress() as progress:
            results = run(
                devices=options.devices,
                processes=options.processes,
                batch_size=options.batch_size,
                images=options.images,
                rounds=options.rounds,
                networks=options.networks,
                progress=progress,
            )
        files = report.save(options.output_dir, results)
        lines = report.lines(results)
    if options.page is not None:
        report.update_page(options.page, results)
        files = [*files, options.page]
    command.show(lines, files, results, options.json)


def _parser() -> command.Parser:
    parser = command.Parser(
        "Time data-parallel training of the lecture network by number of devices and processes, "
        "and steps of ResNet-18 and ResNet-50. From these, the size of the gradients and published "
        "rates of interconnects, estimate the number of devices at which communication bounds "
        "training. Takes about five minutes on two cores.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--devices",
        type=command.counts,
        default=(1, 2, 4, 8),
        help="numbers of simulated devices of one process (default: 1,2,4,8)",
    )
    add(
        "--processes",
        type=command.counts,
        default=(1, 2, 4),
        help="numbers of processes with one device each (default: 1,2,4)",
    )
    add(
        "--batch-size",
        type=command.integer(1),
        default=96,
        help="batch size, per device (weak scaling) and in total (strong scaling); a multiple of "
        "each number of devices (default: %(default)s)",
    )
    add(
        "--images",
        type=command.integer(1),
        default=18432,
        help="minimum number of images in an epoch (default: %(default)s)",
    )
    add(
        "--rounds",
        type=command.integer(1),
        default=5,
        help="measurements; medians are reported (default: %(default)s)",
    )
    add(
        "--networks",
        type=command.names,
        default=tuple(NETWORKS),
        help="networks whose training step is timed (default: lecture,resnet18,resnet50)",
    )
    add(
        "--on-paper",
        type=command.path,
        metavar="FILE",
        help="compute the estimates from this file of results, without measuring",
    )
    add(
        "--page",
        type=command.path,
        metavar="FILE",
        help="also update the tables of a Markdown page such as benchmarks/README.md",
    )
    return parser


def read(path: Path) -> dict[str, Any]:
    """Reads results of an earlier run, and computes the estimates again.

    Raises:
      InputError: The file is missing, or does not contain such results.
    """
    try:
        results = json.loads(path.read_text())
        results["on_paper"] = estimate(results)
        for name in ("measured", "rounds", "images", "cores", "date", "versions"):
            _ = results[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} does not hold the results of this benchmark ({error!r}); give a file "
            "that it has written, such as benchmarks/results/MACHINE-scaling.json"
        ) from error
    return results


@dataclass(frozen=True)
class _Devices:
    """Devices that share a batch, all in one process or each in its own process."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} {self.kind if self.count > 1 else 'device'}"

    def start(self) -> Worker:
        devices, processes = (self.count, 1) if self.kind == "devices" else (1, self.count)
        arguments = ["--network", "lecture", "--devices", str(self.count)]
        return Worker("data_parallel", (), arguments, devices=devices, processes=processes)


@dataclass(frozen=True)
class _Case:
    """A training program whose duration is measured.

    Attributes:
      title: Description for the progress.
      images: Number of images that are trained on.
      request: Sends a request to compile or to train, see `baselines.data_parallel`.
    """

    title: str
    images: int
    request: Callable[..., Any]


def run(
    *,
    devices: Sequence[int],
    processes: Sequence[int],
    batch_size: int,
    images: int,
    rounds: int,
    networks: Sequence[str],
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Times the lecture network's epoch by devices and processes, and a step of other networks.

    Args:
      devices: Numbers of devices of one process.
      processes: Numbers of processes with one device each.
      batch_size: Batch size, per device (weak scaling) and in total (strong scaling).
      images: Minimum number of images in an epoch; more if batches would not be full.
      rounds: Number of measurements, of which the median is taken.
      networks: Names from `NETWORKS` whose step is timed on all cores.
      progress: Called before each step.

    Returns:
      Images per second and efficiency by number of devices, the networks' steps, and the estimates
      for other computers; with machine, versions, date and commit.

    Raises:
      InputError: A network is unknown, or devices can't share a batch evenly.
    """
    command.check_choice("network", networks or [""], list(NETWORKS))
    groups = [_Devices("devices", n) for n in sorted({1, *devices})]
    # A single process is the same as a single device.
    groups += [_Devices("processes", n) for n in sorted({*processes} - {1})]
    for group in groups:
        if batch_size % group.count:
            raise InputError(
                f"a batch of {batch_size} images does not divide evenly among {group}; choose a "
                f"batch size such as {group.count * -(-batch_size // group.count)}"
            )
    multiple = batch_size * math.lcm(*(group.count for group in groups))
    images = -(-images // multiple) * multiple
    measured = _time_epochs(groups, batch_size, images, rounds, progress)
    results = machine.describe() | {
        "batch_size": batch_size,
        "images": images,
        "rounds": rounds,
        "measured": _rates(measured, batch_size, images),
        "networks": _time_steps(networks, rounds, progress),
    }
    return results | {"on_paper": estimate(results)}


def _time_epochs(
    groups: Sequence[_Devices],
    batch_size: int,
    images: int,
    rounds: int,
    progress: command.Progress,
) -> dict[tuple[_Devices, int], list[float]]:
    """Durations of the lecture network's epoch by devices and batch size."""
    with running(*(group.start for group in groups)) as workers:
        cases = {
            (group, size): _Case(
                f"{group}, batch {size}", images, partial(worker.request, batch_size=size)
            )
            for group, worker in zip(groups, workers, strict=True)
            for size in sorted({batch_size, batch_size * group.count})
        }
        return _take_turns(cases, rounds, progress)


def _take_turns(
    cases: dict[Any, _Case], rounds: int, progress: command.Progress
) -> dict[Any, list[float]]:
    """Compiles each case, and then measures each once per round; returns the durations."""
    total = len(cases) * (1 + rounds)
    for done, case in enumerate(cases.values()):
        progress(f"{case.title}: compiling", done, total)
        case.request(images=case.images)
    seconds: dict[Any, list[float]] = {key: [] for key in cases}
    for index in range(1, rounds + 1):
        for position, (key, case) in enumerate(cases.items()):
            progress(f"{case.title}: round {index}", index * len(cases) + position, total)
            seconds[key].append(case.request()["seconds"])
    return seconds


def _rates(
    measured: dict[tuple[_Devices, int], list[float]], batch_size: int, images: int
) -> list[dict[str, Any]]:
    """Images per second and efficiency, a row for each group of devices."""
    rates = {case: images / statistics.median(times) for case, times in measured.items()}
    single = rates[_Devices("devices", 1), batch_size]
    cores = usable_cores()
    rows = []
    for group in dict.fromkeys(group for group, _ in measured):
        row: dict[str, Any] = {"kind": group.kind, "count": group.count}
        for scaling, size in (("weak", batch_size * group.count), ("strong", batch_size)):
            rate = rates[group, size]
            row[scaling] = {
                "batch_size": size,
                "images_per_s": round(rate, 1),
                "efficiency": round(rate / single / group.count, 4),
                "efficiency_of_cores": round(rate / single / min(group.count, cores), 4),
                "all_s": measured[group, size],
            }
        rows.append(row)
    return rows


def _time_steps(
    names: Sequence[str], rounds: int, progress: command.Progress
) -> dict[str, dict[str, Any]]:
    """Duration of a step of each network on all cores, with the network's sizes."""
    factories = [
        partial(Worker, "data_parallel", (), ["--network", name], devices=usable_cores())
        for name in names
    ]
    networks = {name: NETWORKS[name] for name in names}
    with running(*factories) as workers:
        cases = {
            name: _Case(
                network.title,
                network.steps * network.step_images,
                partial(worker.request, batch_size=network.step_images),
            )
            for (name, network), worker in zip(networks.items(), workers, strict=True)
        }
        seconds = _take_turns(cases, rounds, progress)
    return {
        name: {
            **network.describe(),
            "batch_size": network.batch_size,
            "step_images": network.step_images,
            "step_s": statistics.median(seconds[name]) / network.steps,
            "all_s": [each / network.steps for each in seconds[name]],
        }
        for name, network in networks.items()
    }


if __name__ == "__main__":
    command.run(__file__, main)
