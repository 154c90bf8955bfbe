"""Tasks that compile quickly, for tests that are not about a network."""

from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dlc_jax import sharding, training
from dlc_jax.data import ArraySource, Batch, Dataset, Examples, Normalize
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.nn import layers

NORMALIZE = Normalize((33.3,), (78.6,))


class OneLayer(nnx.Module):
    """A linear classifier of digits."""

    def __init__(self, key: jax.Array) -> None:
        self.layer = nnx.Linear(28 * 28, 10, rngs=nnx.Rngs(key))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x.reshape(len(x), -1))


class Coupled(nnx.Module):
    """A network whose outputs for an example depend on the batch, and on random numbers."""

    def __init__(self, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.conv = layers.Conv(1, 4, (2, 2), strides=2, rngs=rngs)
        self.norm = layers.BatchNorm(4, rngs=rngs)
        self.dropout = layers.Dropout(0.5, rngs=rngs)
        self.linear = layers.Linear(14 * 14 * 4, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = layers.flatten(nnx.relu(self.norm(self.conv(images))))
        return self.linear(self.dropout(x))


def task(
    model: Any = OneLayer,
    optimizer: optax.GradientTransformation | None = None,
    augmentation: Augmentation | None = None,
    **options: Any,
) -> training.Supervised:
    """Classification of digits."""
    return training.classification(
        model, optimizer or optax.sgd(0.01), NORMALIZE, augmentation=augmentation, **options
    )


def take(examples: Examples, start: int, stop: int) -> Batch:
    """A batch of some of the examples."""
    images, labels = (np.asarray(array[start:stop]) for array in examples)
    return Batch.from_examples(Examples(images, labels))


def whole_epoch(examples: Examples, batch_size: int, **options: Any) -> Batch:
    """An epoch as one chunk."""
    source = ArraySource(examples, batch_size, **options)
    [chunk] = source.chunks(0, source.plan.steps_per_epoch)
    return chunk


def train(
    task: training.Task,
    dataset: Dataset,
    batch_size: int,
    *,
    state: Any = None,
    num_epochs: int = 2,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    source: Any = None,
    **options: Any,
) -> tuple[training.Progress, list[training.EpochRecord]]:
    """Trains a task on a dataset in memory, or on another source."""
    source = source or ArraySource(dataset.train, batch_size, key=key, mesh=mesh)
    progress = training.Progress(task.init(jax.random.key(0)) if state is None else state)
    test = ArraySource(dataset.test, 20, mesh=mesh)
    records = training.train(
        task,
        source,
        num_epochs=num_epochs,
        progress=progress,
        key=key,
        test=test,
        **options,
    )
    return progress, records


def assert_close(ours: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compares pytrees of numbers and keys."""
    for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        if hasattr(one, "dtype") and jax.numpy.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def two_devices() -> Mesh:
    mesh = sharding.device_mesh(2, jax.devices()[:2])
    assert mesh is not None
    return mesh
