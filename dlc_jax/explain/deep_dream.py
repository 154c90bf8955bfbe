"""DeepDream (Mordvintsev, Olah and Tyka 2015).

"Inceptionism: going deeper into neural networks", and the code that they published with it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.explain import gradient_ascent
from dlc_jax.explain.argument_checks import check_image_shape, check_pixels, check_positive
from dlc_jax.explain.classifier import ImageClassifier, ImageShape, Pixels
from dlc_jax.typing import AnyArray


class DreamResult(NamedTuple):
    """Result of DeepDream.

    Attributes:
      images: Images with pixels from 0 to 1.
      objectives: Half the squared L2 norm of the stage's activations of each image before each
        step, for the image shifted by the jitter; octaves from the smallest to the largest.
    """

    images: Float[Array, "batch height width channels"]
    objectives: Float[Array, "octaves steps batch"]


def octave_shapes(image_shape: ImageShape, octaves: int, octave_scale: float) -> list[ImageShape]:
    """Returns the shapes of an image at all octaves, from the smallest to its own.

    Args:
      image_shape: Height, width and channels of the image.
      octaves: Number of octaves.
      octave_scale: Ratio of the heights and widths of successive octaves, at least 1.

    Raises:
      InputError: There are no octaves, or the scale is below 1.

    Example:
      >>> octave_shapes((224, 448, 3), 3, 1.4)
      [(114, 229, 3), (160, 320, 3), (224, 448, 3)]
    """
    check_positive(octaves=octaves)
    if octave_scale < 1:
        raise InputError(f"octave_scale is {octave_scale}; give at least 1")
    height, width, channels = image_shape
    scales = [octave_scale**i for i in reversed(range(octaves))]
    return [(round(height / scale), round(width / scale), channels) for scale in scales]


def deep_dream(
    classifier: ImageClassifier,
    pixels: Pixels,
    stage: str,
    *,
    key: PRNGKeyArray,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    learning_rate: Float[AnyArray, ""] | float = 0.05,
    jitter: int = 1,
) -> DreamResult:
    """Changes images so that the activations of a stage grow, by gradient ascent.

    The objective is half the squared L2 norm of the activations. Gradients have mean absolute
    value 1, and pixels are clipped to [0, 1] after each step. The ascent starts with the smallest
    octave; the changes of each octave are enlarged and added to the next one.

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.
      stage: Name of the stage.
      key: PRNG key of the jitter.
      octaves: Number of image sizes.
      octave_scale: Ratio of the heights and widths of successive octaves, at least 1.
      steps: Number of steps at each octave.
      learning_rate: Mean change of a pixel in each step; 1.5 / 255 in the published code, for
        photographs.
      jitter: Largest shift of the images in each step, in pixels (see
        `gradient_ascent.normalized_gradient`); 32 in the published code, for photographs.

    Raises:
      InputError: There is no such stage, there are no images, octaves or steps, the network does
        not accept images of an octave's size, the scale is below 1, or the jitter is negative.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
      >>> result = deep_dream(
      ...     tiny_classifier(), pixels, "conv", key=jax.random.key(0), octaves=2, jitter=0
      ... )
      >>> bool((result.objectives[:, -1] > result.objectives[:, 0]).all())
      True
    """
    shapes = octave_shapes(check_pixels(classifier, pixels), octaves, octave_scale)
    _check_octaves(classifier, shapes)
    gradient_ascent.check_ascent(classifier, stage, shapes[-1], steps, jitter)
    return _deep_dream(
        classifier,
        jnp.asarray(pixels),
        key,
        learning_rate,
        stage=stage,
        shapes=tuple(shapes),
        steps=steps,
        jitter=jitter,
    )


@partial(jax.jit, static_argnames=("stage", "shapes", "steps", "jitter"))
def _deep_dream(
    classifier: ImageClassifier,
    pixels: Array,
    key: PRNGKeyArray,
    learning_rate: Float[AnyArray, ""] | float,
    *,
    stage: str,
    shapes: tuple[ImageShape, ...],
    steps: int,
    jitter: int,
) -> DreamResult:
    pixels = pixels.astype(float)

    def objective(pixels: gradient_ascent.Images) -> Float[Array, " batch"]:
        activations = classifier.activations(pixels, stage)
        return jnp.square(activations.reshape(len(pixels), -1)).sum(1) / 2

    def step(
        pixels: gradient_ascent.Images, key: PRNGKeyArray
    ) -> tuple[gradient_ascent.Images, Array]:
        objectives, direction = gradient_ascent.normalized_gradient(objective, pixels, key, jitter)
        return (pixels + learning_rate * direction).clip(0, 1), objectives

    images, history = pixels, []
    changes = jnp.zeros((len(pixels), *shapes[0]), pixels.dtype)
    for shape, octave_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        base = _resize(pixels, shape)
        initial = (base + _resize(changes, shape)).clip(0, 1)
        images, objectives = lax.scan(step, initial, jax.random.split(octave_key, steps))
        changes = images - base
        history.append(objectives)
    return DreamResult(images, jnp.stack(history))


def _resize(images: gradient_ascent.Images, shape: ImageShape) -> gradient_ascent.Images:
    return jax.image.resize(images, (len(images), *shape), "linear")


def _check_octaves(classifier: ImageClassifier, shapes: list[ImageShape]) -> None:
    check_image_shape(classifier, shapes[-1])
    accepted = [min(shape) > 0 and classifier.accepts(shape) for shape in shapes]
    if not all(accepted):
        octaves = accepted[::-1].index(False)
        height, width, _ = shapes[-1 - octaves]
        raise InputError(
            f"the network does not accept images of {height}x{width}, the size of one of "
            f"{len(shapes)} octaves; use octaves={octaves}"
        )
