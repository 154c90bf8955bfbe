"""Gradient ascent on pixels: what activation maximisation and dreaming share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain.classifier import Pixels, View

Images = Float[Array, "batch height width channels"]


def accepts(view: View, image_shape: tuple[int, int, int]) -> bool:
    """Whether a network takes images of a shape, of which nothing is computed.

    A network with a linear layer on all of its feature maps, such as `lecture`, takes one shape
    alone. Others need only that their windows fit.

    Args:
      view: the network.
      image_shape: height, width and channels.
    """
    try:
        shapes = view.stage_shapes(image_shape)
    except (TypeError, ValueError):  # what layers raise that do not fit what they are given
        return False
    return all(math.prod(shape) > 0 for shape in shapes.values())


def check(
    view: View, stage: str, image_shape: tuple[int, int, int], steps: int, jitter: int
) -> None:
    """Raises an InputError unless a network can be climbed so.

    Args:
      view: the network.
      stage: whose activations are to grow.
      image_shape: height, width and channels of the images.
      steps: how many.
      jitter: by how many pixels images are moved at most.

    Raises:
      InputError: the network takes no such images or has no such stage, there are no steps, or
        the jitter is negative.
    """
    if not accepts(view, image_shape):
        raise refused(image_shape)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(lambda pixels: view.activations(pixels, stage), image)
    if steps < 1:
        raise InputError(f"gradient ascent takes at least one step, not {steps}")
    if jitter < 0:
        raise InputError(f"images can't be moved by {jitter} pixels; use a jitter of 0 or more")


def refused(image_shape: tuple[int, int, int]) -> InputError:
    """What to raise where a network does not accept images."""
    shape = "x".join(map(str, image_shape))
    return InputError(f"the network takes no images of {shape}; use the size that it was built for")


def slope(
    objective: Callable[[Images], Float[Array, " batch"]],
    pixels: Images,
    key: PRNGKeyArray,
    jitter: int,
) -> tuple[Float[Array, " batch"], Images]:
    """Each image's objective and its gradient, where all are moved by the same random offset.

    The images are rolled, so that what leaves at one border enters at the other, and the
    gradients are rolled back (Mordvintsev et al. 2015, in the program that they published).

    Args:
      objective: of each image, independent of the others of the batch.
      pixels: where to take it.
      key: of the offset.
      jitter: by how many pixels they are moved at most, in each direction.

    Returns:
      The objectives of the moved images; and the gradients, each of mean absolute value 1, or
      zero where the objective does not change.
    """
    offset = jax.random.randint(key, (2,), -jitter, jitter + 1, jnp.int32)

    def total(pixels: Images) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
        objectives = objective(pixels)
        return objectives.sum(), objectives

    gradient, objectives = jax.grad(total, has_aux=True)(jnp.roll(pixels, offset, (1, 2)))
    return objectives, _scaled(jnp.roll(gradient, -offset, (1, 2)))


def _scaled(gradient: Images) -> Images:
    size = jnp.abs(gradient).mean((1, 2, 3), keepdims=True)
    return gradient / jnp.where(size > 0, size, 1)


@jax.jit
def total_variation(pixels: Pixels) -> Float[Array, " batch"]:
    """How much each image changes from pixel to pixel.

    It is the sum over pixels and channels of the length of the differences to the pixels below
    and to the right (Mahendran and Vedaldi 2016, "bounded variation", with beta = 1); beyond the
    border nothing changes.

    Args:
      pixels: on any scale, which is that of the result.
    """
    pixels = jnp.asarray(pixels)
    down = jnp.diff(pixels, axis=1, append=pixels[:, -1:])
    right = jnp.diff(pixels, axis=2, append=pixels[:, :, -1:])
    squares = down**2 + right**2
    # A square root's gradient at zero is infinite: where an image is flat it is to be zero.
    lengths = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return lengths.sum((1, 2, 3))


@jax.jit
def blur(pixels: Pixels, deviation: Float[AnyArray, ""] | float) -> Images:
    """Images convolved with a Gaussian, which beyond the border is renormalised.

    Args:
      pixels: on any scale.
      deviation: the Gaussian's standard deviation in pixels; 0 leaves the images as they are.
    """
    pixels = jnp.asarray(pixels)
    rows, columns = (_gaussians(size, deviation) for size in pixels.shape[1:3])
    return jnp.einsum("ij,bjkc,lk->bilc", rows, pixels, columns)


def _gaussians(size: int, deviation: Any) -> Float[Array, "size size"]:
    """A matrix that blurs a row of pixels: a matrix takes widths that only the device knows."""
    places = jnp.arange(size)
    squares = (places[:, None] - places) ** 2
    # At this least deviation a pixel's neighbours weigh exactly nothing.
    return jax.nn.softmax(-squares / (2 * jnp.maximum(deviation, 1e-3) ** 2), axis=1)
