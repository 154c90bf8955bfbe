"""The lecture's program in dlc_jax, as `dlc-jax train` runs it."""

import argparse
from typing import Any

import jax
from harness import programs

from baselines.server import Program, serve_program
from dlc_jax import sharding
from dlc_jax.data.dataset import Examples


class _Lecture:
    def __init__(self, train: Examples, test: Examples, arguments: argparse.Namespace) -> None:
        # Many networks at once fill the device by themselves.
        mesh = sharding.cpu_mesh(programs.BATCH_SIZE) if arguments.seeds == 1 else None
        normalise = programs.normalisation(train.images)
        self._train = sharding.replicate((train, normalise), mesh)
        self._test = sharding.replicate((test, normalise), mesh)
        epoch: Any = programs.train_epoch(mesh=mesh)
        self._test_error: Any = programs.test_error
        if arguments.seeds == 1:
            self._state = sharding.replicate(programs.lecture_state(jax.random.key(0)), mesh)
        else:
            keys = jax.random.split(jax.random.key(0), arguments.seeds)
            self._state = jax.jit(jax.vmap(programs.lecture_state))(keys)
            epoch, self._test_error = (
                jax.vmap(function, in_axes=(0, None, None))
                for function in (epoch, self._test_error)
            )
        self._epoch: Any = jax.jit(epoch, donate_argnums=0)

    def compile(self) -> None:
        self._epoch = self._epoch.lower(self._state, *self._train).compile()

    def epoch(self) -> None:
        self._state, _ = jax.block_until_ready(self._epoch(self._state, *self._train))

    def test(self) -> float:
        return float(self._test_error(self._state, *self._test).mean())


def _build(train: Examples, test: Examples, arguments: argparse.Namespace) -> Program:
    return _Lecture(train, test, arguments)


if __name__ == "__main__":
    serve_program(_build)
