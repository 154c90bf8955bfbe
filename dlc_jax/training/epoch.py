"""A whole pass over a split as one call on the device."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Float

from dlc_jax.data.examples import Examples, Normalise
from dlc_jax.losses import cross_entropy, misclassified
from dlc_jax.sharding import spread
from dlc_jax.training.state import TrainState
from dlc_jax.training.step import Metrics, eval_step, train_step


@partial(jax.jit, static_argnames=("batch_size", "mesh"))
def train_epoch(
    state: TrainState,
    train: Examples,
    normalise: Normalise,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One `train_step` for each batch, in the order in which the examples stand.

    Nothing passes between host and device until it returns. Where the batch size does not
    divide the number of examples, the last batch is smaller.

    Args:
      state: the network in training.
      train: uint8 images [examples, height, width, channels] and labels [examples], best
        put on the device beforehand (`jax.device_put`).
      normalise: what to apply to each batch of images.
      batch_size: examples an update.
      mesh: devices to spread each batch over, as `dlc_jax.sharding.cpu_mesh(batch_size)`;
        the arguments must lie on them (`dlc_jax.sharding.replicate`).

    Returns:
      The state after the epoch, and each step's loss and error, [steps].
    """
    full, rest = _batches(train, batch_size)
    epoch = spread(_steps, mesh, in_axes=(None, None, 1), out_axes=None)
    state, metrics = epoch(state, normalise, full)
    if rest is not None:
        state, last = train_step(state, _normalised(rest, normalise))
        metrics = jax.tree.map(lambda all_, one: jnp.append(all_, one), metrics, last)
    return state, metrics


@partial(jax.jit, static_argnames=("batch_size", "mesh"))
def evaluate(
    state: TrainState,
    examples: Examples,
    normalise: Normalise,
    *,
    batch_size: int = 500,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "examples classes"], Metrics]:
    """The logits of all examples in evaluation mode, with their mean loss and error.

    Args:
      state: the network.
      examples: uint8 images [examples, height, width, channels] and labels [examples].
      normalise: the same as in training.
      batch_size: examples at a time; it bounds the memory and changes nothing else.
      mesh: devices to spread each batch over, as for `train_epoch`.
    """
    full, rest = _batches(examples, batch_size)
    even = mesh if mesh is not None and batch_size % mesh.size == 0 else None
    logits = spread(_logits, even, in_axes=(None, None, 1), out_axes=1)(state, normalise, full)
    logits = logits.reshape(-1, logits.shape[-1])
    if rest is not None:
        logits = jnp.concatenate([logits, eval_step(state, _normalised(rest, normalise))[0]])
    loss = cross_entropy(logits, examples.labels)
    return logits, Metrics(loss, misclassified(logits, examples.labels).mean())


def _normalised(batch: Examples, normalise: Normalise) -> Examples:
    """The batch as a network takes it."""
    return Examples(normalise(batch.images), batch.labels)


def _steps(
    state: TrainState, normalise: Normalise, batches: Examples, *, axis_name: str | None
) -> tuple[TrainState, Metrics]:
    def step(state: TrainState, batch: Examples) -> tuple[TrainState, Metrics]:
        return train_step(state, _normalised(batch, normalise), axis_name=axis_name)

    return lax.scan(step, state, batches)


def _logits(
    state: TrainState, normalise: Normalise, batches: Examples, *, axis_name: str | None
) -> Float[Array, "batches batch classes"]:
    del axis_name
    return lax.map(lambda batch: eval_step(state, _normalised(batch, normalise))[0], batches)


def _batches(examples: Examples, batch_size: int) -> tuple[Examples, Examples | None]:
    """The full batches, [batches, batch_size, ...], and what is left over."""
    count = len(examples.labels)
    full = count // batch_size * batch_size
    stacked = jax.tree.map(
        lambda array: array[:full].reshape(-1, batch_size, *array.shape[1:]), examples
    )
    return stacked, jax.tree.map(lambda array: array[full:], examples) if full < count else None
