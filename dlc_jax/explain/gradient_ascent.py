"""Gradient ascent on pixels, shared by activation maximization, DeepDream and fooling images."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.explain.argument_checks import check_image_shape, check_positive, check_stage
from dlc_jax.explain.classifier import ImageClassifier, ImageShape, Pixels
from dlc_jax.typing import AnyArray

Images: TypeAlias = Float[Array, "batch height width channels"]


def check_ascent(
    classifier: ImageClassifier, stage: str, image_shape: ImageShape, steps: int, jitter: int
) -> None:
    """Checks the arguments of gradient ascent.

    Args:
      classifier: The classifier.
      stage: Name of the stage whose activations are maximized.
      image_shape: Height, width and channels of the images.
      steps: Number of steps.
      jitter: Largest shift of the images in each step, in pixels.

    Raises:
      InputError: The network does not accept images of this shape or has no such stage, there are
        no steps, or the jitter is negative.
    """
    check_image_shape(classifier, image_shape)
    check_stage(classifier, image_shape, stage)
    check_positive(steps=steps)
    if jitter < 0:
        raise InputError(f"jitter is {jitter}; give 0 or more")


def normalized_gradient(
    objective: Callable[[Images], Float[Array, " batch"]],
    pixels: Images,
    key: PRNGKeyArray,
    jitter: int,
) -> tuple[Float[Array, " batch"], Images]:
    """Returns the objective of each image and its gradient, scaled to mean absolute value 1.

    The images are rolled by one random offset, and the gradients are rolled back, as in the code
    that Mordvintsev et al. 2015 ("Inceptionism: going deeper into neural networks") published.

    Args:
      objective: Function of a batch of images; the images do not depend on each other.
      pixels: Images.
      key: PRNG key of the offset.
      jitter: Largest offset in each direction, in pixels.

    Returns:
      Objectives of the rolled images, and their gradients; a gradient of zero stays zero.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def objective(pixels):
      ...     return (pixels**2).sum((1, 2, 3))
      >>> pixels = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
      >>> _, gradient = normalized_gradient(objective, pixels, jax.random.key(0), jitter=1)
      >>> gradient.ravel().tolist()
      [0.5, 1.5]
    """
    offset = jax.random.randint(key, (2,), -jitter, jitter + 1, jnp.int32)

    def total(pixels: Images) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
        objectives = objective(pixels)
        return objectives.sum(), objectives

    gradient, objectives = jax.grad(total, has_aux=True)(jnp.roll(pixels, offset, (1, 2)))
    gradient = jnp.roll(gradient, -offset, (1, 2))
    scale = jnp.abs(gradient).mean((1, 2, 3), keepdims=True)
    return objectives, gradient / jnp.where(scale > 0, scale, 1)


@jax.jit
def total_variation(pixels: Pixels) -> Float[Array, " batch"]:
    """Returns the total variation of each image.

    It is the sum over pixels and channels of the length of the differences to the pixels below and
    to the right (Mahendran and Vedaldi 2016, "Visualizing deep convolutional neural networks using
    natural pre-images", section 3, "bounded variation", with beta = 1). Differences across the
    border are zero.

    Args:
      pixels: Images, on any scale.

    Returns:
      Total variations, on the same scale.

    Example:
      >>> import jax.numpy as jnp
      >>> total_variation(jnp.array([0.0, 1.0, 0.5]).reshape(1, 1, 3, 1)).tolist()
      [1.5]
    """
    pixels = jnp.asarray(pixels)
    down = jnp.diff(pixels, axis=1, append=pixels[:, -1:])
    right = jnp.diff(pixels, axis=2, append=pixels[:, :, -1:])
    squares = down**2 + right**2
    # The square root's gradient at zero is infinite; here it is zero.
    lengths = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return lengths.sum((1, 2, 3))


@jax.jit
def gaussian_blur(pixels: Pixels, std: Float[AnyArray, ""] | float) -> Images:
    """Convolves images with a Gaussian, which is renormalized at the borders.

    Args:
      pixels: Images, on any scale.
      std: Standard deviation of the Gaussian, in pixels; 0 leaves the images unchanged.

    Example:
      >>> import jax.numpy as jnp
      >>> gaussian_blur(jnp.ones((1, 4, 4, 1)), 1.0).mean().round(3).item()
      1.0
    """
    pixels = jnp.asarray(pixels)
    rows, columns = (_blur_matrix(size, std) for size in pixels.shape[1:3])
    return jnp.einsum("ij,bjkc,lk->bilc", rows, pixels, columns)


def _blur_matrix(size: int, std: Any) -> Float[Array, "size size"]:
    """Matrix that blurs a row of pixels; unlike a kernel, it works for a traced `std`."""
    positions = jnp.arange(size)
    squares = (positions[:, None] - positions) ** 2
    # With this smallest deviation the neighbors' weights are exactly zero.
    return jax.nn.softmax(-squares / (2 * jnp.maximum(std, 1e-3) ** 2), axis=1)
