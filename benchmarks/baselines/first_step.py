"""The first training step of `dlc-jax train`, on digits that need no download."""

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported

import jax
import optax
from flax import nnx

from dlc_jax import data, models, training


def _create(key: jax.Array) -> nnx.Module:
    return models.create("lecture", rngs=nnx.Rngs(key))


if __name__ == "__main__":
    digits = data.load("mnist-5k").train
    task = training.classification(_create, optax.sgd(0.1), data.Normalize.fit(digits.images))
    [chunk] = data.ArraySource(digits, 100).chunks(0, 1)
    jax.block_until_ready(training.train_steps(task, task.init(jax.random.key(0)), chunk))
