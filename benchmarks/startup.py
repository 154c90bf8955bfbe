"""Times imports, and a process from its start to its first training step."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from harness import command, machine

from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Time importing dlc_jax, and a process from its start to its first training step.",
        "  python benchmarks/startup.py --rounds 3",
    )
    parser.add_argument(
        "--rounds",
        type=command.integer(1),
        default=5,
        help="measurements; medians are reported (default: %(default)s)",
    )
    options = parser.parse_args(arguments)

    make_folder(options.output_dir)
    with command.progress() as progress:
        results = run(rounds=options.rounds, progress=progress)
    path = machine.save_section(options.output_dir, "startup", results)
    command.show(table(results), [path], results, options.json)


def run(*, rounds: int, progress: command.Progress = command.no_progress) -> dict[str, Any]:
    """Times new processes.

    Args:
      rounds: Number of measurements, of which the median is taken.
      progress: Called before each round.

    Returns:
      Seconds of `import jax` and `import dlc_jax`, and from the start of a process to the end
      of its first training step, with an empty (`cold`) and a filled (`cached`) cache folder;
      with machine, versions, date and commit.
    """
    first_step = ["-m", "baselines.first_step"]
    seconds: dict[str, list[float]] = {
        "import_jax": [], "import_dlc_jax": [], "cold": [], "cached": []
    }  # fmt: skip
    for done in range(rounds):
        progress("starting processes", done, rounds)
        seconds["import_jax"].append(_seconds(["-c", "import jax"]))
        seconds["import_dlc_jax"].append(_seconds(["-c", "import jax, dlc_jax, dlc_jax.ops"]))
        with tempfile.TemporaryDirectory() as cache:
            seconds["cold"].append(_seconds(first_step, DLC_JAX_CACHE_DIR=cache))
            seconds["cached"].append(_seconds(first_step, DLC_JAX_CACHE_DIR=cache))
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return machine.describe() | {
        "rounds": rounds,
        "import_jax_s": medians["import_jax"],
        "import_dlc_jax_s": medians["import_dlc_jax"],
        "import_extra_s": round(medians["import_dlc_jax"] - medians["import_jax"], 3),
        "first_step_cold_s": medians["cold"],
        "first_step_cached_s": medians["cached"],
        "all_s": seconds,
    }


def _seconds(arguments: Sequence[str], **variables: str) -> float:
    """Duration of a Python process that does not use this one's compilation cache."""
    cores = str(usable_cores())
    environment = command.module_environment(JAX_NUM_CPU_DEVICES=cores, **variables)
    for name in os.environ:
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            del environment[name]
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True)
    return time.perf_counter() - start


def table(results: dict[str, Any]) -> list[str]:
    """Returns the results as lines of text."""
    return [
        f"new processes, medians of {results['rounds']}, on {results['device']}",
        f"  import jax: {results['import_jax_s']:.2f} s; with dlc_jax "
        f"{results['import_extra_s']:.2f} s more",
        f"  from start to the end of the first training step: {results['first_step_cold_s']:.2f} "
        f"s; with the cache of an earlier one {results['first_step_cached_s']:.2f} s",
    ]


if __name__ == "__main__":
    command.run(__file__, main)
