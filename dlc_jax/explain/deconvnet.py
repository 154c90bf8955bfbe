"""What in an image excites a feature map: the deconvnet (Zeiler and Fergus 2014, section 2.1).

("Visualizing and understanding convolutional networks".) A deconvnet goes through the network
backwards: it filters with the transposed kernels, unpools to where the maxima stood, and rectifies
what it hands on. The first two are what gradients do, and so is here whatever else a network has,
such as batch normalisation; the third is a rule for rectifiers (`rectifiers.with_rectifiers`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn
from jaxtyping import Bool, Float, Int

from dlc_jax import ops
from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain import jaxprs
from dlc_jax.explain.checks import check_choices, check_counts, check_pixels, check_stage
from dlc_jax.explain.classifier import Pixels, View
from dlc_jax.explain.rectifiers import Rule, check_rule, with_rectifiers


class Projection(NamedTuple):
    """What in each image excited a feature map most, at one position.

    Attributes:
      pixels: the activation projected back to pixels; signed, on a scale of its own.
      place: row and column of the activation.
      value: the activation.
    """

    pixels: Float[Array, "batch height width channels"]
    place: Int[Array, "batch 2"]
    value: Float[Array, " batch"]


def project(
    view: View,
    pixels: Pixels,
    stage: str,
    maps: Int[AnyArray, " batch"],
    *,
    rule: Rule = "deconvnet",
) -> Projection:
    """Projects a feature map's strongest activation in each image back to pixels.

    All other activations of the stage are set to zero. A vector counts as feature maps of one
    position.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      stage: whose feature maps, as `View.stages` has it.
      maps: for each image a feature map, an index of the stage's last axis.
      rule: what passes back through rectifiers; see `rectifiers.with_rectifiers`.

    Raises:
      InputError: there is no such stage, map or rule, or the pixels do not suit the network.
    """
    shape = check_stage(view, check_pixels(view, pixels), stage)
    check_choices("map", maps, len(pixels), shape[-1])
    check_rule(rule)
    return _project(view, jnp.asarray(pixels), jnp.asarray(maps), stage=stage, rule=rule)


@partial(jax.jit, static_argnames=("stage", "rule"))
def _project(view: View, pixels: Array, maps: Array, *, stage: str, rule: Rule) -> Projection:
    to_stage = with_rectifiers(lambda pixels: view.activations(pixels, stage), rule)
    activations, back = jax.vjp(to_stage, pixels)

    images = jnp.arange(len(pixels))
    flat = activations.reshape(len(pixels), -1, activations.shape[-1])
    of_maps = flat[images, :, maps]
    positions = of_maps.argmax(1)
    values = of_maps[images, positions]
    alone = jnp.zeros_like(flat).at[images, positions, maps].set(values)
    (projected,) = back(alone.reshape(activations.shape))
    columns = activations.shape[2] if activations.ndim == 4 else 1
    place = jnp.stack(jnp.divmod(positions, columns), 1)
    return Projection(projected, place, values)


def strongest(
    view: View, pixels: Pixels, stage: str, *, count: int, batch_size: int = 100
) -> tuple[Int[Array, "maps count"], Float[Array, "maps count"]]:
    """For every feature map the images with its strongest activations, the strongest first.

    Args:
      view: the network.
      pixels: as many images as fit in memory, from 0 to 1.
      stage: whose feature maps, as `View.stages` has it.
      count: how many images of each map.
      batch_size: how many images go through the network at once.

    Returns:
      The images' indices, and the activations: in each image the largest of all positions.

    Raises:
      InputError: there is no such stage, the pixels do not suit the network, there are fewer
        than `count` images, or a number is below one.
    """
    check_stage(view, check_pixels(view, pixels), stage)
    if not 1 <= count <= len(pixels):
        raise InputError(f"count is {count}; choose from 1 to {len(pixels)}, the number of images")
    check_counts(batch_size=batch_size)
    return _strongest(view, jnp.asarray(pixels), stage=stage, count=count, batch_size=batch_size)


@partial(jax.jit, static_argnames=("stage", "count", "batch_size"))
def _strongest(
    view: View, pixels: Array, *, stage: str, count: int, batch_size: int
) -> tuple[Array, Array]:
    def largest(image: Array) -> Array:
        activations = view.activations(image[None], stage)[0]
        return activations.reshape(-1, activations.shape[-1]).max(0)

    values = lax.map(largest, pixels, batch_size=batch_size)
    values, indices = lax.top_k(values.T, count)
    return indices, values


def receptive_box(
    view: View, image_shape: tuple[int, int, int], stage: str, row: int, column: int
) -> tuple[int, int, int, int]:
    """The smallest rectangle with all pixels that can influence an activation.

    What is not a number makes everything not a number that it takes part in. Rows and columns
    of such pixels are added until the position sees them, in a search by halves from each of the
    four sides: this finds the rectangle exactly, whatever the weights and the image. It takes
    plain integers, and can not be jitted itself.

    Args:
      view: the network.
      image_shape: height, width and channels of the images.
      stage: as `View.stages` has it.
      row: of the position among the stage's; of a vector 0.
      column: likewise.

    Returns:
      Its first row, the row after its last, its first column, the column after its last.

    Raises:
      InputError: there is no such stage or position, or activations do not depend on pixels by
        operations that keep what is not a number, as thresholds do not.
    """
    shape = check_stage(view, image_shape, stage)
    rows, columns = shape[:2] if len(shape) == 3 else (1, 1)
    if not (0 <= row < rows and 0 <= column < columns):
        raise InputError(
            f"there is no position ({row}, {column}); stage {stage!r} has {rows}x{columns}"
        )
    unseen = _unseen(view, image_shape, stage, row, column)
    above, below, left, right = (int(count) for count in unseen)
    height, width, _ = image_shape
    top, bottom, first, last = above, height - below, left, width - right
    if top >= bottom or first >= last:
        raise InputError(f"no pixel reaches stage {stage!r}; choose a stage without thresholds")
    return top, bottom, first, last


@partial(jax.jit, static_argnames=("image_shape", "stage"))
def _unseen(
    view: View, image_shape: tuple[int, int, int], stage: str, row: int, column: int
) -> Int[Array, "4"]:
    """From the top, the bottom, the left and the right, how many rows and columns are unseen."""
    height, width, _ = image_shape
    images = jax.ShapeDtypeStruct((4, *image_shape), jnp.float32)
    closed, _, _ = jaxprs.trace(lambda pixels: view.activations(pixels, stage), images)

    def sees(counts: Int[Array, "4"]) -> Bool[Array, "4"]:
        marked = _marked(height, width, counts)[..., None]
        pixels = jnp.broadcast_to(jnp.where(marked, jnp.nan, 0.5), images.shape)
        (activations,) = jaxprs.evaluate(closed, [pixels.astype(jnp.float32)], call=_call_plainly)
        at_position = activations if activations.ndim == 2 else activations[:, row, column]
        return jnp.isnan(at_position).any(1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        unseen, seen = bounds
        middle = (unseen + seen) // 2
        now = sees(middle)
        return jnp.where(now, unseen, middle), jnp.where(now, middle, seen)

    bounds = jnp.zeros(4, int), jnp.array([height, height, width, width])
    return lax.fori_loop(0, max(height, width).bit_length(), halve, bounds)[0]


def _marked(height: int, width: int, counts: Int[Array, "4"]) -> Bool[Array, "4 height width"]:
    """In four images the first rows, the last rows, the first columns and the last columns."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    above, below = rows < counts[0], rows >= height - counts[1]
    left, right = columns < counts[2], columns >= width - counts[3]
    sides = above, below, left, right
    return jnp.stack([jnp.broadcast_to(side, (height, width)) for side in sides])


def _call_plainly(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """The results of an equation by XLA's own convolution and pooling, which keep NaN in its place.

    Products in the frequency domain would spread it over the whole image.
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
            return _largest(equation, args)
        case _:
            return jaxprs.call_as_is(equation, args)
    return jaxprs.evaluate(inner, args, call=_call_plainly)


def _largest(equation: JaxprEqn, args: list[Any]) -> list[Any]:
    """Maxima, which are NaN wherever a part of them is: XLA:CPU's sometimes leave NaN out."""
    (result,) = jaxprs.call_as_is(equation, args)
    (marked,) = jaxprs.call_as_is(equation, [jnp.isnan(x).astype(result.dtype) for x in args])
    return [jnp.where(marked > 0, jnp.nan, result)]
