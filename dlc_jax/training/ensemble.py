"""Several networks trained at once, by `vmap`."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dlc_jax.data.batching import Batch
from dlc_jax.sharding.data_parallel import Reduce, identity
from dlc_jax.training.task import Metrics, Task


@dataclass(frozen=True)
class Ensemble:
    """A task for several networks at once, each trained by the same task.

    States and metrics have a leading axis [networks], and so do the arrays of a batch if each
    network has its own examples (see `dlc_jax.data.ArraySource`).

    Attributes:
      task: The task of each network.
    """

    task: Task

    def init(self, keys: PRNGKeyArray) -> Any:
        """Returns the initial states of as many networks as there are keys, [networks]."""
        return jax.vmap(self.task.init)(keys)

    def step(
        self,
        state: Any,
        batch: Batch,
        key: PRNGKeyArray | None = None,
        reduce: Reduce = identity,
    ) -> tuple[Any, Metrics]:
        """Updates each network; `key` is an array of keys, [networks]."""

        def step(state: Any, batch: Batch, key: PRNGKeyArray | None) -> tuple[Any, Metrics]:
            return self.task.step(state, batch, key, reduce)

        own_examples = 0 if jnp.ndim(batch.index) > 1 else None
        return jax.vmap(step, (0, own_examples, 0))(state, batch, key)

    def evaluate(self, state: Any, batch: Batch) -> Metrics:
        """Returns the metrics of each network."""
        return jax.vmap(self.task.evaluate, (0, None))(state, batch)
