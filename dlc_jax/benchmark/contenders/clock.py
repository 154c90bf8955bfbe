"""What the contenders share: their arguments, how long they run, and the clock."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dlc_jax.benchmark.lecture import read_arrays
from dlc_jax.benchmark.rounds import answer
from dlc_jax.data.dataset import Examples

# How long one measurement of operations should take, in seconds: they are repeated, so that
# memory is new to the process, and slow, only for the first of them.
LEAST_SECONDS = 1.0


class Program(Protocol):
    """One implementation of the lecture's program. Each method waits for its results."""

    def compile(self) -> None:
        """Does whatever is done once, before the first epoch."""

    def epoch(self) -> None:
        """Trains for one epoch."""

    def test(self) -> float:
        """The fraction of test images misclassified."""


def serve(build: Callable[[Examples, Examples, argparse.Namespace], Program]) -> None:
    """Reads the arguments and the arrays, and does what it is asked to, with the time it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    train, test = read_arrays(arguments.arrays)
    program = build(train, test, arguments)

    def respond(do: str) -> dict[str, Any]:
        if do == "test":
            return {"error_percent": round(100 * program.test(), 3)}
        start = time.perf_counter()
        getattr(program, do)()
        return {"seconds": time.perf_counter() - start}

    answer(respond)


def serve_operations(prepare: Callable[..., Callable[[], float]]) -> None:
    """Prepares an operation when asked for one, and else times the one prepared.

    Args:
      prepare: called with the shape; gives what measures the seconds of one operation.
    """
    measure: Callable[[], float] | None = None

    def respond(shape: dict[str, int] | None = None) -> dict[str, float]:
        nonlocal measure
        if shape is not None:
            measure = prepare(**shape)
            return {}
        assert measure is not None
        return {"milliseconds": 1e3 * measure()}

    answer(respond)
