"""The lecture's program by this package, as `dlc-jax train` runs it."""

import argparse
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx

from dlc_jax import models, sharding, training
from dlc_jax.benchmark.contenders.clock import Program, serve
from dlc_jax.data.dataset import Examples, Normalise

_OPTIMIZER = optax.sgd(0.1)


class _Lecture:
    def __init__(self, train: Examples, test: Examples, arguments: argparse.Namespace) -> None:
        # Many networks at once fill the device by themselves.
        mesh = sharding.cpu_mesh(100) if arguments.seeds == 1 else None
        normalise = Normalise.fit(train.images)
        self._data = sharding.replicate((train, normalise), mesh)
        self._test = sharding.replicate((test, normalise), mesh)
        epoch: Any = partial(training.train_epoch, batch_size=100, mesh=mesh)
        if arguments.seeds == 1:
            self._state = sharding.replicate(_init(jax.random.key(0)), mesh)
        else:
            keys = jax.random.split(jax.random.key(0), arguments.seeds)
            self._state = jax.jit(jax.vmap(_init))(keys)
            epoch = jax.vmap(epoch, in_axes=(0, None, None))
        self._epoch: Any = jax.jit(epoch, donate_argnums=0)
        self._many = arguments.seeds > 1

    def compile(self) -> None:
        self._epoch = self._epoch.lower(self._state, *self._data).compile()

    def epoch(self) -> None:
        self._state, metrics = self._epoch(self._state, *self._data)
        jax.block_until_ready((self._state, metrics))

    def test(self) -> float:
        evaluate: Any = training.evaluate
        if self._many:
            evaluate = jax.vmap(evaluate, in_axes=(0, None, None))
        return float(evaluate(self._state, *self._test)[1].error.mean())


def _init(key: jax.Array) -> training.TrainState:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(key))
    return training.create_state(model, _OPTIMIZER)


def _build(train: Examples, test: Examples, arguments: argparse.Namespace) -> Program:
    return _Lecture(train, test, arguments)


if __name__ == "__main__":
    serve(_build)
