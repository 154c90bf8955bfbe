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
    """The logits of images, averaged over flipped and shifted versions of each.

    (Jordan 2024, section 3.5.)

    Args:
      model: a network in evaluation mode.
      images: normalized images.
      flip: average each image and its mirror image.
      translate: average half the image's logits and a quarter of each of those of the image
        moved by this many pixels up and left, and down and right; 0 for none.

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
