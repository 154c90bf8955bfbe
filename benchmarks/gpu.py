"""Measures a GPU: the lecture's program, CIFAR-10 in seconds, ResNet-50, and more.

It needs JAX, Flax, Optax, jaxtyping, Orbax, Matplotlib, safetensors and xxhash, and runs from a
checkout with `PYTHONPATH` alone, without the package's other dependencies.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts import report
from harness import command, machine

from dlc_jax.errors import InputError
from dlc_jax.utils.files import make_folder

# Minimum duration of a part, in seconds.
_MIN_SECONDS = 20.0

_EXAMPLES = """\
  python benchmarks/gpu.py
  python benchmarks/gpu.py --only lecture,cifar10 --arrays exported --budget 240
  python benchmarks/gpu.py --rehearse"""


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
      function: The function that measures it, module:name in `gpu_parts`.
      seconds: Maximum duration.
      description: What is measured.
    """

    function: str
    seconds: float
    description: str


PARTS = {
    "lecture": Part("lecture:measure", 100, "the lecture's ten epochs against PyTorch"),
    "cifar10": Part("cifar10:measure", 110, "cifar10-fast over many seeds"),
    "seeds": Part("seeds:measure", 70, "64 and 512 networks at once"),
    "throughput": Part("throughput:measure", 75, "ResNet-50 at 224x224 in bfloat16"),
    "operations": Part("operations:measure", 60, "convolutions and poolings against XLA's own"),
    "correctness": Part("correctness:measure", 40, "gradients and losses"),
    "resnet20": Part("resnet:measure_resnet20", 240, "cifar10-resnet20, 64,000 steps"),
    "resnet18": Part("resnet:measure_resnet18", 240, "cifar10-resnet18 to 95 %"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and prints and saves the results."""
    parser = command.Parser(
        "Measure a GPU. The parts run in order of importance, each in a process of its own, until "
        f"the budget is spent: {', '.join(PARTS)}. Results are written after each part; parts "
        "measured earlier on the same device are kept.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--budget",
        type=command.positive_number,
        default=480.0,
        metavar="SECONDS",
        help="maximum duration in total (default: 480)",
    )
    add("--only", type=command.names, default=(), help="some of the parts, separated by commas")
    add(
        "--arrays",
        type=command.path,
        metavar="FOLDER",
        help="folder of exported datasets, mnist-*.npz and cifar10-*.npz, to use instead of TFDS's",
    )
    add("--rehearse", action="store_true", help="run small versions of the parts, on any device")
    add(
        "--profile",
        type=command.path,
        metavar="FOLDER",
        help="also write profiles to this folder",
    )
    options = parser.parse_args(arguments)

    make_folder(options.output_dir)
    with command.progress() as progress:
        results, files = run(
            budget=options.budget,
            output_dir=options.output_dir,
            only=options.only,
            options=Options(options.arrays, options.rehearse, options.profile),
            progress=progress,
        )
    lines = report.markdown(results).splitlines() if results else []
    command.show(lines, files, results, options.json)


@dataclass(frozen=True)
class Options:
    """Options of all parts.

    Attributes:
      folder: Folder of exported datasets, see `gpu_parts.exported`; None to use TFDS.
      rehearse: Whether to run small versions of the parts, to check that they work.
      profile: Folder for profiles; None for no profile.
    """

    folder: Path | None = None
    rehearse: bool = False
    profile: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """The options as arguments of `gpu_parts.run_part`."""
        return [
            *(["--folder", str(self.folder)] if self.folder else []),
            *(["--rehearse"] if self.rehearse else []),
            *(["--profile", str(self.profile)] if self.profile else []),
        ]


def run(
    *,
    budget: float,
    output_dir: Path,
    only: Sequence[str] = (),
    options: Options = Options(),
    progress: command.Progress = command.no_progress,
) -> tuple[dict[str, Any], list[Path]]:
    """Measures one part after the other, and writes the results after each.

    Parts that an earlier run has measured on the same device are kept.

    Args:
      budget: Maximum duration in seconds.
      output_dir: Folder for the results, which are named after the device.
      only: Names from `PARTS`; by default all.
      options: Options of all parts.
      progress: Called before each part.

    Returns:
      All results, and the files that were written.

    Raises:
      InputError: A part is unknown, or the first one could not start.
    """
    command.check_choice("part", only, list(PARTS))
    chosen = [name for name in PARTS if name in only or not only]
    end = time.monotonic() + budget
    results: dict[str, Any] = {}
    files: list[Path] = []
    for done, name in enumerate(chosen):
        part = PARTS[name]
        progress(part.description, done, len(chosen))
        remaining = end - time.monotonic()
        if remaining < min(_MIN_SECONDS, budget):
            measured: dict[str, Any] = {"results": {"failed": "no time was left"}}
        else:
            # The limits of the parts do not apply to a rehearsal, which may run on a slow device.
            limit = remaining if options.rehearse else min(remaining, part.seconds)
            measured = _measure(part, limit, options)
        if "machine" in measured:
            results = _add(name, measured, results, output_dir, options.rehearse)
            files = report.save(output_dir, results)
        elif results:
            results["parts"].setdefault(name, measured["results"])
        else:
            raise InputError(f"{part.description}: {measured['results']['failed']}")
    return results, files


def _measure(part: Part, seconds: float, options: Options) -> dict[str, Any]:
    """The results of a part's process, up to its end or its time limit."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "results.json"
        command_line = [sys.executable, "-m", "gpu_parts.run_part", "--function", part.function]
        # The process has a shorter limit, so that it ends before it is killed.
        command_line += ["--seconds", str(0.9 * seconds), "--results", str(path)]
        command_line += options.arguments
        with tempfile.TemporaryFile() as output:
            status = _exit_status(command_line, seconds, output)
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:]
        measured = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if status is None:
        measured["results"].setdefault("failed", f"stopped after {seconds:.0f} s")
    elif status:
        measured["results"].setdefault("failed", last[0] if last else "no error message")
    measured["results"]["wall_s"] = round(time.monotonic() - start, 1)
    return measured


def _exit_status(command_line: list[str], seconds: float, output: Any) -> int | None:
    """Runs a process and returns its exit status; None if it had to be killed."""
    process = subprocess.Popen(
        command_line,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=command.module_environment(JAX_TRACEBACK_FILTERING="off"),
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Its child processes are killed, too.
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def _add(
    name: str,
    measured: dict[str, Any],
    results: dict[str, Any],
    output_dir: Path,
    rehearse: bool,
) -> dict[str, Any]:
    """Adds a part to the results, or to those of earlier runs on the device."""
    description = measured["machine"]
    if not results:
        results = {**description, "rehearsal": rehearse, "parts": {}}
        earlier = output_dir / f"{machine.slug(results)}-{report.section(results)}.json"
        if earlier.exists():
            results["parts"] = json.loads(earlier.read_text()).get("parts", {})
    results["parts"][name] = measured["results"] | {
        key: description[key] for key in ("commit", "date", "versions")
    }
    return results


if __name__ == "__main__":
    # Without platformdirs, the user's cache folder is unknown.
    os.environ.setdefault("DLC_JAX_CACHE_DIR", os.path.join(tempfile.gettempdir(), "dlc_jax"))
    command.run(__file__, main)
