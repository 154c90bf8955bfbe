"""The settings of a part, its datasets, and timing."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from dlc_jax.data import Dataset
from gpu_parts import exported

# Called with all results of a part so far, whenever there are new ones.
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """The settings of a part.

    Attributes:
      folder: Folder of exported datasets; None to read them with TFDS.
      seconds: Maximum duration of the part.
      rehearse: Whether to run a small version of the part, to check that it works.
      profile: Folder for the profiler's files; None for no profile.
      start: Start of the part on the clock `time.monotonic`.
    """

    folder: Path | None
    seconds: float
    rehearse: bool = False
    profile: Path | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float:
        """The remaining seconds."""
        return self.seconds - (time.monotonic() - self.start)

    def size(self, full: int, tiny: int) -> int:
        """Returns the first number, or in a rehearsal the second."""
        return tiny if self.rehearse else full

    def dataset(self, name: str, rehearsed: int = 256) -> Dataset:
        """Returns MNIST or CIFAR-10; in a rehearsal, random images of the same shape."""
        if self.rehearse:
            return exported.random_dataset(name, rehearsed)
        return exported.read(name, self.folder)


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the duration of a call, until its results are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median_seconds(call: Callable[[], Any], repetitions: int) -> float:
    """Returns the median duration of several calls, after one that is not counted."""
    seconds_of(call)
    return statistics.median(seconds_of(call) for _ in range(repetitions))
