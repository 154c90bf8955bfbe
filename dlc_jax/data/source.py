"""Sources of training data: batches, stacked into chunks that lie on the devices.

A training loop asks a `Source` for chunks and scans over their batches. `ArraySource` has its
data in memory; `dlc_jax.data.streaming.StreamingSource` reads it from disk.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int, PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data.batching import Batch, BatchPlan
from dlc_jax.data.shuffling import epoch_permutation


class Source(Protocol):
    """A source of batches for a training loop.

    Attributes:
      plan: How epochs are divided into batches.
      mesh: Devices that share each batch; None for one device.
    """

    plan: BatchPlan
    mesh: Mesh | None

    def chunks(self, start: int, stop: int, max_steps: int | None = None) -> Iterator[Batch]:
        """Yields chunks of stacked batches, from step `start` to step `stop` of the training.

        Args:
          start: First step.
          stop: Step before which to stop.
          max_steps: Chunks end wherever the steps done in an epoch are a multiple of this.

        Yields:
          Batches with a leading axis [steps], on the devices. A chunk never crosses the end of
          an epoch.
        """
        ...

    def sizes(self, start: int, stop: int, max_steps: int | None = None) -> Sequence[int]:
        """Returns the different numbers of steps of these chunks."""
        ...

    def abstract(self, num_steps: int) -> Batch:
        """Returns the shapes, dtypes and shardings of a chunk of `num_steps` steps."""
        ...


class ArraySource:
    """A source of examples in memory.

    With a key, each epoch has its own random order, and batches are gathered on the devices;
    without one, examples keep their order.

    Args:
      examples: A pytree of arrays [examples, ...].
      batch_size: Batch size.
      key: The run's key; an array of keys [networks] gives each network of an ensemble its own
        order, and batches an axis [networks] after the axis of steps.
      mesh: Devices that share each batch.

    Raises:
      InputError: The batch size is not between 1 and the number of examples.

    Example:
      >>> import numpy as np
      >>> source = ArraySource({"x": np.arange(10.0)}, batch_size=4)
      >>> [chunk] = source.chunks(0, 3)
      >>> chunk.examples["x"].shape, chunk.mask.sum()
      ((3, 4), Array(10., dtype=float32))
    """

    def __init__(
        self,
        examples: Any,
        batch_size: int,
        *,
        key: PRNGKeyArray | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        num_examples = len(jax.tree.leaves(examples)[0])
        self.plan = BatchPlan(num_examples, batch_size, 1 if mesh is None else mesh.size)
        self.mesh = mesh
        self._ordered: dict[tuple[int, int], Batch] = {}
        if key is None:
            self._key = None
            # The caller may change its arrays before all chunks have been cut from these.
            self._examples = jax.tree.map(np.array, examples)
        else:
            self._examples, self._key = sharding.replicate((examples, key), mesh)

    def chunks(self, start: int, stop: int, max_steps: int | None = None) -> Iterator[Batch]:
        """See `Source.chunks`."""
        for first, count in self.plan.chunks(start, stop, max_steps):
            epoch, step = divmod(first, self.plan.steps_per_epoch)
            if self._key is None:
                yield self._in_order(epoch, step, count)
            else:
                position = sharding.replicate((np.int32(epoch), np.int32(step)), self.mesh)
                yield _gather(self._examples, self._key, *position, self.plan, count, self.mesh)

    def sizes(self, start: int, stop: int, max_steps: int | None = None) -> Sequence[int]:
        """See `Source.sizes`."""
        # Chunks are the same in every epoch.
        stop = min(stop, start + 2 * self.plan.steps_per_epoch)
        return list(dict.fromkeys(size for _, size in self.plan.chunks(start, stop, max_steps)))

    def abstract(self, num_steps: int) -> Batch:
        """See `Source.abstract`."""
        networks = () if self._key is None else self._key.shape
        rows = (num_steps, *networks, self.plan.padded_batch_size)

        def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
            where = sharding.batch_sharding(self.mesh, axis=1, ndim=len(shape))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        examples = jax.tree.map(
            lambda a: abstract((*rows, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)),
            self._examples,
        )
        mask = abstract(rows, np.float32) if self.plan.is_padded else None
        epoch = abstract((num_steps, *networks), np.int32)
        return Batch(examples, abstract(rows, np.int32), epoch, mask)

    def _in_order(self, epoch: int, step: int, count: int) -> Batch:
        """A chunk of an epoch without shuffling, which is put on the devices once."""
        if (step, count) not in self._ordered:
            index, mask = self.plan.positions(np.arange(step, step + count))
            examples = jax.tree.map(lambda array: array[index], self._examples)
            chunk = Batch(examples, index, np.zeros(count, np.int32), mask)
            self._ordered[step, count] = sharding.put_batch(chunk, self.mesh, axis=1)
        chunk = self._ordered[step, count]
        numbers = sharding.replicate(np.full(count, epoch, np.int32), self.mesh)
        return Batch(chunk.examples, chunk.index, numbers, chunk.mask)


@partial(jax.jit, static_argnames=("plan", "count", "mesh"))
def _gather(
    examples: Any,
    key: PRNGKeyArray,
    epoch: Int[Array, ""],
    step: Int[Array, ""],
    plan: BatchPlan,
    count: int,
    mesh: Mesh | None,
) -> Batch:
    """A chunk of an epoch's permutation."""

    def gather(key: PRNGKeyArray) -> Batch:
        steps = step + jnp.arange(count, dtype=jnp.int32)
        positions, mask = plan.positions(steps, jnp)
        index = epoch_permutation(key, epoch, plan.num_examples)[positions]
        index, mask = sharding.constrain_batch((index, mask), mesh, axis=1)
        rows = jax.tree.map(lambda array: array[index], examples)
        return Batch(rows, index, jnp.full(count, epoch), mask)

    if key.ndim:
        return jax.vmap(gather, out_axes=1)(key)
    return sharding.constrain_batch(gather(key), mesh, axis=1)
