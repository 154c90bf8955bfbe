"""Losses and metrics of classification, with one value per example."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from dlc_jax.errors import InputError
from dlc_jax.typing import AnyArray


def cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    labels: Int[AnyArray, " batch"],
    smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Computes the softmax cross-entropy with integer labels, in nats.

    Args:
      logits: Unnormalized scores, of any float dtype.
      labels: The true classes. A label out of range gives a loss of NaN.
      smoothing: Weight of the uniform distribution in each target (label smoothing: Szegedy et
        al. 2016, "Rethinking the Inception architecture", section 7).

    Returns:
      The loss of each example, in at least float32.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
      >>> cross_entropy(logits, jnp.array([0, 1])).round(3)
      Array([0.127, 0.693], dtype=float32)
    """
    # A mean over many examples would lose precision in bfloat16.
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    labels = mask_negative_labels(labels, logits.shape[-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return loss
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    return (1 - smoothing) * loss + smoothing * uniform


def mask_negative_labels(labels: Int[AnyArray, " batch"], num_classes: int) -> Int[Array, " batch"]:
    """Replaces negative labels by `num_classes`, an index out of range.

    JAX counts negative indices from the end; reading at an index that is too large gives NaN.

    Args:
      labels: Class indices.
      num_classes: Number of classes.

    Example:
      >>> mask_negative_labels(jnp.array([0, -1, 2]), 3)
      Array([0, 3, 2], dtype=int32)
    """
    labels = jnp.asarray(labels)
    # Small integer types may not hold num_classes. Floats stay floats, which Optax rejects.
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    return jnp.where(labels < 0, num_classes, labels)


def misclassification_log_odds(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Float[Array, " batch"]:
    """Computes log((1 - p) / p), where p is the softmax probability of the label.

    It increases with the cross-entropy, -log p, so both gradients have the same direction. Where p
    is 1 in float32, the gradient of the cross-entropy vanishes, but this one does not.

    Args:
      logits: Unnormalized scores, of any float dtype.
      labels: Class indices.

    Example:
      >>> misclassification_log_odds(jnp.array([[3.0, 1.0]]), jnp.array([0]))
      Array([-2.], dtype=float32)
    """
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    own = jnp.arange(logits.shape[1]) == jnp.asarray(labels)[:, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return others - jnp.where(own, logits, 0).sum(1)


def misclassified(
    logits: Float[AnyArray, "batch classes"], labels: Int[AnyArray, " batch"]
) -> Bool[Array, " batch"]:
    """Computes the zero-one loss: whether the largest logit is not the label's.

    Args:
      logits: Unnormalized scores.
      labels: The true classes.

    Example:
      >>> misclassified(jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1]))
      Array([False,  True], dtype=bool)
    """
    return logits.argmax(-1) != labels


def log_mean_softmax(
    logits: Float[AnyArray, "networks batch classes"],
) -> Float[Array, "batch classes"]:
    """Computes the log of an ensemble's average probabilities.

    Its softmax is this average, so it can be used as the logits of a single network.

    Args:
      logits: The logits of each network, of any float dtype.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.2, 0.8]], [[0.8, 0.2]]]))
      >>> jax.nn.softmax(log_mean_softmax(logits))
      Array([[0.5, 0.5]], dtype=float32)
    """
    logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
    log_probabilities = jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(logits))


def check_no_label_smoothing(network: str, label_smoothing: float) -> None:
    """Raises an InputError if label smoothing is used with a network that does not support it."""
    if label_smoothing:
        raise InputError(
            f"{network} has its own loss, which does not support label smoothing "
            f"(label_smoothing={label_smoothing}); set it to 0"
        )
