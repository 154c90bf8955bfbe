"""What networks are trained on, and judged by."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError


def cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    labels: Int[AnyArray, " batch"],
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the batch of -log softmax(logits)[label], in nats.

    Args:
      logits: of any float dtype.
      labels: the right classes; for any other number the loss is NaN.
      smoothing: what part of each target is spread evenly over all classes (Szegedy et al.
        2016, "Rethinking the Inception architecture", section 7).
    """
    # At least float32, since a mean over many examples would be lost in bfloat16.
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    labels = not_from_the_end(labels, logits.shape[-1])
    right = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return right.mean()
    evenly = -jax.nn.log_softmax(logits).mean(-1)
    return ((1 - smoothing) * right + smoothing * evenly).mean()


def not_from_the_end(labels: Int[AnyArray, " batch"], classes: int) -> Int[Array, " batch"]:
    """The labels, with `classes` for negative ones, which JAX would count from the last class.

    What is taken at `classes` is NaN, as for any index that is too large.
    """
    labels = jnp.asarray(labels)
    # Wide enough for the number of classes; what is not an integer is left to be refused.
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    return jnp.where(labels < 0, classes, labels)


def log_odds_against(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Float[Array, " batch"]:
    """log((1 - p) / p), where p is the probability of the label.

    It grows with the cross-entropy, -log p, so that the gradients have one direction; but where p
    is 1 within float32's precision, the cross-entropy's is zero.

    Args:
      logits: of any float dtype.
      labels: the classes asked for.
    """
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    own = jnp.arange(logits.shape[1]) == jnp.asarray(labels)[:, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return others - jnp.where(own, logits, 0).sum(1)


def misclassified(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Bool[Array, " batch"]:
    """Whether the largest logit is another than the label's."""
    return logits.argmax(-1) != labels


def average_probabilities(
    logits: Float[AnyArray, "networks batch classes"],
) -> Float[Array, "batch classes"]:
    """The logarithm of the mean over several networks of the probabilities that they give.

    It takes the place of one network's logits, of which it is the same function: the
    probabilities are its softmax.

    Args:
      logits: each network's, of any float dtype.
    """
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    each = jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(len(logits))


def refuse_label_smoothing(network: str, label_smoothing: float) -> None:
    """Raises an InputError for a network whose loss has targets of its own."""
    if label_smoothing:
        raise InputError(
            f"{network} is trained on targets of its own, which label smoothing "
            f"({label_smoothing}) does not suit; leave it out"
        )
