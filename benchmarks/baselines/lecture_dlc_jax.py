"""The lecture's program in dlc_jax, as `dlc-jax train` runs it."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from harness import programs

from baselines.server import Program, serve_program
from dlc_jax import sharding
from dlc_jax.data import Examples


class _Lecture:
    def __init__(self, train: Examples, test: Examples, arguments: argparse.Namespace) -> None:
        create = partial(programs.lecture_network, dtype=jnp.dtype(arguments.dtype))
        task = programs.classification(create, train.images)
        keys, mesh = jax.random.key(0), sharding.cpu_mesh(programs.BATCH_SIZE)
        if arguments.seeds > 1:
            # Many networks at once use the whole device, so batches are not divided.
            keys, mesh = jax.random.split(keys, arguments.seeds), None
        self._program = programs.EpochProgram(task, keys, train, mesh=mesh)
        self._test = test

    def compile(self) -> None:
        self._program.compile()

    def epoch(self) -> None:
        self._program.train()

    def test(self) -> float:
        return self._program.test_error(self._test)


def _build(train: Examples, test: Examples, arguments: argparse.Namespace) -> Program:
    return _Lecture(train, test, arguments)


if __name__ == "__main__":
    serve_program(_build)
