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
    """The state of a network in training; the arrays are the pytree's leaves.

    Attributes:
      step: number of updates made, int32 scalar.
      params: trainable parameters.
      stats: the network's other variables, such as BatchNorm's running statistics.
      opt_state: state of the optimizer.
      graphdef: structure of the network.
    """

    step: Int[Array, ""]
    params: nnx.State[Any, Any]
    stats: nnx.State[Any, Any]
    opt_state: optax.OptState
    graphdef: nnx.GraphDef[nnx.Module] = field(metadata={"static": True})

    @property
    def model(self) -> nnx.Module:
        """The network with its present parameters and statistics."""
        return nnx.merge(self.graphdef, self.params, self.stats)


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Args:
      model: the network; it is copied.
      optimizer: any Optax gradient transformation.

    Example:
      >>> import optax
      >>> from flax import nnx
      >>> state = create_state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1))
      >>> state.params["kernel"].shape
      (2, 3)
    """
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Copies, since a donated state takes its arrays along; of NumPy's at once, since JAX copies in
    # the background.
    params, stats = jax.tree.map(lambda leaf: jnp.array(owned_copy(leaf)), (params, stats))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), graphdef)


def stack(states: Sequence[Any]) -> Any:
    """Several states of one structure as one, each leaf [networks, ...].

    Example:
      >>> stack([{"weight": jnp.zeros(3)}, {"weight": jnp.ones(3)}])["weight"].shape
      (2, 3)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(states: Any) -> list[Any]:
    """The states that `stack` stacked.

    Example:
      >>> first, second = unstack({"weight": jnp.zeros((2, 3))})
      >>> first["weight"].shape
      (3,)
    """
    count = len(jax.tree.leaves(states)[0])
    return [jax.tree.map(itemgetter(i), states) for i in range(count)]
