"""The parts of the GPU's benchmark, in order of worth, within a budget of time."""

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

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.gpu import report as reports
from dlc_jax.benchmark.rounds import Report
from dlc_jax.errors import InputError

# A part is not begun with fewer seconds left.
_LEAST = 20.0


@dataclass(frozen=True)
class Part:
    """One thing that is measured.

    Attributes:
      function: what measures it, as module:name in this package.
      seconds: how long it may take.
      about: what it is, in a few words.
    """

    function: str
    seconds: float
    about: str


PARTS = {
    "lecture": Part("lecture:measure", 100, "the lecture's ten epochs against PyTorch"),
    "cifar10": Part("cifar10:measure", 110, "cifar10-fast over many seeds"),
    "seeds": Part("seeds:measure", 70, "64 and 512 networks at once"),
    "throughput": Part("throughput:measure", 75, "ResNet-50 at 224x224 in bfloat16"),
    "operations": Part("operations:measure", 60, "convolutions and poolings against XLA's own"),
    "correctness": Part("correctness:measure", 40, "gradients and losses"),
    "resnet20": Part("residual:measure_resnet20", 240, "cifar10-resnet20, 64,000 steps"),
    "resnet18": Part("residual:measure_resnet18", 240, "cifar10-resnet18 to 95 %"),
}


def run(
    *,
    budget: float,
    output_dir: Path,
    folder: Path | None = None,
    only: Sequence[str] = (),
    rehearse: bool = False,
    profile: Path | None = None,
    report: Report = lambda what, done, total: None,
) -> tuple[dict[str, Any], list[Path]]:
    """Measures one part after the other, and writes the results after each.

    Parts that an earlier run has measured on the same device are kept.

    Args:
      budget: seconds in all.
      output_dir: for the results, which are named after the device.
      folder: exported datasets, see `dlc_jax.benchmark.gpu.arrays`; None to use TFDS.
      only: some of `PARTS`; by default all.
      rehearse: whether everything is tiny, to see that it runs.
      profile: a folder for what a profiler sees; None for no profile.
      report: called with what runs next, and how many parts are done of how many.

    Returns:
      All results, and the files that were written.

    Raises:
      InputError: there is no such part, or the first one could not begin.
    """
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise InputError(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    chosen = [name for name in PARTS if name in only or not only]
    end = time.monotonic() + budget
    results: dict[str, Any] = {}
    files: list[Path] = []
    for done, name in enumerate(chosen):
        report(PARTS[name].about, done, len(chosen))
        left = end - time.monotonic()
        if left < min(_LEAST, budget):
            found: dict[str, Any] = {"results": {"failed": "no time was left"}}
        else:
            seconds = min(left, PARTS[name].seconds)
            found = _measured(PARTS[name], seconds, folder, rehearse, profile)
        if "machine" in found:
            results = _merged(results, found, name, output_dir, rehearse)
            files = reports.keep(output_dir, results)
        elif results:
            results["parts"].setdefault(name, found["results"])
        else:
            raise InputError(f"{PARTS[name].about}: {found['results']['failed']}")
    return results, files


def _measured(
    part: Part, seconds: float, folder: Path | None, rehearse: bool, profile: Path | None
) -> dict[str, Any]:
    """What a process has found until its end, or until its time was over."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "results.json"
        command = [sys.executable, "-m", "dlc_jax.benchmark.gpu.child"]
        # It stops by itself before it is stopped.
        command += ["--function", part.function, "--seconds", str(0.9 * seconds)]
        command += ["--results", str(path)]
        command += ["--folder", str(folder)] if folder else []
        command += ["--rehearse"] if rehearse else []
        command += ["--profile", str(profile)] if profile else []
        with tempfile.TemporaryFile() as complaint:
            ended = _ended(command, seconds, complaint)
            complaint.seek(0)
            last = complaint.read().decode(errors="replace").strip().splitlines()[-1:]
        found = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if not ended:
        found["results"].setdefault("failed", f"stopped after {seconds:.0f} s")
    elif ended == "failed":
        found["results"].setdefault("failed", last[0] if last else "without a word")
    found["results"]["wall_s"] = round(time.monotonic() - start, 1)
    return found


def _ended(command: list[str], seconds: float, complaint: Any) -> str | None:
    """How the process ended; None if it had to be stopped."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=complaint,
        stderr=complaint,
        env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"},
        start_new_session=True,
    )
    try:
        return "failed" if process.wait(seconds) else "well"
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Its own children, too.
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def _merged(
    results: dict[str, Any], found: dict[str, Any], name: str, output_dir: Path, rehearse: bool
) -> dict[str, Any]:
    if not results:
        results = {**found["machine"], "rehearsal": rehearse, "parts": {}}
        kept = output_dir / f"{machine.slug(results)}-{reports.section(results)}.json"
        if kept.exists():
            results["parts"] = json.loads(kept.read_text()).get("parts", {})
    measured = found["results"] | {
        key: found["machine"][key] for key in ("commit", "date", "versions")
    }
    results["parts"][name] = measured
    return results
