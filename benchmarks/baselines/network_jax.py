"""Training steps of a network of dlc_jax, as `dlc-jax train` runs them."""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from harness import programs

from baselines.server import serve_network
from dlc_jax import models, sharding
from dlc_jax.data import Examples

# Number of steps of a program.
_STEPS = 4


class _Network:
    def __init__(self, arguments: argparse.Namespace) -> None:
        name, size = arguments.network, arguments.size
        small = name == "resnet18-small"
        options = {"stem": "small"} if small else {}
        channels = 1 if name == "lenet5" else 3

        def create(rngs: nnx.Rngs) -> Any:
            return models.create(
                name.removesuffix("-small"),
                image_shape=(size, size, channels),
                num_classes=10,
                rngs=rngs,
                **options,
            )

        rng, count = np.random.default_rng(0), _STEPS * arguments.batch_size
        images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
        examples = Examples(images, rng.integers(0, 10, count, np.int32))
        task = programs.classification(create, images, optax.sgd(0.01, 0.9))
        self._program = programs.EpochProgram(
            task,
            jax.random.key(0),
            examples,
            arguments.batch_size,
            sharding.cpu_mesh(arguments.batch_size),
        )
        self.steps = _STEPS

    def compile(self) -> None:
        self._program.compile()
        self._program.train()

    def train(self) -> None:
        self._program.train()


if __name__ == "__main__":
    serve_network(_Network)
