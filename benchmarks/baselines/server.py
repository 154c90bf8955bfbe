"""Arguments and timing of the programs that are compared."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.arrays import read_arrays
from harness.workers import serve

from dlc_jax.data.dataset import Examples

# Duration of a measurement of an operation, in seconds.
MIN_SECONDS = 0.25


class Program(Protocol):
    """An implementation of the lecture's program. Each method waits for its results."""

    def compile(self) -> None:
        """Does the work that precedes the first epoch."""

    def epoch(self) -> None:
        """Trains for one epoch."""

    def test(self) -> float:
        """Returns the fraction of test images that are misclassified."""


def serve_program(build: Callable[[Examples, Examples, argparse.Namespace], Program]) -> None:
    """Responds to requests to compile, to train for an epoch and to test, with the time taken.

    Args:
      build: Called with training images, test images and the command line; returns the program.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    train, test = read_arrays(arguments.arrays)
    program = build(train, test, arguments)

    def respond(method: str) -> dict[str, Any]:
        if method == "test":
            return {"error_percent": round(100 * program.test(), 3)}
        start = time.perf_counter()
        getattr(program, method)()
        return {"seconds": time.perf_counter() - start}

    serve(respond)


def serve_operations(prepare: Callable[..., Callable[[], float]]) -> None:
    """Prepares an operation if a request has a shape; otherwise times the one prepared last.

    Args:
      prepare: Called with the shape; returns a function that measures the seconds of a call.
    """
    measure: Callable[[], float] | None = None

    def respond(shape: dict[str, int] | None = None) -> dict[str, float]:
        nonlocal measure
        if shape is not None:
            measure = prepare(**shape)
            return {}
        assert measure is not None
        return {"milliseconds": 1e3 * measure()}

    serve(respond)


class NetworkProgram(Protocol):
    """Training of a network. Each method waits for its results.

    Attributes:
      steps: Number of steps of a call of `train`.
    """

    steps: int

    def compile(self) -> None:
        """Does the work that precedes the first step."""

    def train(self) -> None:
        """Trains for some steps."""


def serve_network(build: Callable[[argparse.Namespace], NetworkProgram]) -> None:
    """Responds to requests to compile and to train, with the time taken.

    Args:
      build: Called with the command line; returns the program.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    program = build(parser.parse_args())

    def respond(method: str) -> dict[str, float]:
        if method == "compile":
            return {"seconds": _seconds(program.compile)}
        seconds, calls = 0.0, 0
        while seconds < MIN_SECONDS:
            seconds, calls = seconds + _seconds(program.train), calls + 1
        return {"milliseconds": 1e3 * seconds / calls / program.steps}

    serve(respond)


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
