"""The order in which an epoch takes the training examples."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray


def split(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The key of training as one of the order and one of the augmentation."""
    ordering, drawing = jax.random.split(key)
    return ordering, drawing


def order(
    key: PRNGKeyArray, epoch: Int[AnyArray, ""] | int, examples: int
) -> Int[Array, " examples"]:
    """The places of an epoch's examples in their split, in the order in which it takes them.

    Args:
      key: of training, the same for all epochs, as for `dlc_jax.training.train_epoch`.
      epoch: how many epochs there were before this one.
      examples: how many there are.
    """
    ordering, _ = split(key)
    places = jnp.arange(examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(ordering, epoch), places)
