"""Training, evaluation and prediction on many batches, in one compiled program each.

Nothing is transferred between host and devices within a program.
"""

import functools
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data.batching import Batch
from dlc_jax.data.source import Source
from dlc_jax.sharding.data_parallel import Reduce
from dlc_jax.training.task import Metrics, Task, WeightedSum


@partial(jax.jit, static_argnames=("task", "mesh"))
def train_steps(
    task: Task, state: Any, chunk: Batch, key: PRNGKeyArray | None = None, mesh: Mesh | None = None
) -> tuple[Any, Metrics]:
    """Trains on each batch of a chunk, by `jax.lax.scan`.

    Args:
      task: The task.
      state: The state, on the devices of the mesh (`dlc_jax.sharding.replicate`).
      chunk: Stacked batches, from a `dlc_jax.data.Source`.
      key: The run's key.
      mesh: Devices that share each batch.

    Returns:
      The state after the steps, and the metrics of each step, [steps].

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> def squared(model, x):
      ...     outputs = model(x)
      ...     return (outputs**2).sum(-1), outputs
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)), squared, optax.sgd(0.1)
      ... )
      >>> source = ArraySource(np.ones((6, 2), np.float32), batch_size=2)
      >>> [epoch] = source.chunks(0, 3)
      >>> state, metrics = train_steps(task, task.init(jax.random.key(0)), epoch)
      >>> metrics["loss"].mean.shape
      (3,)
    """

    def steps(state: Any, chunk: Batch, key: Any, reduce: Reduce) -> tuple[Any, Metrics]:
        return lax.scan(lambda state, batch: task.step(state, batch, key, reduce), state, chunk)

    return sharding.data_parallel(steps, mesh, batch_axis=1)(state, chunk, key)


@partial(jax.jit, static_argnames=("task", "mesh"))
def evaluate_steps(task: Task, state: Any, chunk: Batch, mesh: Mesh | None = None) -> Metrics:
    """Computes the metrics over all batches of a chunk.

    Args:
      task: The task.
      state: The state, on the devices of the mesh.
      chunk: Stacked batches.
      mesh: Devices that share each batch.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)),
      ...     lambda model, x: ((model(x) ** 2).sum(-1), model(x)),
      ...     optax.sgd(0.1),
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> source = ArraySource(np.zeros((6, 2), np.float32), batch_size=4)
      >>> [chunk] = source.chunks(0, 2)
      >>> evaluate_steps(task, state, chunk)["loss"].weight
      Array(6., dtype=float32)
    """

    def steps(state: Any, chunk: Batch, key: Any, reduce: Reduce) -> Metrics:
        del key
        metrics = lax.map(lambda batch: task.evaluate(state, batch), chunk)
        return reduce(jax.tree.map(lambda sums: sums.sum(0), metrics))

    return sharding.data_parallel(steps, mesh, batch_axis=1)(state, chunk)


def evaluate(task: Task, state: Any, source: Source) -> Metrics:
    """Computes the metrics over one epoch of a source.

    Args:
      task: The task.
      state: The state, on the devices of the source.
      source: Test data, without shuffling.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)),
      ...     lambda model, x: ((model(x) ** 2).sum(-1), model(x)),
      ...     optax.sgd(0.1),
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> source = ArraySource(np.zeros((6, 2), np.float32), batch_size=4)
      >>> float(means(evaluate(task, state, source))["loss"])
      0.0
    """
    chunks = source.chunks(0, source.plan.steps_per_epoch)
    return functools.reduce(
        add_sums, (evaluate_steps(task, state, chunk, source.mesh) for chunk in chunks)
    )


def add_sums(one: Metrics, other: Metrics) -> Metrics:
    """Adds the metrics of two sets of examples, on the host."""
    return jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), one, other)


@partial(jax.jit, static_argnames=("task", "mesh"))
def predict_steps(task: Any, state: Any, chunk: Batch, mesh: Mesh | None = None) -> Any:
    """Predicts each batch of a chunk, including padding; returns arrays [steps, batch, ...].

    Args:
      task: A task with a method `predict(state, batch)`, such as `Supervised`.
      state: The state, on the devices of the mesh.
      chunk: Stacked batches.
      mesh: Devices that share each batch.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)),
      ...     lambda model, x: ((model(x) ** 2).sum(-1), model(x)),
      ...     optax.sgd(0.1),
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> source = ArraySource(np.zeros((6, 2), np.float32), batch_size=4)
      >>> [chunk] = source.chunks(0, 2)
      >>> predict_steps(task, state, chunk).shape
      (2, 4, 1)
    """

    def steps(state: Any, chunk: Batch, key: Any, reduce: Reduce) -> Any:
        del key, reduce
        return lax.map(lambda batch: task.predict(state, batch), chunk)

    return sharding.data_parallel(steps, mesh, batch_axis=1, out_batch_axis=1)(state, chunk)


def predict(task: Any, state: Any, source: Source) -> Any:
    """Predicts one epoch of a source; returns NumPy arrays [examples, ...].

    Args:
      task: A task with a method `predict(state, batch)`.
      state: The state, on the devices of the source.
      source: Data, without shuffling.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from dlc_jax.data import ArraySource
      >>> from dlc_jax.training import Supervised
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)),
      ...     lambda model, x: ((model(x) ** 2).sum(-1), model(x)),
      ...     optax.sgd(0.1),
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> source = ArraySource(np.zeros((6, 2), np.float32), batch_size=4)
      >>> predict(task, state, source).shape
      (6, 1)
    """
    parts = []
    for chunk in source.chunks(0, source.plan.steps_per_epoch):
        outputs = predict_steps(task, state, chunk, source.mesh)
        outputs, mask = sharding.device_get((outputs, chunk.mask), source.mesh)
        real = slice(None) if mask is None else mask.ravel() > 0
        parts.append(jax.tree.map(lambda a, real=real: a.reshape(-1, *a.shape[2:])[real], outputs))
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)


def means(metrics: Metrics) -> dict[str, np.ndarray]:
    """Returns the weighted means of metrics, on the host.

    Example:
      >>> from dlc_jax.training import WeightedSum
      >>> float(means({"error": WeightedSum(3.0, 4.0)})["error"])
      0.75
    """
    return {
        name: np.asarray(each.total) / np.asarray(each.weight) for name, each in metrics.items()
    }


def sums_over_steps(metrics: Metrics) -> Metrics:
    """Sums metrics, [steps, ...], over the steps."""
    return {
        name: WeightedSum(np.asarray(each.total).sum(0), np.asarray(each.weight).sum(0))
        for name, each in metrics.items()
    }
