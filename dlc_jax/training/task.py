"""The interface of tasks, and metrics.

A task owns its training step. `Supervised` derives the step from a loss; an adversarial network or
a reinforcement learner writes its own. Everything else is a transformation of that step: data
parallelism (`dlc_jax.sharding.data_parallel`), the scan over batches (`train_steps`), and several
networks at once (`Ensemble`).
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.batching import Batch
from dlc_jax.sharding.data_parallel import Reduce, identity
from dlc_jax.typing import AnyArray


class WeightedSum(NamedTuple):
    """A metric summed over examples.

    Attributes:
      total: sum of the values times their weights.
      weight: sum of the weights.
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
        """The state before the first update."""
        ...

    def step(
        self, state: Any, batch: Batch, key: PRNGKeyArray | None, reduce: Reduce = identity
    ) -> tuple[Any, Metrics]:
        """The state after one update, and metrics on the batch before it.

        Args:
          state: the state.
          batch: a batch, or a device's part of it.
          key: the run's key, the same in all steps; fold `batch.epoch` and `batch.index` in.
          reduce: sums a pytree over the devices that share the batch.
        """
        ...

    def evaluate(self, state: Any, batch: Batch) -> Metrics:
        """Metrics on a batch of test data; a device's part where several share the batch."""
        ...
