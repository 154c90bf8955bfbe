"""Supervised learning: a training step derived from a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.batching import Batch
from dlc_jax.nn.layers import set_example_weights
from dlc_jax.sharding.data_parallel import Reduce, identity, varying_like
from dlc_jax.training.state import TrainState, create_state
from dlc_jax.training.task import Metrics, WeightedSum


def _no_metrics(outputs: Any, examples: Any) -> Mapping[str, Array]:
    del outputs, examples
    return {}


def _examples(batch: Batch, key: PRNGKeyArray | None) -> Any:
    del key
    return batch.examples


@dataclass(frozen=True)
class Supervised:
    """A task that minimizes the mean of a loss over the examples.

    Attributes:
      model: Creates the network from a key.
      loss: A function of network and examples that returns the loss of each example, [batch],
        and the network's outputs, a pytree of arrays [batch, ...].
      optimizer: Any Optax gradient transformation.
      metrics: A function of outputs and examples that returns further values of each example,
        [batch], by name.
      transform: A function of a batch and the run's key (None in evaluation) that returns the
        examples for `loss` and `metrics`, for example normalized and augmented. Random numbers
        that depend only on the key, the batch's `epoch` and each example's `index` are the same
        on any number of devices.
      eval_loss: The loss in evaluation; by default `loss`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> def squared_error(model, examples):
      ...     outputs = model(examples["x"])[:, 0]
      ...     return (outputs - examples["y"]) ** 2, outputs
      >>> task = Supervised(
      ...     lambda key: nnx.Linear(1, 1, rngs=nnx.Rngs(key)), squared_error, optax.sgd(0.1)
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> batch = Batch.from_examples({"x": jnp.ones((4, 1)), "y": jnp.full(4, 3.0)})
      >>> for _ in range(30):
      ...     state, metrics = task.step(state, batch, key=None)
      >>> bool(metrics["loss"].mean < 1e-3)
      True
    """

    model: Callable[[PRNGKeyArray], nnx.Module]
    loss: Callable[[Any, Any], tuple[Float[Array, " batch"], Any]]
    optimizer: optax.GradientTransformation
    metrics: Callable[[Any, Any], Mapping[str, Float[Array, " batch"]]] = _no_metrics
    transform: Callable[[Batch, PRNGKeyArray | None], Any] = _examples
    eval_loss: Callable[[Any, Any], tuple[Float[Array, " batch"], Any]] | None = None

    def init(self, key: PRNGKeyArray) -> TrainState:
        """Returns the state before the first update."""
        return create_state(self.model(key), self.optimizer)

    def step(
        self,
        state: TrainState,
        batch: Batch,
        key: PRNGKeyArray | None = None,
        reduce: Reduce = identity,
    ) -> tuple[TrainState, Metrics]:
        """Updates the network by the gradient of the mean loss; see `Task.step`."""
        examples = self.transform(batch, key)
        weights = batch.weights

        def total_loss(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            # Copied because NNX can't update variables of another trace.
            model = nnx.merge(state.graphdef, params, state.batch_stats, copy=True)
            model.train()
            if batch.mask is not None:
                set_example_weights(model, weights)
            losses, outputs = self.loss(model, examples)
            metrics = _weighted({"loss": losses, **self.metrics(outputs, examples)}, weights)
            return jnp.asarray(metrics["loss"].total), (
                metrics,
                nnx.state(model, nnx.Not(nnx.Param)),
            )

        gradient = jax.grad(total_loss, has_aux=True)
        grads, (metrics, batch_stats) = gradient(varying_like(state.params, batch))
        grads, metrics = reduce((grads, metrics))
        grads = jax.tree.map(lambda total: total / metrics["loss"].weight, grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = replace(
            state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        return after, metrics

    def evaluate(self, state: TrainState, batch: Batch) -> Metrics:
        """Returns the loss and metrics of the network in evaluation mode."""
        examples = self.transform(batch, None)
        losses, outputs = self._evaluate(state, examples)
        return _weighted({"loss": losses, **self.metrics(outputs, examples)}, batch.weights)

    def predict(self, state: TrainState, batch: Batch) -> Any:
        """Returns the network's outputs in evaluation mode, as the loss function returns them."""
        return self._evaluate(state, self.transform(batch, None))[1]

    def _evaluate(self, state: TrainState, examples: Any) -> tuple[Array, Any]:
        model = nnx.merge(state.graphdef, state.params, state.batch_stats, copy=True)
        model.eval()
        return (self.eval_loss or self.loss)(model, examples)


def _weighted(values: Mapping[str, Array], weights: Float[Array, " batch"]) -> Metrics:
    return {
        name: WeightedSum(
            jnp.vdot(weights, value.astype(jnp.promote_types(value.dtype, jnp.float32))),
            weights.sum(),
        )
        for name, value in values.items()
    }
