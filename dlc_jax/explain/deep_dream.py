"""Images in which a layer finds more of what it looks for: "Inceptionism", or DeepDream.

(Mordvintsev, Olah and Tyka 2015, "Inceptionism: going deeper into neural networks", and the
program that they published with it.)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain import ascent
from dlc_jax.explain.checks import check_pixels
from dlc_jax.explain.classifier import Pixels, View


class Dream(NamedTuple):
    """What a layer made of images.

    Attributes:
      images: pixels from 0 to 1.
      objectives: half the squared L2 norm of the layer's activations for each image, before each
        step, of the image moved as in that step; octaves from the smallest to the images' own
        size, whose layers differ in size.
    """

    images: Float[Array, "batch height width channels"]
    objectives: Float[Array, "octaves steps batch"]


def octave_shapes(
    image_shape: tuple[int, int, int], octaves: int, octave_scale: float
) -> list[tuple[int, int, int]]:
    """Height, width and channels of an image at each octave, from the smallest to its own.

    `accepts` tells which of them a network takes.

    Args:
      image_shape: height, width and channels of the image.
      octaves: how many there are, at least one.
      octave_scale: how many times an octave is as high and wide as the one before, at least 1.

    Raises:
      InputError: there are no octaves, or the scale is below 1.
    """
    if octaves < 1:
        raise InputError(f"dreaming takes at least one octave, not {octaves}")
    if octave_scale < 1:
        raise InputError(f"the octaves' scale must be at least 1, not {octave_scale}")
    height, width, channels = image_shape
    scales = [octave_scale**i for i in reversed(range(octaves))]
    return [(round(height / scale), round(width / scale), channels) for scale in scales]


def dream(
    view: View,
    pixels: Pixels,
    stage: str,
    *,
    key: PRNGKeyArray,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    learning_rate: Float[AnyArray, ""] | float = 0.05,
    jitter: int = 1,
) -> Dream:
    """Images changed so that a layer's activations grow.

    Gradient ascent on half the squared L2 norm of the activations; the gradients are of mean
    absolute value 1, and pixels are clipped to [0, 1] after each step. The images are first
    dreamt on when shrunk; what this changed is enlarged and added to the next octave, up to
    their own size.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.
      stage: the layer, as `View.stages` has it.
      key: of the jitter.
      octaves: how many sizes of the images there are.
      octave_scale: how many times each is as high and wide as the one before.
      steps: how many at each octave, at least one.
      learning_rate: by how much a pixel changes on average in each step; for photographs the
        published program takes 1.5 / 255.
      jitter: by how many pixels images are moved at most in each step (see `ascent.slope`); for
        photographs the published program takes 32.

    Raises:
      InputError: there is no such stage, there are no images, octaves or steps, the network
        takes no images of an octave's size, the scale is below 1, or the jitter is negative.
    """
    shapes = octave_shapes(check_pixels(view, pixels), octaves, octave_scale)
    _check_octaves(view, shapes)
    ascent.check(view, stage, shapes[-1], steps, jitter)
    return _dream(
        view,
        jnp.asarray(pixels),
        key,
        learning_rate,
        stage=stage,
        shapes=tuple(shapes),
        steps=steps,
        jitter=jitter,
    )


@partial(jax.jit, static_argnames=("stage", "shapes", "steps", "jitter"))
def _dream(
    view: View,
    pixels: Array,
    key: PRNGKeyArray,
    learning_rate: Float[AnyArray, ""] | float,
    *,
    stage: str,
    shapes: tuple[tuple[int, int, int], ...],
    steps: int,
    jitter: int,
) -> Dream:
    pixels = pixels.astype(float)
    images, objectives = pixels, []
    details = jnp.zeros((len(pixels), *shapes[0]), pixels.dtype)
    for shape, octave_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        base = _resized(pixels, shape)
        first = (base + _resized(details, shape)).clip(0, 1)
        images, of_octave = _ascend(view, first, stage, octave_key, steps, jitter, learning_rate)
        details = images - base
        objectives.append(of_octave)
    return Dream(images, jnp.stack(objectives))


def _check_octaves(view: View, shapes: list[tuple[int, int, int]]) -> None:
    accepted = [min(shape) > 0 and ascent.accepts(view, shape) for shape in shapes]
    if all(accepted):
        return
    if not accepted[-1]:
        raise ascent.refused(shapes[-1])
    fitting = accepted[::-1].index(False)
    height, width, _ = shapes[-1 - fitting]
    raise InputError(
        f"the network takes no images of {height}x{width}, as one of {len(shapes)} octaves has "
        f"them; use octaves={fitting}"
    )


def _resized(images: ascent.Images, shape: tuple[int, int, int]) -> ascent.Images:
    return jax.image.resize(images, (len(images), *shape), "linear")


def _ascend(
    view: View,
    first: ascent.Images,
    stage: str,
    key: PRNGKeyArray,
    steps: int,
    jitter: int,
    learning_rate: Float[AnyArray, ""] | float,
) -> tuple[ascent.Images, Float[Array, "steps batch"]]:
    """One octave's images after all steps, and their objectives before each."""

    def objective(pixels: ascent.Images) -> Float[Array, " batch"]:
        activations = view.activations(pixels, stage)
        return jnp.square(activations.reshape(len(pixels), -1)).sum(1) / 2

    def step(pixels: ascent.Images, key: PRNGKeyArray) -> tuple[ascent.Images, Array]:
        objectives, direction = ascent.slope(objective, pixels, key, jitter)
        return (pixels + learning_rate * direction).clip(0, 1), objectives

    return lax.scan(step, first, jax.random.split(key, steps))
