"""The machine of a measurement, and the files of results."""

import importlib.metadata
import json
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

from dlc_jax import __version__
from dlc_jax.utils import strict_json
from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import make_folder, write_atomically


def describe() -> dict[str, Any]:
    """Describes device, machine, versions, date and commit."""
    import jax

    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{kind}, {usable_cores()} cores" if device.platform == "cpu" else kind,
        "platform": device.platform,
        "cores": usable_cores(),
        "system": platform.platform(terse=True),
        "date": date.today().isoformat(),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "dlc_jax": __version__,
            **{name: _version(name) for name in ("jax", "flax", "torch")},
        },
    }


def save_section(folder: Path, section: str, results: dict[str, Any]) -> Path:
    """Writes results as one section of the device's file, leaving its other sections.

    Args:
      folder: Folder of results, which is created if it is missing.
      section: Name of the benchmark.
      results: Results, with an entry `device` from which the file's name is made.

    Returns:
      The file.
    """
    path = _results_file(folder, results)
    try:
        sections = json.loads(path.read_text())
    except (OSError, ValueError):
        sections = {}
    sections[section] = results
    _write(path, sections)
    return path


def save_file(folder: Path, section: str, results: dict[str, Any]) -> Path:
    """Writes results to a file of their own, named after the device and the benchmark."""
    path = _results_file(folder, results, f"-{section}")
    _write(path, results)
    return path


def slug(results: dict[str, Any]) -> str:
    """Returns the device's name in the form in which it begins file names."""
    return re.sub(r"[^a-z0-9]+", "-", results["device"].lower()).strip("-")


def _results_file(folder: Path, results: dict[str, Any], suffix: str = "") -> Path:
    make_folder(folder)
    return folder / f"{slug(results)}{suffix}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (strict_json.dumps(content, indent=2) + "\n").encode())


def _processor() -> str:
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        models = []
    name = models[0] if models else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)|\bCPU\b.*|\bProcessor\b", "", name).strip() or "CPU"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with "+changes" if the package has uncommitted changes."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "dlc_jax"], capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")
