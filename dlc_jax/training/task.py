"""The interface of tasks, and metrics.

A task owns its training step. `Supervised` derives the step from a loss; a task for adversarial
training or reinforcement learning defines its own. Everything else is a transformation of that
step: data parallelism (`dlc_jax.sharding.data_parallel`), the scan over batches (`train_steps`),
and several networks at once (`Ensemble`).
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.batching import Batch
from dlc_jax.sharding.data_parallel import Reduce, identity
from dlc_jax.typing import AnyArray


class WeightedSum(NamedTuple):
    """A metric summed over examples.

    Attributes:
      total: Sum of the values times their weights.
      weight: Sum of the weights.
    """

    total: Float[AnyArray, "..."]
    weight: Float[AnyArray, "..."]

    @property
    def mean(self) -> Float[AnyArray, "..."]:
        """The weighted mean."""
        return self.total / self.weight


Metrics: TypeAlias = dict[str, WeightedSum]


class Task(Protocol):
    """Initialization, training step and evaluation of a model.

    A task must be hashable, since it is a static argument of `jax.jit`. A state is any pytree with
    an attribute `step`, the number of updates made.
    """

    def init(self, key: PRNGKeyArray) -> Any:
        """Returns the state before the first update."""
        ...

    def step(
        self, state: Any, batch: Batch, key: PRNGKeyArray | None, reduce: Reduce = identity
    ) -> tuple[Any, Metrics]:
        """Returns the state after one update, and the metrics on the batch before it.

        Args:
          state: The state.
          batch: A batch, or a device's part of it.
          key: The run's key, the same in all steps; fold in `batch.epoch` and `batch.index`.
          reduce: Sums a pytree over the devices that share the batch.
        """
        ...

    def evaluate(self, state: Any, batch: Batch) -> Metrics:
        """Returns the metrics on a batch of test data, or on a device's part of it."""
        ...
