"""Data augmentation: random flips, translations and cutouts of images.

All functions are pure and run on the device. `Augmentation` draws its random numbers for each
example from a key, the epoch and the example's index, so that the result does not depend on how
examples are batched or on which device they are.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped, UInt32

from dlc_jax.errors import InputError
from dlc_jax.typing import AnyArray
from dlc_jax.utils.arrays import owned_copy

Images = Shaped[Array, "batch height width channels"]
AnyImages = Shaped[AnyArray, "batch height width channels"]
Flip = Literal["none", "random", "alternating"]
Padding = Literal["zero", "reflect"]

_PAD_MODES = {"zero": "constant", "reflect": "reflect"}
# Replaces the epoch in random numbers that are the same in all epochs.
_ALL_EPOCHS = 2**32 - 1


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, applied in the order of the attributes.

    Attributes:
      flip: Left-right flips: "none", "random" or "alternating" (see `alternating_flip`).
      translate: Maximum translation along each axis, in pixels; 0 for none.
      padding: How translated images are padded; see `shift`.
      cutout: Height and width of the square set to zero, in pixels; 0 for none.

    Example:
      >>> augment = jax.jit(Augmentation("random", translate=2, padding="reflect", cutout=3))
      >>> images = jnp.ones((4, 8, 8, 1))
      >>> augment(jax.random.key(0), images, jnp.arange(4), epoch=0).sum((1, 2, 3))
      Array([55., 55., 55., 55.], dtype=float32)
    """

    flip: Flip = "none"
    translate: int = 0
    padding: Padding = "zero"
    cutout: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether all images are left unchanged."""
        return self.flip == "none" and not self.translate and not self.cutout

    def __call__(
        self,
        key: PRNGKeyArray,
        images: Float[AnyArray, "batch height width channels"],
        index: Int[AnyArray, " batch"],
        epoch: Int[AnyArray, ""] | int,
    ) -> Float[Array, "batch height width channels"]:
        """Augments a batch.

        Args:
          key: Random key, the same for all epochs of a training run.
          images: Images, normalized so that zero is the mean.
          index: Index of each example in the training split.
          epoch: Number of the epoch, starting at 0.

        Raises:
          InputError: The cutout is larger than the images, or the padding is unknown.
        """
        images = _as_jax(images)
        bits = _bits_by_example(key, index, epoch, 5)
        if self.flip == "alternating":
            images = alternating_flip(key, images, index, epoch)
        elif self.flip == "random":
            images = flip_left_right(images, bits[:, 0] % 2 == 1)
        if self.translate:
            offsets = _integers(bits[:, 1:3], (2 * self.translate, 2 * self.translate))
            images = shift(images, offsets - self.translate, self.translate, self.padding)
        if self.cutout:
            size = self.cutout, self.cutout
            images = cutout_at(images, _integers(bits[:, 3:], _last_corner(images, size)), size[0])
        return images


def flip_left_right(images: AnyImages, where: Bool[AnyArray, " batch"]) -> Images:
    """Flips some of the images horizontally.

    Args:
      images: Images of any dtype.
      where: Whether to flip each image.

    Example:
      >>> images = jnp.array([[1, 2], [3, 4]]).reshape(2, 1, 2, 1)
      >>> flip_left_right(images, jnp.array([True, False])).reshape(2, 2)
      Array([[2, 1],
             [3, 4]], dtype=int32)
    """
    images = _as_jax(images)
    return jnp.where(_as_jax(where)[:, None, None, None], images[:, :, ::-1], images)


def random_flip(key: PRNGKeyArray, images: AnyImages) -> Images:
    """Flips each image horizontally with probability one half.

    Args:
      key: Random key.
      images: Images of any dtype.

    Example:
      >>> random_flip(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
      (2, 8, 8, 3)
    """
    # A float32 probability draws the same numbers in x64 mode.
    return flip_left_right(images, jax.random.bernoulli(key, jnp.float32(0.5), (len(images),)))


def alternating_flip(
    key: PRNGKeyArray,
    images: AnyImages,
    index: Int[AnyArray, " batch"],
    epoch: Int[AnyArray, ""] | int,
) -> Images:
    """Flips each image horizontally in every other epoch (Jordan 2024, section 3.6).

    A random half of the images is flipped in even epochs, the other half in odd ones, so that
    any two successive epochs show each image both ways.

    Args:
      key: Random key, the same for all epochs.
      images: Images of any dtype.
      index: Index of each example in the training split.
      epoch: Number of the epoch, starting at 0.

    Example:
      >>> images, index = jnp.arange(12).reshape(2, 1, 6, 1), jnp.arange(2)
      >>> even, odd = (alternating_flip(jax.random.key(0), images, index, e) for e in (0, 1))
      >>> bool((even == odd[:, :, ::-1]).all())
      True
    """
    coins = _bits_by_example(key, index, _ALL_EPOCHS, 1)[:, 0]
    return flip_left_right(images, (coins + jnp.asarray(epoch, jnp.uint32)) % 2 == 1)


def crop(
    images: AnyImages, corners: Int[AnyArray, "batch 2"], size: tuple[int, int]
) -> Shaped[Array, "batch height width channels"]:
    """Crops a window from each image.

    If the corners are traced, as inside `jax.jit`, windows are moved inside their image, as by
    `jax.lax.dynamic_slice`.

    Args:
      images: Images of any dtype.
      corners: First row and column of each window.
      size: Height and width of the windows, in pixels.

    Raises:
      InputError: A window is empty, larger than the images, or not inside its image.

    Example:
      >>> crop(jnp.arange(9).reshape(1, 3, 3, 1), jnp.array([[1, 0]]), (2, 2)).reshape(2, 2)
      Array([[3, 4],
             [6, 7]], dtype=int32)
    """
    images = _as_jax(images)
    last = _last_corner(images, size)
    if not isinstance(corners, jax.core.Tracer):
        outside = ((np.asarray(corners) < 0) | (np.asarray(corners) > last)).any(1)
        if outside.any():
            image = int(outside.argmax())
            raise InputError(
                f"the window at {np.asarray(corners)[image].tolist()} of image {image} is not "
                f"inside the image; use corners from [0, 0] to {list(last)}"
            )

    def window(image: Array, corner: Array) -> Array:
        # In x64 mode a plain 0 would have another dtype.
        start = corner[0], corner[1], jnp.zeros_like(corner[0])
        return lax.dynamic_slice(image, start, (*size, image.shape[2]))

    return jax.vmap(window)(images, _as_jax(corners))


def random_crop(
    key: PRNGKeyArray, images: AnyImages, size: tuple[int, int]
) -> Shaped[Array, "batch height width channels"]:
    """Crops a window at a random position from each image.

    Args:
      key: Random key.
      images: Images of any dtype.
      size: Height and width of the windows, in pixels.

    Raises:
      InputError: The windows are empty or larger than the images.

    Example:
      >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3)), (6, 5)).shape
      (2, 6, 5, 3)
    """
    return crop(images, _random_corners(key, images, size), size)


def shift(
    images: AnyImages,
    offsets: Int[AnyArray, "batch 2"],
    max_shift: int,
    padding: Padding = "zero",
) -> Images:
    """Translates each image by its own offset.

    Args:
      images: Images of any dtype.
      offsets: Pixels by which each image moves down and right, from -max_shift to max_shift.
      max_shift: Maximum absolute value of the offsets, which sets the width of the padding.
      padding: What fills the border: "zero" (the mean of normalized images) or "reflect".

    Raises:
      InputError: The padding is unknown, or an offset is out of range (see `crop`).

    Example:
      >>> image = jnp.array([[1, 2, 3]]).reshape(1, 1, 3, 1)
      >>> shift(image, jnp.array([[0, 1]]), max_shift=1).ravel()
      Array([0, 1, 2], dtype=int32)
    """
    if padding not in _PAD_MODES:
        raise InputError(f"padding is {padding!r}; it must be zero or reflect")
    images = _as_jax(images)
    border = (max_shift, max_shift)
    padded = jnp.pad(images, [(0, 0), border, border, (0, 0)], mode=_PAD_MODES[padding])
    return crop(padded, max_shift - offsets, (images.shape[1], images.shape[2]))


def random_translate(
    key: PRNGKeyArray, images: AnyImages, max_shift: int, padding: Padding = "zero"
) -> Images:
    """Translates each image at random by up to `max_shift` pixels along each axis.

    Args:
      key: Random key.
      images: Images of any dtype.
      max_shift: Maximum translation in each direction, in pixels.
      padding: What fills the border; see `shift`.

    Raises:
      InputError: The padding is unknown.

    Example:
      >>> random_translate(jax.random.key(0), jnp.ones((2, 8, 8, 3)), 2).shape
      (2, 8, 8, 3)
    """
    shape = len(images), 2
    offsets = jax.random.randint(key, shape, -max_shift, max_shift + 1, jnp.int32)
    return shift(images, offsets, max_shift, padding)


def cutout_at(images: AnyImages, corners: Int[AnyArray, "batch 2"], size: int) -> Images:
    """Sets a square of each image to zero.

    Args:
      images: Images of any dtype, normalized so that zero is the mean.
      corners: First row and column of each square.
      size: Height and width of the squares, in pixels.

    Example:
      >>> cutout_at(jnp.ones((1, 3, 3, 1)), jnp.array([[0, 1]]), 2).reshape(3, 3)
      Array([[1., 0., 0.],
             [1., 0., 0.],
             [1., 1., 1.]], dtype=float32)
    """
    images, corners = _as_jax(images), _as_jax(corners)
    rows, columns = (
        jnp.arange(length) - corners[:, axis, None] for axis, length in enumerate(images.shape[1:3])
    )
    inside = [(position >= 0) & (position < size) for position in (rows, columns)]
    square = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(square, jnp.zeros((), images.dtype), images)


def cutout(key: PRNGKeyArray, images: AnyImages, size: int) -> Images:
    """Sets a square at a random position of each image to zero (DeVries and Taylor 2017).

    Unlike in the paper, squares lie entirely inside the image.

    Args:
      key: Random key.
      images: Images of any dtype, normalized so that zero is the mean.
      size: Height and width of the squares, in pixels.

    Raises:
      InputError: The squares are empty or larger than the images.

    Example:
      >>> int(cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), 3).sum())
      55
    """
    return cutout_at(images, _random_corners(key, images, (size, size)), size)


def _as_jax(array: AnyArray) -> Array:
    """Converts to a JAX array; copies NumPy arrays, since JAX computes in the background."""
    return jnp.asarray(owned_copy(array))


def _bits_by_example(
    key: PRNGKeyArray,
    index: Int[AnyArray, " batch"],
    epoch: Int[AnyArray, ""] | int,
    count: int,
) -> UInt32[Array, "batch count"]:
    """Random bits that depend only on the key, the epoch and each example's index."""
    epoch_key = jax.random.fold_in(key, epoch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(epoch_key, _as_jax(index))
    return jax.vmap(lambda key: jax.random.bits(key, (count,), jnp.uint32))(keys)


def _integers(bits: UInt32[Array, "batch 2"], max_values: tuple[int, int]) -> Int[Array, "batch 2"]:
    """Pairs of integers from 0 to `max_values`, uniform but for a bias below 2**-20."""
    return (bits % (jnp.array(max_values, jnp.uint32) + 1)).astype(jnp.int32)


def _random_corners(
    key: PRNGKeyArray, images: AnyImages, size: tuple[int, int]
) -> Int[Array, "batch 2"]:
    stop = jnp.array(_last_corner(images, size), jnp.int32) + 1
    return jax.random.randint(key, (len(images), 2), 0, stop, jnp.int32)


def _last_corner(images: AnyImages, size: tuple[int, int]) -> tuple[int, int]:
    """Last row and column at which a window can begin."""
    height, width = images.shape[1:3]
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise InputError(
            f"a window of {size[0]}x{size[1]} pixels does not fit into images of {height}x{width}; "
            f"use 1x1 to {height}x{width}"
        )
    return height - size[0], width - size[1]
