"""Projection of activations to pixels by a deconvnet (Zeiler and Fergus 2014, section 2.1).

"Visualizing and understanding convolutional networks". A deconvnet runs a network backwards: it
filters with the transposed kernels, unpools to the positions of the maxima, and rectifies the
signal. The first two steps are what gradients do, and so are the backward passes of other layers,
such as batch normalization; the third is a rule for rectifiers (`relu_rules`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn
from jaxtyping import Bool, Float, Int

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.explain import jaxpr_interpreter
from dlc_jax.explain.argument_checks import check_indices, check_pixels, check_positive, check_stage
from dlc_jax.explain.classifier import ImageClassifier, ImageShape, Pixels
from dlc_jax.explain.relu_rules import ReluRule, check_relu_rule, override_relu_gradient
from dlc_jax.typing import AnyArray


class Projection(NamedTuple):
    """Projection of one activation of each image to pixels.

    Attributes:
      pixels: The signed projection.
      position: Row and column of the activation.
      activation: The activation.
    """

    pixels: Float[Array, "batch height width channels"]
    position: Int[Array, "batch 2"]
    activation: Float[Array, " batch"]


def project_activation(
    classifier: ImageClassifier,
    pixels: Pixels,
    stage: str,
    maps: Int[AnyArray, " batch"],
    *,
    rule: ReluRule = "deconvnet",
) -> Projection:
    """Projects the strongest activation of a feature map of each image to pixels.

    All other activations of the stage are set to zero. The elements of a vector are feature maps
    with one position.

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      stage: Name of the stage.
      maps: Feature map of each image, as an index of the stage's last axis.
      rule: Backward pass of rectifiers; see `relu_rules.override_relu_gradient`.

    Raises:
      InputError: There is no such stage, map or rule, or the pixels do not match the network.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.zeros((2, 8, 8, 1))
      >>> pixels[:, 3, 4] = 1
      >>> projection = project_activation(tiny_classifier(), pixels, "conv", np.array([0, 3]))
      >>> projection.pixels.shape, projection.position.shape
      ((2, 8, 8, 1), (2, 2))
    """
    shape = check_stage(classifier, check_pixels(classifier, pixels), stage)
    check_indices("map", maps, len(pixels), shape[-1])
    check_relu_rule(rule)
    return _project_activation(
        classifier, jnp.asarray(pixels), jnp.asarray(maps), stage=stage, rule=rule
    )


@partial(jax.jit, static_argnames=("stage", "rule"))
def _project_activation(
    classifier: ImageClassifier, pixels: Array, maps: Array, *, stage: str, rule: ReluRule
) -> Projection:
    to_stage = override_relu_gradient(lambda pixels: classifier.activations(pixels, stage), rule)
    activations, vjp = jax.vjp(to_stage, pixels)

    images = jnp.arange(len(pixels))
    flat = activations.reshape(len(pixels), -1, activations.shape[-1])
    map_activations = flat[images, :, maps]
    positions = map_activations.argmax(1)
    strongest = map_activations[images, positions]
    cotangent = jnp.zeros_like(flat).at[images, positions, maps].set(strongest)
    (projected,) = vjp(cotangent.reshape(activations.shape))
    columns = activations.shape[2] if activations.ndim == 4 else 1
    position = jnp.stack(jnp.divmod(positions, columns), 1)
    return Projection(projected, position, strongest)


def top_activating_images(
    classifier: ImageClassifier,
    pixels: Pixels,
    stage: str,
    *,
    count: int,
    batch_size: int = 100,
) -> tuple[Int[Array, "maps count"], Float[Array, "maps count"]]:
    """Finds the images with the strongest activations of each feature map, strongest first.

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      stage: Name of the stage.
      count: Number of images for each map.
      batch_size: Batch size.

    Returns:
      Indices of the images, and their activations: the largest of all positions.

    Raises:
      InputError: There is no such stage, the pixels do not match the network, there are fewer than
        `count` images, or a number is below 1.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.linspace(0, 1, 5)[:, None, None, None] * np.ones((5, 8, 8, 1))
      >>> indices, activations = top_activating_images(
      ...     tiny_classifier(), pixels, "conv", count=2
      ... )
      >>> indices.shape, activations.shape
      ((4, 2), (4, 2))
    """
    check_stage(classifier, check_pixels(classifier, pixels), stage)
    if not 1 <= count <= len(pixels):
        raise InputError(f"count is {count}; choose from 1 to {len(pixels)}, the number of images")
    check_positive(batch_size=batch_size)
    return _top_activating_images(
        classifier, jnp.asarray(pixels), stage=stage, count=count, batch_size=batch_size
    )


@partial(jax.jit, static_argnames=("stage", "count", "batch_size"))
def _top_activating_images(
    classifier: ImageClassifier, pixels: Array, *, stage: str, count: int, batch_size: int
) -> tuple[Array, Array]:
    def map_maxima(image: Array) -> Array:
        activations = classifier.activations(image[None], stage)[0]
        return activations.reshape(-1, activations.shape[-1]).max(0)

    values = lax.map(map_maxima, pixels, batch_size=batch_size)
    values, indices = lax.top_k(values.T, count)
    return indices, values


def receptive_field(
    classifier: ImageClassifier, image_shape: ImageShape, stage: str, row: int, column: int
) -> tuple[int, int, int, int]:
    """Returns the smallest rectangle that contains all pixels that can influence an activation.

    NaN pixels make all activations NaN that depend on them. From each of the four sides, a binary
    search finds the number of rows or columns of NaN that the activation does not depend on. The
    rectangle is exact, whatever the weights. The function takes plain integers and can't be
    jitted itself.

    Args:
      classifier: The classifier.
      image_shape: Height, width and channels of the images.
      stage: Name of the stage.
      row: Row of the activation; 0 for a vector.
      column: Column of the activation; 0 for a vector.

    Returns:
      Top (inclusive), bottom (exclusive), left (inclusive) and right (exclusive), in pixels.

    Raises:
      InputError: There is no such stage or position, or the network has operations that do not
        propagate NaN, such as thresholds.

    Example:
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> receptive_field(tiny_classifier(), (8, 8, 1), "conv", 0, 4)
      (0, 2, 3, 6)
    """
    shape = check_stage(classifier, image_shape, stage)
    rows, columns = shape[:2] if len(shape) == 3 else (1, 1)
    if not (0 <= row < rows and 0 <= column < columns):
        raise InputError(
            f"there is no position ({row}, {column}); stage {stage!r} has {rows}x{columns}"
        )
    margins = _unseen_margins(classifier, image_shape, stage, row, column)
    top, below, left, after = (int(margin) for margin in margins)
    bottom, right = image_shape[0] - below, image_shape[1] - after
    if top >= bottom or left >= right:
        raise InputError(f"no pixel reaches stage {stage!r}; choose a stage without thresholds")
    return top, bottom, left, right


@partial(jax.jit, static_argnames=("image_shape", "stage"))
def _unseen_margins(
    classifier: ImageClassifier, image_shape: ImageShape, stage: str, row: int, column: int
) -> Int[Array, "4"]:
    """Numbers of unseen rows and columns at the top, the bottom, the left and the right."""
    height, width, _ = image_shape
    images = jax.ShapeDtypeStruct((4, *image_shape), jnp.float32)
    closed, _, _ = jaxpr_interpreter.trace(
        lambda pixels: classifier.activations(pixels, stage), images
    )

    def is_seen(margins: Int[Array, "4"]) -> Bool[Array, "4"]:
        mask = _margin_masks(height, width, margins)[..., None]
        pixels = jnp.broadcast_to(jnp.where(mask, jnp.nan, 0.5), images.shape)
        (activations,) = jaxpr_interpreter.eval_jaxpr(
            closed, [pixels.astype(jnp.float32)], eval_equation=_eval_with_nan
        )
        at_position = activations if activations.ndim == 2 else activations[:, row, column]
        return jnp.isnan(at_position).any(1)

    def bisect(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        unseen, seen = bounds
        middle = (unseen + seen) // 2
        now = is_seen(middle)
        return jnp.where(now, unseen, middle), jnp.where(now, middle, seen)

    bounds = jnp.zeros(4, int), jnp.array([height, height, width, width])
    return lax.fori_loop(0, max(height, width).bit_length(), bisect, bounds)[0]


def _margin_masks(
    height: int, width: int, margins: Int[Array, "4"]
) -> Bool[Array, "4 height width"]:
    """Masks of the first rows, the last rows, the first columns and the last columns."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    top, bottom = rows < margins[0], rows >= height - margins[1]
    left, right = columns < margins[2], columns >= width - margins[3]
    masks = top, bottom, left, right
    return jnp.stack([jnp.broadcast_to(mask, (height, width)) for mask in masks])


def _eval_with_nan(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """Evaluates an equation with XLA's convolution and pooling, which keep NaN local.

    A product of Fourier transforms would spread NaN over the whole image.
    """
    params = equation.params
    match equation.primitive.name:
        case "custom_vjp_call" | "custom_jvp_call":
            inner = params["call_jaxpr"]
        case "jit" | "pjit":
            inner = params["jaxpr"]
        case "cond" if params.get("branches_platforms"):
            inner, args = params["branches"][-1], args[1:]
        case "conv2d":
            x, kernel = args
            window = params["strides"], params["padding"]
            return [ops.conv2d(x, kernel, *window, precision="default")]
        case "max" | "reduce_max" | "reduce_window_max" | "max_pool":
            return _max_with_nan(equation, args)
        case _:
            return jaxpr_interpreter.bind_primitive(equation, args)
    return jaxpr_interpreter.eval_jaxpr(inner, args, eval_equation=_eval_with_nan)


def _max_with_nan(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """Maxima that are NaN if one of their inputs is; XLA's on a CPU sometimes drop NaN."""
    (result,) = jaxpr_interpreter.bind_primitive(equation, args)
    is_nan = [jnp.isnan(x).astype(result.dtype) for x in args]
    (any_nan,) = jaxpr_interpreter.bind_primitive(equation, is_nan)
    return [jnp.where(any_nan > 0, jnp.nan, result)]
