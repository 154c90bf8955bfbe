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

from dlc_jax.data.dataset import Examples
from dlc_jax.models.network import Network
from dlc_jax.nn.buffer import Fixed
from dlc_jax.nn.losses import cross_entropy, misclassified
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


@partial(jax.jit, static_argnames=("axis_name", "label_smoothing", "rest_size"))
def train_step(
    state: TrainState,
    batch: Examples,
    rest: Examples | None = None,
    *,
    axis_name: str | None = None,
    label_smoothing: float = 0.0,
    rest_size: int = 0,
) -> tuple[TrainState, Metrics]:
    """One step of stochastic gradient descent on a batch's loss.

    It is the network's own `loss` (see `dlc_jax.models.Network`), or for any other Flax NNX
    module the cross-entropy.

    Args:
      state: the network in training.
      batch: normalised float images [batch, height, width, channels] and labels [batch].
      rest: inside `jax.shard_map`, where the devices can't share the batch evenly: one more
        example for each, which takes a pass of its own, whose gradient is added to the first's.
      axis_name: inside `jax.shard_map`, the mesh axis over which the batch is spread evenly;
        gradients, loss and error are then averaged over it.
      label_smoothing: see `dlc_jax.nn.losses.cross_entropy`.
      rest_size: on so many devices, the first ones, the rest's example counts.

    Returns:
      The next state, and loss and error on the batch before the step.
    """
    params = _local(state.params, axis_name)
    (grads, metrics), stats = _pass(state, params, state.stats, batch, label_smoothing)
    if rest is not None:
        more, stats = _pass(state, params, stats, rest, label_smoothing)
        size = len(batch.labels) * lax.axis_size(axis_name) + rest_size
        share = lax.axis_size(axis_name) / size
        counts = lax.axis_index(axis_name) < rest_size
        grads, metrics = jax.tree.map(
            lambda one, other: (
                len(batch.labels) * share * one + jnp.where(counts, share * other, 0)
            ),
            (grads, metrics),
            more,
        )
    grads, metrics = _mean((grads, metrics), axis_name)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    changed = {"step": state.step + 1, "params": params, "stats": stats, "opt_state": opt_state}
    return dataclasses.replace(state, **changed), metrics


def couples_examples(state: TrainState) -> bool:
    """Whether in training what becomes of an example depends on the others of its batch.

    So it does in a network with batch normalisation, and in one with dropout, which draws for the
    whole of a batch at once; a batch can't be learned in parts then.
    """
    variables = jax.tree.leaves(state.stats, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return any(
        isinstance(variable, nnx.BatchStat | nnx.RngState) and not isinstance(variable, Fixed)
        for variable in variables
    )


def _pass(
    state: TrainState, params: Any, stats: Any, batch: Examples, label_smoothing: float
) -> tuple[tuple[Any, Metrics], Any]:
    """The gradients of a batch's loss and its metrics, and the statistics after it."""

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        # A copy, since variables of another trace can not be updated.
        model = nnx.merge(state.graphdef, params, stats, copy=True)
        model.train()
        loss, logits = _loss_and_logits(model, batch, label_smoothing)
        return loss, (logits, nnx.state(model, nnx.Not(nnx.Param)))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return (grads, Metrics(loss, misclassified(logits, batch.labels).mean())), stats


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
