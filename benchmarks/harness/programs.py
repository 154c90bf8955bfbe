"""The training programs of dlc_jax that are timed.

The benchmarks use the package's training functions here and in `harness.recipe_training` alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from dlc_jax import models, sharding, training
from dlc_jax.data.dataset import Examples, Normalise

BATCH_SIZE = 100
SGD = optax.sgd(0.1)


def lecture_network(rngs: nnx.Rngs, dtype: Any = None) -> Any:
    """The lecture's network for MNIST.

    Args:
      rngs: random number generators of the weights.
      dtype: the floating-point type; by default the network's.
    """
    options = {} if dtype is None else {"dtype": dtype}
    return models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=rngs, **options)


def new_state(network: nnx.Module, optimizer: optax.GradientTransformation = SGD) -> Any:
    """The training state of a network before its first step."""
    return training.create_state(network, optimizer)


def lecture_state(key: jax.Array) -> Any:
    """The training state of the lecture's network with weights drawn by a key."""
    return new_state(lecture_network(nnx.Rngs(key)))


def normalisation(images: Any) -> Normalise:
    """The function that shifts and scales images to mean 0 and standard deviation 1."""
    return Normalise.fit(images)


def train_epoch(batch_size: int = BATCH_SIZE, mesh: Mesh | None = None) -> Callable[..., Any]:
    """A function (state, examples, normalisation) -> (state, loss of each step)."""
    epoch: Any = partial(training.train_epoch, batch_size=batch_size, mesh=mesh)

    def losses(state: Any, examples: Examples, normalise: Normalise) -> tuple[Any, Any]:
        state, metrics = epoch(state, examples, normalise)
        return state, metrics.loss

    return losses


def train_step(state: Any, batch: Examples) -> tuple[Any, Any]:
    """One step on a batch of float images; returns the new state and the step's metrics."""
    return training.train_step(state, batch)


def test_error(state: Any, examples: Examples, normalise: Normalise) -> jax.Array:
    """The fraction of examples that are misclassified."""
    _, metrics = training.evaluate(state, examples, normalise)
    return metrics.error


def device_mesh(state: Any, batch_size: int, devices: Sequence[jax.Device]) -> Mesh | None:
    """The devices among which a network's batches are divided; None for a single one."""
    even = training.couples_examples(state)
    return sharding.device_mesh(batch_size, devices, even=even)
