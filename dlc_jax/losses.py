"""What networks are trained on, and judged by."""

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from dlc_jax.data.examples import AnyArray


def cross_entropy(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Float[Array, ""]:
    """Mean over the batch of -log softmax(logits)[label], in nats."""
    # At least float32, since a mean over many examples would be lost in bfloat16.
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def misclassified(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Bool[Array, " batch"]:
    """Whether the largest logit is another than the label's."""
    return logits.argmax(-1) != labels
