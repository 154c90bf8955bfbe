"""The state of training: parameters, statistics, and the optimizer's state, as one pytree."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Int

from dlc_jax.utils.arrays import owned_copy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a network in training, a pytree of arrays.

    Attributes:
      step: Number of updates made, int32 scalar.
      params: Trainable parameters.
      batch_stats: The network's other variables, such as BatchNorm's running statistics.
      opt_state: State of the optimizer.
      graphdef: Structure of the network.
    """

    step: Int[Array, ""]
    params: nnx.State[Any, Any]
    batch_stats: nnx.State[Any, Any]
    opt_state: optax.OptState
    graphdef: nnx.GraphDef[nnx.Module] = field(metadata={"static": True})

    @property
    def model(self) -> nnx.Module:
        """The network with its current parameters and statistics."""
        return nnx.merge(self.graphdef, self.params, self.batch_stats)


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update.

    Args:
      model: The network; it is copied.
      optimizer: Any Optax gradient transformation.

    Example:
      >>> import optax
      >>> from flax import nnx
      >>> state = create_state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1))
      >>> state.params["kernel"].shape
      (2, 3)
    """
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Copied because donating the state deletes its buffers; NumPy arrays are copied first because
    # JAX may read them later, in the background.
    params, batch_stats = jax.tree.map(
        lambda leaf: jnp.array(owned_copy(leaf)), (params, batch_stats)
    )
    return TrainState(
        jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), graphdef
    )


def stack(states: Sequence[Any]) -> Any:
    """Stacks states of the same structure into one, with leaves [networks, ...].

    Example:
      >>> stack([{"weight": jnp.zeros(3)}, {"weight": jnp.ones(3)}])["weight"].shape
      (2, 3)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(states: Any) -> list[Any]:
    """Splits a stacked state into a list of states; the inverse of `stack`.

    Example:
      >>> first, second = unstack({"weight": jnp.zeros((2, 3))})
      >>> first["weight"].shape
      (3,)
    """
    count = len(jax.tree.leaves(states)[0])
    return [jax.tree.map(itemgetter(i), states) for i in range(count)]
