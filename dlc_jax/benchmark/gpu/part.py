"""What the parts of the GPU's benchmark share."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlc_jax.benchmark.gpu import arrays
from dlc_jax.data import Dataset

# Called with all results so far, as often as there are new ones.
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """What each part is told.

    Attributes:
      folder: where exported datasets are; None to read them with TFDS.
      seconds: how long the part may take.
      rehearse: whether everything is tiny, to see that it runs.
      profile: where to write what a profiler saw; None for no profile.
      began: when the part began, on the clock of `time.monotonic`.
    """

    folder: Path | None
    seconds: float
    rehearse: bool = False
    profile: Path | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def size(self, full: int, tiny: int) -> int:
        """The first number, or in a rehearsal the second."""
        return tiny if self.rehearse else full

    def dataset(self, name: str) -> Dataset:
        """MNIST or CIFAR-10; in a rehearsal random images of the same shape."""
        if self.rehearse:
            return arrays.random_dataset(name, 512)
        return arrays.read(name, self.folder)


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median_seconds(call: Callable[[], Any], times: int) -> float:
    """The median of several calls, after one that is not counted."""
    seconds_of(call)
    return statistics.median(seconds_of(call) for _ in range(times))


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(np.format_float_positional(value, digits, fractional=False, unique=False))
