"""Occlusion sensitivity (Zeiler and Fergus 2014, section 4.2).

"Visualizing and understanding convolutional networks".
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from dlc_jax.errors import InputError
from dlc_jax.explain.argument_checks import check_labels, check_positive
from dlc_jax.explain.classifier import ImageClassifier, ImageShape, Pixels
from dlc_jax.typing import AnyArray


def occlusion_sensitivity(
    classifier: ImageClassifier,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    patch_size: int,
    stride: int,
    fill_value: Float[AnyArray, ""] | float = 0.5,
    batch_size: int = 128,
) -> Float[Array, "batch rows columns"]:
    """Computes the probability of each image's label while a gray square covers part of the image.

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      labels: Classes to explain.
      patch_size: Height and width of the square, in pixels.
      stride: Distance between squares, in pixels; at most `patch_size`.
      fill_value: Brightness of the square, from 0 to 1.
      batch_size: Number of covered images in a batch.

    Returns:
      Probabilities, for a square around each of `patch_centers`.

    Raises:
      InputError: Pixels or labels do not match the network, or a number is out of range (see
        `patch_centers`).

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels, labels = np.zeros((2, 8, 8, 1)), np.array([0, 2])
      >>> occlusion_sensitivity(tiny_classifier(), pixels, labels, patch_size=3, stride=2).shape
      (2, 4, 4)
    """
    image_shape = check_labels(classifier, pixels, labels)
    rows, columns = patch_centers(image_shape, patch_size=patch_size, stride=stride)
    check_positive(batch_size=batch_size)
    images, rows, columns = np.meshgrid(np.arange(len(pixels)), rows, columns, indexing="ij")
    probabilities = _occluded_probabilities(
        classifier,
        jnp.asarray(pixels),
        jnp.asarray(labels),
        (images.reshape(-1), rows.reshape(-1), columns.reshape(-1)),
        fill_value,
        patch_size=patch_size,
        batch_size=batch_size,
    )
    return probabilities.reshape(images.shape)


@partial(jax.jit, static_argnames=("patch_size", "batch_size"))
def _occluded_probabilities(
    classifier: ImageClassifier,
    pixels: Array,
    labels: Array,
    patches: tuple[Array, Array, Array],
    fill_value: Array | float,
    *,
    patch_size: int,
    batch_size: int,
) -> Float[Array, " patches"]:
    """Probabilities of the labels, with patches given by image, row and column of the center."""

    def probability(patch: tuple[Array, Array, Array]) -> Array:
        index, row, column = patch
        image = pixels[index]
        mask = _patch_mask(image.shape, row, column, patch_size)
        occluded = jnp.where(mask, fill_value, image).astype(image.dtype)
        return jax.nn.softmax(classifier.logits(occluded[None])[0])[labels[index]]

    return lax.map(probability, patches, batch_size=batch_size)


def patch_centers(
    image_shape: ImageShape, *, patch_size: int, stride: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " columns"]]:
    """Returns the rows and columns of the centers of squares that cover the whole image.

    A square of even size has one pixel more above and to the left of its center than below and
    to the right. Squares may reach beyond the image's borders.

    Args:
      image_shape: Height, width and channels.
      patch_size: Height and width of the squares, in pixels.
      stride: Distance between squares, in pixels.

    Raises:
      InputError: The square is larger than the image, the stride is larger than the square, or one
        of them is below 1.

    Example:
      >>> rows, columns = patch_centers((8, 10, 1), patch_size=3, stride=2)
      >>> rows.tolist(), columns.tolist()
      ([0, 2, 4, 6], [0, 2, 4, 6, 8])
    """
    height, width, _ = image_shape
    if not 1 <= patch_size <= min(height, width):
        raise InputError(
            f"patch_size is {patch_size}; choose from 1 to {min(height, width)} for images of "
            f"{height}x{width}"
        )
    if not 1 <= stride <= patch_size:
        raise InputError(
            f"stride is {stride}; choose from 1 to patch_size ({patch_size}), so that there are no "
            "gaps between squares"
        )
    rows, columns = (_centers(length, patch_size, stride) for length in (height, width))
    return rows, columns


def _centers(length: int, patch_size: int, stride: int) -> np.ndarray:
    # The remainder is divided between both ends; an even square reaches further backwards.
    remainder = (length - 1) % stride
    return np.arange((remainder + 1 - patch_size % 2) // 2, length, stride)


def _patch_mask(image_shape: tuple[int, ...], row: Array, column: Array, size: int) -> Array:
    """Whether each pixel lies in the patch, [height, width, 1]."""

    def inside(center: Array, length: int) -> Array:
        first, positions = center - size // 2, jnp.arange(length)
        return (first <= positions) & (positions < first + size)

    rows, columns = inside(row, image_shape[0]), inside(column, image_shape[1])
    return (rows[:, None] & columns[None])[..., None]
