"""Times training steps of whole networks in dlc_jax and PyTorch."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from harness import command, machine
from harness.tables import text_table
from harness.workers import Worker, running

from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder

# Image size and batch size of each network.
NETWORKS: dict[str, tuple[int, int]] = {
    "resnet18-small": (32, 64),
    "resnet18": (64, 32),
    "resnet50": (64, 16),
    "vgg11-bn": (32, 64),
    "alexnet": (96, 32),
    "googlenet": (96, 16),
    "lenet5": (32, 256),
    "airbench": (32, 128),
}
# The rivals' command lines.
RIVALS: dict[str, list[str]] = {
    "torch": [],
    "torch-channels-last": ["--channels-last"],
    "torch-compile": ["--compile"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time training steps (forward pass, gradients and SGD with momentum) of whole networks on "
        "random images, as `dlc-jax train` runs them and by PyTorch.",
        "  python benchmarks/networks.py --networks resnet18,alexnet --rounds 5",
    )
    add = parser.add_argument
    add(
        "--networks",
        type=command.names,
        default=tuple(NETWORKS),
        help=f"networks, separated by commas: {', '.join(NETWORKS)} (default: all)",
    )
    add(
        "--rivals",
        type=command.names,
        default=tuple(RIVALS),
        help=f"what to compare with, separated by commas: {', '.join(RIVALS)} (default: all)",
    )
    add(
        "--rounds",
        type=command.integer(1),
        default=5,
        help="measurements of each program; medians are reported (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    command.check_choice("network", options.networks, list(NETWORKS))
    command.check_choice("rival", options.rivals, list(RIVALS))
    make_folder(options.output_dir)
    with command.progress() as progress:
        results = run(options.networks, options.rivals, options.rounds, progress)
    path = machine.save_section(options.output_dir, "networks", results)
    command.show(table(results), [path], results, options.json)


def run(
    networks: Sequence[str],
    rivals: Sequence[str],
    rounds: int,
    progress: command.Progress = command.no_progress,
) -> dict[str, Any]:
    """Times the programs of each network in turn.

    Args:
      networks: Names from `NETWORKS`.
      rivals: Names from `RIVALS`.
      rounds: Number of measurements, of which the median is taken.
      progress: Called before each network.

    Returns:
      The medians of each network in milliseconds, and the ratios to dlc_jax with their geometric
      means and minimums; with machine, versions, date and commit.
    """
    rows = []
    for index, name in enumerate(networks):
        progress(name, index, len(networks))
        rows.append(_measure(name, rivals, rounds))
    fastest = [min(row["ratio"].values()) for row in rows]
    summary = {
        rival: _summary([row["ratio"][rival] for row in rows]) for rival in rows[0]["ratio"]
    } | {"fastest rival": _summary(fastest)}
    return machine.describe() | {"rounds": rounds, "networks": rows, "summary": summary}


def _measure(name: str, rivals: Sequence[str], rounds: int) -> dict[str, Any]:
    size, batch_size = NETWORKS[name]
    arguments = ["--network", name, "--size", str(size), "--batch-size", str(batch_size)]
    workers = {"dlc_jax": partial(Worker, "network_jax", (), arguments, devices=usable_cores())}
    for rival in rivals:
        flags = [*arguments, *RIVALS[rival]]
        workers[rival] = partial(Worker, "network_pytorch", ("torch", "torchvision"), flags)
    times: dict[str, list[float]] = {worker: [] for worker in workers}
    with running(*workers.values()) as started:
        by_name = dict(zip(workers, started, strict=True))
        compile_seconds = {
            worker: process.request(method="compile")["seconds"]
            for worker, process in by_name.items()
        }
        for _ in range(rounds):
            for worker, process in by_name.items():
                times[worker].append(process.request(method="step")["milliseconds"])
    medians = {worker: statistics.median(values) for worker, values in times.items()}
    return {
        "network": name,
        "image_size": size,
        "batch_size": batch_size,
        "median_ms": medians,
        "all_ms": times,
        "compile_seconds": compile_seconds,
        "ratio": {rival: round(medians[rival] / medians["dlc_jax"], 3) for rival in rivals},
    }


def _summary(ratios: Sequence[float]) -> dict[str, float]:
    mean = statistics.geometric_mean(ratios)
    return {"geometric_mean": round(mean, 3), "minimum": min(ratios)}


def table(results: dict[str, Any]) -> list[str]:
    """Returns the results as lines of text."""
    rows = []
    for row in results["networks"]:
        name = f"{row['network']} {row['image_size']}x{row['image_size']}"
        cells = {"network": f"{name}, batch {row['batch_size']}"}
        cells |= {f"{worker} ms": f"{value:.1f}" for worker, value in row["median_ms"].items()}
        cells |= {f"{rival} ratio": f"{value:.2f}" for rival, value in row["ratio"].items()}
        rows.append(cells)
    lines = [
        f"a training step, medians of {results['rounds']} rounds, on {results['device']} "
        f"({results['platform']}); ratio: a rival's time over dlc_jax's",
        *text_table(rows),
    ]
    for rival, ratio in results["summary"].items():
        lines.append(
            f"  {rival}'s time over dlc_jax's: geometric mean {ratio['geometric_mean']:.2f}, "
            f"minimum {ratio['minimum']:.2f}"
        )
    return lines


if __name__ == "__main__":
    command.run(__file__, main)
