"""A training step as `dlc-jax train` does it first, on digits that need no download."""

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported

import jax
import optax
from flax import nnx

from dlc_jax import data, models, training

if __name__ == "__main__":
    digits = data.load("mnist-5k")
    normalise = data.Normalise.fit(digits.train.images)
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    state = training.create_state(model, optax.sgd(0.1))
    batch = data.Examples(normalise(digits.train.images[:100]), digits.train.labels[:100])
    jax.block_until_ready(training.train_step(state, batch))
