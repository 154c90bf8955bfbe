"""Image classification as a supervised task."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.augmentation import Augmentation
from dlc_jax.data.batching import Batch
from dlc_jax.data.dataset import Examples
from dlc_jax.data.normalization import Normalize
from dlc_jax.data.shuffling import split_key
from dlc_jax.models.network import Network
from dlc_jax.nn.losses import cross_entropy, misclassified
from dlc_jax.training.supervised import Supervised
from dlc_jax.training.tta import average_logits


def classification(
    model: Any,
    optimizer: optax.GradientTransformation,
    normalize: Normalize,
    *,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.0,
    tta_flip: bool = False,
    tta_translate: int = 0,
) -> Supervised:
    """Creates the task of image classification.

    Its examples are `dlc_jax.data.Examples` with uint8 images. Its metrics are "loss", which is
    the network's own in training (see `dlc_jax.models.Network.loss`) and the cross-entropy in
    nats in evaluation, and "error", the fraction of misclassified examples. Its predictions are
    logits.

    Args:
      model: Creates the network from a key.
      optimizer: Any Optax gradient transformation.
      normalize: Normalization of the images.
      augmentation: Random changes of training images; none without a key.
      label_smoothing: See `dlc_jax.nn.losses.cross_entropy`.
      tta_flip: Test-time augmentation: average the logits of each image and its mirror image.
      tta_translate: Test-time augmentation: average the logits of the image (weight 1/2) and of
        two copies shifted up-left and down-right by this many pixels (1/4 each; Jordan 2024,
        section 3.5); 0 for none.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from dlc_jax import nn
      >>> class Linear(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.layer = nn.Linear(4, 2, rngs=rngs)
      ...     def __call__(self, images):
      ...         return self.layer(nn.flatten(images))
      >>> task = classification(
      ...     lambda key: Linear(nnx.Rngs(key)), optax.sgd(0.1), Normalize((127.5,), (127.5,))
      ... )
      >>> images = jnp.array([[[0, 0], [0, 0]], [[255, 255], [255, 255]]], jnp.uint8)[..., None]
      >>> batch = Batch.from_examples(Examples(images, jnp.array([0, 1])))
      >>> state = task.init(jax.random.key(0))
      >>> for _ in range(20):
      ...     state, metrics = task.step(state, batch)
      >>> float(task.evaluate(state, batch)["error"].mean)
      0.0
    """
    return Supervised(
        model=model,
        optimizer=optimizer,
        loss=_TrainingLoss(label_smoothing),
        metrics=_error,
        transform=_NormalizeAndAugment(normalize, augmentation),
        eval_loss=_EvaluationLoss(tta_flip, tta_translate),
    )


def _error(logits: Float[Array, "batch classes"], examples: Examples) -> dict[str, Array]:
    return {"error": misclassified(logits, examples.labels)}


# Dataclasses, unlike closures, compare equal if their fields do, so that JAX compiles equal tasks
# only once.
@dataclass(frozen=True)
class _NormalizeAndAugment:
    normalize: Normalize
    augmentation: Augmentation | None

    def __call__(self, batch: Batch, key: PRNGKeyArray | None) -> Examples:
        images = self.normalize(batch.examples.images)
        if self.augmentation is not None and key is not None:
            _, own = split_key(key)
            images = self.augmentation(own, images, batch.index, batch.epoch)
        return Examples(images, batch.examples.labels)


@dataclass(frozen=True)
class _TrainingLoss:
    label_smoothing: float

    def __call__(self, model: Any, examples: Examples) -> tuple[Array, Array]:
        if isinstance(model, Network):
            stages = model.stages(jnp.asarray(examples.images))
            return model.loss(stages, examples.labels, self.label_smoothing), stages["logits"]
        logits = model(examples.images)
        return cross_entropy(logits, examples.labels, self.label_smoothing), logits


@dataclass(frozen=True)
class _EvaluationLoss:
    flip: bool
    translate: int

    def __call__(self, model: nnx.Module, examples: Examples) -> tuple[Array, Array]:
        logits = average_logits(model, jnp.asarray(examples.images), self.flip, self.translate)
        return cross_entropy(logits, examples.labels), logits
