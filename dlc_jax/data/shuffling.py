"""The order of the training examples in an epoch."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from dlc_jax.typing import AnyArray


def split_key(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Splits the key of a run into a shuffling key and an augmentation key."""
    shuffling, augmentation = jax.random.split(key)
    return shuffling, augmentation


def epoch_permutation(
    key: PRNGKeyArray, epoch: Int[AnyArray, ""] | int, num_examples: int
) -> Int[Array, " examples"]:
    """Returns a random permutation of the examples' indices, a different one in each epoch.

    Args:
      key: The run's key, the same for all epochs.
      epoch: Number of the epoch, starting at 0.
      num_examples: Number of examples.

    Example:
      >>> import jax
      >>> epoch_permutation(jax.random.key(0), 0, 5).shape
      (5,)
    """
    shuffling, _ = split_key(key)
    indices = jnp.arange(num_examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(shuffling, epoch), indices)
