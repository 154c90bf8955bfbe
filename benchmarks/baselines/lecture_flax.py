"""The lecture's program in plain Flax: Flax's layers and a loop over a jitted step."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from baselines.server import Program, serve_program
from dlc_jax.data import Examples, Normalize


class _Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(256, 200, rngs=rngs)
        self.fc2 = nnx.Linear(200, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(nnx.max_pool(self.conv1(x), (3, 3), strides=(3, 3)))
        x = nnx.relu(nnx.max_pool(self.conv2(x), (2, 2), strides=(2, 2)))
        return self.fc2(nnx.relu(self.fc1(x.reshape(len(x), -1))))


class _Lecture:
    def __init__(self, train: Examples, test: Examples) -> None:
        normalize = Normalize.fit(train.images)
        self._train = jax.device_put((normalize(train.images), train.labels))
        self._test = normalize(test.images), np.asarray(test.labels)
        graphdef, self._params = nnx.split(_Network(nnx.Rngs(0)))
        optimizer = optax.sgd(0.1)
        self._optimizer_state = optimizer.init(self._params)

        @jax.jit
        def step(params: Any, optimizer_state: Any, images: Any, labels: Any) -> Any:
            def loss(params: Any) -> jax.Array:
                logits = nnx.merge(graphdef, params)(images)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, optimizer_state = optimizer.update(grads, optimizer_state)
            return optax.apply_updates(params, updates), optimizer_state, value

        self._step = step
        self._logits = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))

    def compile(self) -> None:
        images, labels = self._train
        arguments = self._params, self._optimizer_state, images[:100], labels[:100]
        jax.block_until_ready(self._step(*arguments))

    def epoch(self) -> None:
        images, labels = self._train
        for start in range(0, len(labels) // 100 * 100, 100):
            batch = images[start : start + 100], labels[start : start + 100]
            self._params, self._optimizer_state, _ = self._step(
                self._params, self._optimizer_state, *batch
            )
        jax.block_until_ready(self._params)

    def test(self) -> float:
        images, labels = self._test
        parts = [
            self._logits(self._params, images[start : start + 1000])
            for start in range(0, len(labels), 1000)
        ]
        return float((jnp.concatenate(parts).argmax(1) != labels).mean())


def _build(train: Examples, test: Examples, arguments: argparse.Namespace) -> Program:
    del arguments
    return _Lecture(train, test)


if __name__ == "__main__":
    serve_program(_build)
