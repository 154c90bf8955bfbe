"""What the contenders of the lecture's epoch share: their arguments and the clock."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dlc_jax.benchmark.lecture import read_arrays
from dlc_jax.benchmark.rounds import answer
from dlc_jax.data.examples import Examples


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
