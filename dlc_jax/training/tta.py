"""Test-time augmentation (TTA): logits averaged over versions of an image."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dlc_jax.data.augmentation import shift

Images = Float[Array, "batch height width channels"]
Logits = Float[Array, "batch classes"]


def average_logits(
    model: Callable[[Images], Logits], images: Images, flip: bool, translate: int
) -> Logits:
    """Averages the logits of each image over its flipped and shifted versions.

    See Jordan 2024, section 3.5.

    Args:
      model: A network in evaluation mode.
      images: Normalized images.
      flip: Whether to average the logits of each image and its mirror image.
      translate: Average the logits of the image (weight 1/2) and of two copies shifted up-left
        and down-right by this many pixels (1/4 each); 0 for none.

    Example:
      >>> import jax.numpy as jnp
      >>> images = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> average_logits(lambda x: x[:, 0, :1, 0], images, flip=True, translate=0)
      Array([[0.5]], dtype=float32)
    """

    def logits(images: Images) -> Logits:
        return (model(images) + model(images[:, :, ::-1])) / 2 if flip else model(images)

    if not translate:
        return logits(images)
    offsets = [jnp.full((len(images), 2), each) for each in (-translate, translate)]
    moved = [logits(shift(images, each, translate, "reflect")) for each in offsets]
    return logits(images) / 2 + sum(moved) / 4
