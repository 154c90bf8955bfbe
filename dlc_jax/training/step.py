"""One update of the parameters, and one look at how good they are."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from dlc_jax.data.examples import Examples
from dlc_jax.losses import cross_entropy, misclassified
from dlc_jax.models.network import Network
from dlc_jax.training.state import TrainState

Tree = TypeVar("Tree")


class Metrics(NamedTuple):
    """How a network did on some examples.

    Attributes:
      loss: the mean loss; in training the network's own, else cross-entropy in nats.
      error: fraction of examples that were misclassified, from 0 to 1.
    """

    loss: Float[Array, "*steps"]
    error: Float[Array, "*steps"]


@partial(jax.jit, static_argnames=("axis_name", "label_smoothing"))
def train_step(
    state: TrainState,
    batch: Examples,
    *,
    axis_name: str | None = None,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One step of stochastic gradient descent on a batch's loss.

    It is the network's own `loss` (see `dlc_jax.models.Network`), or for any other Flax NNX
    module the cross-entropy.

    Args:
      state: the network in training.
      batch: normalised float images [batch, height, width, channels] and labels [batch].
      axis_name: inside `jax.shard_map`, the mesh axis over which the batch is spread evenly;
        gradients, loss and error are then averaged over it.
      label_smoothing: see `dlc_jax.losses.cross_entropy`.

    Returns:
      The next state, and loss and error on the batch before the step.
    """

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        # A copy, since variables of another trace can not be updated.
        model = nnx.merge(state.graphdef, params, state.stats, copy=True)
        model.train()
        loss, logits = _loss_and_logits(model, batch, label_smoothing)
        stats = nnx.state(model, nnx.Not(nnx.Param))
        return loss, (logits, stats)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, stats)), grads = grad_fn(_local(state.params, axis_name))
    metrics = Metrics(loss, misclassified(logits, batch.labels).mean())
    grads, metrics = _mean((grads, metrics), axis_name)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    changed = {"step": state.step + 1, "params": params, "stats": stats, "opt_state": opt_state}
    return dataclasses.replace(state, **changed), metrics


def _loss_and_logits(
    model: nnx.Module, batch: Examples, label_smoothing: float
) -> tuple[Array, Array]:
    if isinstance(model, Network):
        stages = model.stages(jnp.asarray(batch.images))
        return model.loss(stages, batch.labels, label_smoothing), stages["logits"]
    logits = model(batch.images)
    return cross_entropy(logits, batch.labels, label_smoothing), logits


def _local(params: Tree, axis_name: str | None) -> Tree:
    """Parameters with respect to which each device has a gradient of its own."""
    return params if axis_name is None else lax.pcast(params, axis_name, to="varying")


def _mean(tree: Tree, axis_name: str | None) -> Tree:
    """The mean over devices, as one array: XLA:CPU takes three times as long over several."""
    if axis_name is None:
        return tree
    flat, unflatten = ravel_pytree(tree)
    return unflatten(lax.pmean(flat, axis_name))


@jax.jit
def eval_step(state: TrainState, batch: Examples) -> tuple[Float[Array, "batch classes"], Metrics]:
    """The logits of a batch in evaluation mode, with their loss and error.

    Args:
      state: the network.
      batch: normalised float images [batch, height, width, channels] and labels [batch].
    """
    model = state.model
    model.eval()
    logits = model(batch.images)
    loss = cross_entropy(logits, batch.labels)
    return logits, Metrics(loss, misclassified(logits, batch.labels).mean())
