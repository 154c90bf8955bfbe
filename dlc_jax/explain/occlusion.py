"""What a grey square hides (Zeiler and Fergus 2014, section 4.2).

("Visualizing and understanding convolutional networks".)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain.checks import check_counts, check_labels
from dlc_jax.explain.classifier import Pixels, View


def occlusion(
    view: View,
    pixels: Pixels,
    labels: Int[AnyArray, " batch"],
    *,
    size: int,
    stride: int,
    fill: Float[AnyArray, ""] | float = 0.5,
    batch_size: int = 128,
) -> Float[Array, "batch rows columns"]:
    """The probability of each image's label while a grey square hides a part of the image.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      labels: the classes asked for.
      size: height and width of the square in pixels.
      stride: by how many pixels it is moved, at most its size.
      fill: the square's brightness, from 0 to 1.
      batch_size: how many squares go through the network at once.

    Returns:
      Probabilities from 0 to 1, for a square around each of `positions`.

    Raises:
      InputError: pixels or labels do not suit the network, or the square not the images.
    """
    image_shape = check_labels(view, pixels, labels)
    rows, columns = positions(image_shape, size=size, stride=stride)
    check_counts(batch_size=batch_size)
    indices = np.meshgrid(np.arange(len(pixels)), rows, columns, indexing="ij")
    # One vmap over the squares of all images, as many at once as memory has room for.
    squares = tuple(axis.reshape(-1) for axis in indices)
    probabilities = _behind(
        view,
        jnp.asarray(pixels),
        jnp.asarray(labels),
        squares,
        fill,
        size=size,
        batch_size=batch_size,
    )
    return probabilities.reshape(indices[0].shape)


@partial(jax.jit, static_argnames=("size", "batch_size"))
def _behind(
    view: View,
    pixels: Array,
    labels: Array,
    squares: tuple[Array, Array, Array],
    fill: Array | float,
    *,
    size: int,
    batch_size: int,
) -> Float[Array, " squares"]:
    """The labels' probabilities behind squares, given as image, row and column of their centres."""

    def of_square(index: Array, row: Array, column: Array) -> Array:
        image = pixels[index]
        square = _square(pixels.shape[1:], jnp.stack([row, column]), size)
        hidden = jnp.where(square, fill, image).astype(image.dtype)
        return jax.nn.softmax(view.logits(hidden[None])[0])[labels[index]]

    return lax.map(lambda square: of_square(*square), squares, batch_size=batch_size)


def positions(
    image_shape: tuple[int, int, int], *, size: int, stride: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " columns"]]:
    """The rows and the columns of the squares' centres, whose squares cover the whole image.

    A square of even size has one pixel more above and to the left of its centre than below and
    to the right. At the borders squares reach beyond the image.

    Args:
      image_shape: height, width and channels.
      size: height and width of the square in pixels.
      stride: by how many pixels it is moved.

    Raises:
      InputError: the square is larger than the image, or the stride than the square, or one of
        them is below one.
    """
    height, width, _ = image_shape
    if not 1 <= size <= min(height, width):
        raise InputError(
            f"a square of size {size} does not suit images of {height}x{width}; "
            f"choose from 1 to {min(height, width)}"
        )
    if not 1 <= stride <= size:
        raise InputError(
            f"stride {stride} would leave out pixels; choose from 1 to the square's size, {size}"
        )
    rows, columns = (_centres(length, size, stride) for length in (height, width))
    return rows, columns


def _centres(length: int, size: int, stride: int) -> np.ndarray:
    # What the strides leave over goes to both ends; an even square reaches further backwards.
    left_over = (length - 1) % stride
    return np.arange((left_over + 1 - size % 2) // 2, length, stride)


def _square(image_shape: tuple[int, ...], centre: Array, size: int) -> Array:
    """Whether each pixel lies in the square, [height, width, 1]."""
    inside = [
        (first <= places) & (places < first + size)
        for first, places in zip(centre - size // 2, map(jnp.arange, image_shape), strict=False)
    ]
    return (inside[0][:, None] & inside[1][None])[..., None]
