"""Images changed at random, so that a network sees more of them than there are.

Pure functions of a key and a batch of images, which run on the device. Images are
[batch, height, width, channels] of any dtype, and keep it.

What is done to each image of an epoch can be drawn beforehand (`Augmentation.draw`), as arrays
that go with the images through shuffling, batching and spreading over devices; `apply` then
leaves nothing to chance.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int, PRNGKeyArray, Shaped

from dlc_jax.data.dataset import AnyArray, unshared
from dlc_jax.errors import InputError

Images = Shaped[Array, "batch height width channels"]
AnyImages = Shaped[AnyArray, "batch height width channels"]
Padding = Literal["zero", "reflect"]
Flip = Literal["none", "random", "alternating"]
_MODES = {"zero": "constant", "reflect": "reflect"}


def _held(array: AnyArray) -> Array:
    """As an array of JAX, which computes in the background: of NumPy's a copy."""
    return jnp.asarray(unshared(array))


def mirror(images: AnyImages, which: Bool[AnyArray, " batch"]) -> Images:
    """Some of the images, with left and right exchanged.

    Args:
      images: of any dtype.
      which: those that are exchanged.
    """
    images = _held(images)
    return jnp.where(_held(which)[:, None, None, None], images[:, :, ::-1], images)


def flip(key: PRNGKeyArray, images: AnyImages) -> Images:
    """Each image, with left and right exchanged with a probability of one half.

    Args:
      key: of the random numbers.
      images: of any dtype.
    """
    return mirror(images, _coins(key, len(images)))


def alternating_flip(
    images: AnyImages, first: Bool[AnyArray, " batch"], epoch: Int[AnyArray, ""] | int
) -> Images:
    """Each image with left and right exchanged in every other epoch (Jordan 2024, section 3.6).

    In any two epochs a network so sees each image both ways, where at random it would see half
    of them one way only.

    Args:
      images: of any dtype.
      first: those that are exchanged in epoch 0, drawn at random once.
      epoch: how many epochs there were before this one.
    """
    return mirror(images, _alternated(_held(first), epoch))


def _alternated(
    first: Bool[Array, " batch"], epoch: Int[AnyArray, ""] | int
) -> Bool[Array, " batch"]:
    """Which images are exchanged in an epoch, from which are in epoch 0."""
    return first ^ (jnp.asarray(epoch) % 2 == 1)


def crop(
    images: AnyImages, corners: Int[AnyArray, "batch 2"], size: tuple[int, int]
) -> Shaped[Array, "batch height width channels"]:
    """A part of each image.

    Where the corners are traced, as inside `jit`, parts that would reach outside their image are
    moved into it, as `jax.lax.dynamic_slice` does.

    Args:
      images: of any dtype.
      corners: row and column at which each image's part begins, in pixels.
      size: height and width of the parts in pixels.

    Raises:
      InputError: a part is larger than the images, empty, or reaches outside its image.
    """
    images = _held(images)
    room = _room(images, size)
    if not isinstance(corners, jax.core.Tracer):
        outside = ((np.asarray(corners) < 0) | (np.asarray(corners) > room)).any(1)
        if outside.any():
            which = int(outside.argmax())
            raise InputError(
                f"the part of image {which} at {np.asarray(corners)[which].tolist()} reaches "
                f"outside the image; take corners from [0, 0] to {list(room)}"
            )

    def part(image: Array, corner: Array) -> Array:
        # In x64 mode a plain 0 would be of another type.
        start = corner[0], corner[1], jnp.zeros_like(corner[0])
        return lax.dynamic_slice(image, start, (*size, image.shape[2]))

    return jax.vmap(part)(images, _held(corners))


def random_crop(
    key: PRNGKeyArray, images: AnyImages, size: tuple[int, int]
) -> Shaped[Array, "batch height width channels"]:
    """A part of each image, from a place of its own.

    Args:
      key: of the random numbers.
      images: of any dtype.
      size: height and width of the parts in pixels.

    Raises:
      InputError: the parts are larger than the images, or empty.
    """
    return crop(images, _places(key, len(images), _room(images, size)), size)


def _room(images: AnyImages, size: tuple[int, int]) -> tuple[int, int]:
    """The last row and column at which a part of this size can begin."""
    height, width = images.shape[1:3]
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise InputError(
            f"parts of {size[0]}x{size[1]} can't be cut from images of {height}x{width}"
        )
    return height - size[0], width - size[1]


def _coins(key: PRNGKeyArray, count: int) -> Bool[Array, " count"]:
    """So many tosses of a coin, in float32, so that x64 mode draws the same."""
    return jax.random.bernoulli(key, jnp.float32(0.5), (count,))


def _places(key: PRNGKeyArray, count: int, most: tuple[int, int]) -> Int[Array, "count 2"]:
    """Pairs of whole numbers, each from 0 to `most`."""
    return jax.random.randint(key, (count, 2), 0, jnp.array(most) + 1, jnp.int32)


def shift(
    images: AnyImages,
    corners: Int[AnyArray, "batch 2"],
    pixels: int,
    padding: Padding = "zero",
) -> Images:
    """Each image moved by up to `pixels` along both axes.

    Args:
      images: of any dtype.
      corners: for each image, how far it is moved up and left, plus `pixels`.
      pixels: how far at most.
      padding: what comes in at the borders: "zero", which is the mean of normalised images, or
        "reflect", their mirror image.

    Raises:
      InputError: there is no such padding, or an image would be moved further (see `crop`).
    """
    if padding not in _MODES:
        raise InputError(f"there is no padding {padding!r}; choose zero or reflect")
    images = _held(images)
    around = (pixels, pixels)
    padded = jnp.pad(images, [(0, 0), around, around, (0, 0)], mode=_MODES[padding])
    return crop(padded, corners, (images.shape[1], images.shape[2]))


def translate(
    key: PRNGKeyArray, images: AnyImages, pixels: int, padding: Padding = "zero"
) -> Images:
    """Each image moved at random by up to `pixels` along both axes.

    Args:
      key: of the random numbers.
      images: of any dtype.
      pixels: how far at most, in each direction.
      padding: what comes in at the borders; see `shift`.

    Raises:
      InputError: there is no such padding.
    """
    return shift(images, _places(key, len(images), (2 * pixels, 2 * pixels)), pixels, padding)


def erase(images: AnyImages, corners: Int[AnyArray, "batch 2"], size: int) -> Images:
    """Each image with a square of zeros in it.

    Args:
      images: of any dtype; normalised ones, in which zero is the mean.
      corners: row and column at which each image's square begins, in pixels.
      size: height and width of the squares in pixels.
    """
    images = _held(images)
    rows, columns = (
        jnp.arange(count) - _held(corners)[:, i, None] for i, count in enumerate(images.shape[1:3])
    )
    inside = [(place >= 0) & (place < size) for place in (rows, columns)]
    hidden = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(hidden, jnp.zeros((), images.dtype), images)


def cutout(key: PRNGKeyArray, images: AnyImages, size: int) -> Images:
    """Each image with a square of zeros somewhere in it (DeVries and Taylor 2017).

    Squares lie within the image, not across its border.

    Args:
      key: of the random numbers.
      images: of any dtype; normalised ones, in which zero is the mean.
      size: height and width of the squares in pixels.

    Raises:
      InputError: the squares are larger than the images.
    """
    height, width = images.shape[1:3]
    if not 0 <= size <= min(height, width):
        raise InputError(f"squares of {size} pixels do not fit into images of {height}x{width}")
    return erase(images, _places(key, len(images), (height - size, width - size)), size)


class Changes(NamedTuple):
    """What is done to each image of an epoch.

    Attributes:
      mirrored: whether left and right are exchanged, if they ever are.
      shifted: how far it is moved up and left, in pixels, plus the most that it may be.
      erased: where its square of zeros begins, row and column.
    """

    mirrored: Bool[Array, " images"]
    shifted: Int[Array, "images 2"]
    erased: Int[Array, "images 2"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in the order of the attributes.

    Attributes:
      flip: left and right exchanged never ("none"), at "random", or "alternating" between
        epochs.
      translate: by how many pixels an image is moved at most, in each direction.
      padding: what then comes in at the borders: "zero" or "reflect".
      cutout: height and width of a square of zeros, in pixels.
    """

    flip: Flip = "none"
    translate: int = 0
    padding: Padding = "zero"
    cutout: int = 0

    def draw(
        self,
        key: PRNGKeyArray,
        epoch: Int[AnyArray, ""] | int,
        shape: tuple[int, ...],
    ) -> Changes:
        """What is done to each image in an epoch.

        Args:
          key: of the random numbers; the same for all epochs.
          epoch: how many epochs there were before this one.
          shape: of all images, [images, height, width, channels].
        """
        count, height, width, _ = shape
        own = jax.random.fold_in(key, epoch)
        if self.flip == "alternating":
            mirrored = _alternated(_coins(key, count), epoch)
        else:
            mirrored = _coins(own, count)
        shifting, erasing = jax.random.split(own)
        most = (2 * self.translate, 2 * self.translate)
        room = (height - self.cutout, width - self.cutout)
        return Changes(
            mirrored,
            _places(shifting, count, most),
            _places(erasing, count, room),
        )

    def apply(self, images: AnyImages, changes: Changes) -> Images:
        """The images, changed as was drawn for them."""
        images = _held(images)
        if self.flip != "none":
            images = mirror(images, changes.mirrored)
        if self.translate:
            images = shift(images, changes.shifted, self.translate, self.padding)
        if self.cutout:
            images = erase(images, changes.erased, self.cutout)
        return images
