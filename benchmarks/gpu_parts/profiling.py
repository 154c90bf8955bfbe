"""Kernels of a GPU by duration."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_MAX_KERNELS = 60


def kernels(call: Callable[[], Any], folder: Path) -> dict[str, Any]:
    """Profiles the kernels that run on the device during a call.

    Args:
      call: The function to profile; it is called once before.
      folder: Folder for the profiler's files, which TensorBoard and XProf show.

    Returns:
      The number of kernels and their total duration in microseconds, and the same for each of
      the kernels with the longest total duration.
    """
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(call())
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    total: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if "Stream" not in line.name:
                continue
            for event in line.events:
                total[event.name] += event.duration_ns / 1e3
                times[event.name] += 1
    return {
        "times": times.total(),
        "microseconds": round(total.total(), 1),
        "kernels": [
            {"kernel": name, "times": times[name], "microseconds": round(microseconds, 1)}
            for name, microseconds in total.most_common(_MAX_KERNELS)
        ],
    }
