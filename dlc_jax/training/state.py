"""Everything that training changes, as one pytree."""

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

from dlc_jax.data.dataset import unshared


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A network in training: arrays as the pytree's leaves, the rest static.

    Attributes:
      step: how many updates have been made; int32 scalar.
      params: the trainable parameters.
      stats: the network's other variables, such as BatchNorm's running statistics.
      opt_state: the optimizer's state.
      graphdef: the network's structure.
      optimizer: the Optax gradient transformation.
    """

    step: Int[Array, ""]
    params: nnx.State[Any, Any]
    stats: nnx.State[Any, Any]
    opt_state: optax.OptState
    graphdef: nnx.GraphDef[nnx.Module] = field(metadata={"static": True})
    optimizer: optax.GradientTransformation = field(metadata={"static": True})

    @property
    def model(self) -> nnx.Module:
        """The network with its present parameters and statistics."""
        return nnx.merge(self.graphdef, self.params, self.stats)


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Args:
      model: the network; it is copied, not changed.
      optimizer: any Optax gradient transformation, as `optax.sgd(0.1)`.
    """
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Copies, since the arrays of a state must not disappear with another's, when donated; of
    # NumPy's at once, since JAX copies in the background.
    params, stats = jax.tree.map(lambda leaf: jnp.array(unshared(leaf)), (params, stats))
    return TrainState(
        jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), graphdef, optimizer
    )


def stack(states: Sequence[TrainState]) -> TrainState:
    """Several networks' states as one, each leaf [networks, ...].

    Args:
      states: of networks of one structure, made with one and the same optimizer.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(states: TrainState) -> list[TrainState]:
    """The opposite of `stack`."""
    return [jax.tree.map(itemgetter(i), states) for i in range(len(states.step))]
