"""Batches, and how an epoch is divided into them: order, padding, chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from dlc_jax.errors import InputError
from dlc_jax.typing import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Examples of one training step; in a chunk, each leaf has a leading axis [steps].

    Attributes:
      examples: Any pytree of arrays [batch, ...], such as `dlc_jax.data.Examples`.
      index: Each example's position in the dataset, [batch].
      epoch: Number of the epoch, starting at 0.
      mask: 1 for an example and 0 for padding, [batch]; None if nothing is padded.
    """

    examples: Any
    index: Int[AnyArray, "*steps batch"]
    epoch: Int[AnyArray, "*steps"]
    mask: Float[AnyArray, "*steps batch"] | None = None

    @classmethod
    def from_examples(cls, examples: Any) -> "Batch":
        """Makes a batch of the given examples, for a single step.

        Example:
          >>> import jax.numpy as jnp
          >>> Batch.from_examples({"x": jnp.zeros((3, 2))}).index
          Array([0, 1, 2], dtype=int32)
        """
        size = len(jax.tree.leaves(examples)[0])
        return cls(examples, jnp.arange(size, dtype=jnp.int32), jnp.int32(0))

    @property
    def weights(self) -> Float[Array, "*steps batch"]:
        """Weights of the examples: the mask, or ones if nothing is padded."""
        if self.mask is not None:
            return jnp.asarray(self.mask)
        # Derived from the index, so that it lies on the devices as the examples do.
        return jnp.ones_like(self.index, jnp.float32)


@dataclass(frozen=True)
class BatchPlan:
    """A division of an epoch into batches of the same size.

    A smaller last batch, and batches that do not divide evenly among the devices, are padded with
    examples of weight 0.

    Attributes:
      num_examples: Number of examples in an epoch.
      batch_size: Number of examples in a batch, without padding.
      multiple: Number of devices; the padded batch size is a multiple of it.

    Raises:
      InputError: The batch size is not between 1 and the number of examples.
    """

    num_examples: int
    batch_size: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.num_examples:
            raise InputError(
                f"a batch size of {self.batch_size} does not fit {self.num_examples} "
                f"examples; choose one from 1 to {self.num_examples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.num_examples // self.batch_size)

    @property
    def padded_batch_size(self) -> int:
        """Size of a padded batch."""
        return -(-self.batch_size // self.multiple) * self.multiple

    @property
    def is_padded(self) -> bool:
        """Whether any batch has padding."""
        return self.padded_batch_size * self.steps_per_epoch != self.num_examples

    def positions(self, step: Any, xp: Any = np) -> tuple[Any, Any]:
        """Returns the positions in the epoch's order, and the masks, of the batches at some steps.

        Args:
          step: Steps within the epoch, [steps].
          xp: The array library, NumPy or `jax.numpy`.

        Returns:
          Positions, int32 [steps, padded_batch_size], where padding repeats the batch's examples,
          and masks, float32 [steps, padded_batch_size], or None if nothing is padded.
        """
        start = step[:, None] * self.batch_size
        row = xp.arange(self.padded_batch_size, dtype=xp.int32)
        if not self.is_padded:
            return (start + row).astype(xp.int32), None
        size = xp.minimum(self.batch_size, self.num_examples - start)
        return (start + row % size).astype(xp.int32), (row < size).astype(xp.float32)

    def chunks(
        self, start: int, stop: int, max_steps: int | None = None, parts: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yields the first step and number of steps of each chunk from step `start` to `stop`.

        Chunks end with the epoch, and wherever the number of its steps done is a multiple of
        `max_steps`; these are cut again into chunks of at most `parts` steps.
        """
        epoch_steps = self.steps_per_epoch
        max_steps = min(max_steps or epoch_steps, epoch_steps)
        while start < stop:
            within = start % epoch_steps
            end = min((within // max_steps + 1) * max_steps, epoch_steps)
            count = min(end - within, parts or epoch_steps, stop - start)
            yield start, count
            start += count
