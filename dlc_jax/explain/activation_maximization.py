"""Activation maximization (Erhan et al. 2009).

"Visualizing higher-layer features of a deep network". Simonyan et al. 2014 ("Deep inside
convolutional networks", section 2) maximize the logits of classes. Regularization: decay and blur
of Yosinski et al. 2015 ("Understanding neural networks through deep visualization", section 3),
total variation and jitter of Mahendran and Vedaldi 2016 ("Visualizing deep convolutional neural
networks using natural pre-images", section 3).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.explain import gradient_ascent
from dlc_jax.explain.argument_checks import check_indices
from dlc_jax.explain.classifier import ImageClassifier, ImageShape
from dlc_jax.typing import AnyArray

# About half of a trained network's rectified units are zero on a random image and have no
# gradient, so each unit starts from the best of several random images.
_CANDIDATES = 32
_CONTRAST = 0.3


class MaximizationResult(NamedTuple):
    """Result of activation maximization.

    Attributes:
      images: Image of each unit, with pixels from 0 to 1.
      activations: Activation of each unit before each step, for the image shifted by the jitter.
    """

    images: Float[Array, "units height width channels"]
    activations: Float[Array, "steps units"]


class _Regularization(NamedTuple):
    decay: Float[AnyArray, ""] | float
    total_variation: Float[AnyArray, ""] | float
    blur: Float[AnyArray, ""] | float


def maximize_activation(
    classifier: ImageClassifier,
    stage: str,
    units: Int[AnyArray, " units"],
    *,
    key: PRNGKeyArray,
    image_shape: ImageShape,
    steps: int = 256,
    learning_rate: Float[AnyArray, ""] | float = 0.1,
    decay: Float[AnyArray, ""] | float = 0.05,
    total_variation: Float[AnyArray, ""] | float = 0.5,
    jitter: int = 1,
    blur: Float[AnyArray, ""] | float = 0.3,
    initial_images: Float[AnyArray, "units height width channels"] | None = None,
) -> MaximizationResult:
    """Finds an image for each unit that maximizes its activation, by gradient ascent.

    A unit is the mean of a feature map over all positions, or an element of a vector; a unit of
    "logits" is a class. Each step adds the learning rate times the gradient of the unit (with mean
    absolute value 1) minus the weighted gradient of the total variation. Then the image decays, is
    blurred, and is clipped to [0, 1]. Learning rate, decay and blur decrease linearly to zero. A
    rectified unit that is zero for the initial image has no gradient and stays zero.

    Args:
      classifier: The classifier.
      stage: Name of the stage.
      units: Units, as indices of the stage's last axis.
      key: PRNG key of the initial images and the jitter.
      image_shape: Height, width and channels of the images.
      steps: Number of steps.
      learning_rate: Mean change of a pixel in the first step.
      decay: Fraction of the difference to the training images' mean that is lost in the first
        step.
      total_variation: Weight of the total variation.
      jitter: Largest shift of the images in each step, in pixels; see
        `gradient_ascent.normalized_gradient`.
      blur: Standard deviation of the Gaussian in the first step, in pixels.
      initial_images: Initial images. By default, for each unit the one of 32 images of smooth
        noise, around the training images' mean, with the largest activation.

    Raises:
      InputError: There is no such stage or unit, no units are given, the network does not accept
        images of this shape, the initial images have the wrong shape, there are no steps, or the
        jitter is negative.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> result = maximize_activation(
      ...     tiny_classifier(),
      ...     "logits",
      ...     np.array([0, 2]),
      ...     key=jax.random.key(0),
      ...     image_shape=(8, 8, 1),
      ...     steps=10,
      ... )
      >>> result.images.shape, result.activations.shape
      ((2, 8, 8, 1), (10, 2))
    """
    gradient_ascent.check_ascent(classifier, stage, image_shape, steps, jitter)
    if len(units) == 0:
        raise InputError("units is empty; give the index of at least one unit")
    check_indices("unit", units, len(units), classifier.stage_shapes(image_shape)[stage][-1])
    shape = (len(units), *image_shape)
    initial_key, jitter_key = jax.random.split(key)
    if initial_images is None:
        initial_images = _initial_images(classifier, stage, units, initial_key, image_shape)
    if initial_images.shape != shape:
        raise InputError(f"initial_images has shape {initial_images.shape}; give {shape}")
    return _ascend(
        classifier,
        units,
        jitter_key,
        learning_rate,
        _Regularization(decay, total_variation, blur),
        initial_images,
        stage=stage,
        steps=steps,
        jitter=jitter,
    )


@partial(jax.jit, static_argnames=("stage", "image_shape"))
def _initial_images(
    classifier: ImageClassifier,
    stage: str,
    units: Int[AnyArray, " units"],
    key: PRNGKeyArray,
    image_shape: ImageShape,
) -> Float[Array, "units height width channels"]:
    """The random image with the largest activation, for each unit."""
    noise = jax.random.normal(key, (_CANDIDATES, *image_shape), jnp.float32).astype(float)
    noise = gradient_ascent.gaussian_blur(noise, min(image_shape[:2]) / 14)
    candidates = (classifier.pixel_mean + _CONTRAST * noise / noise.std()).clip(0, 1)
    # One by one, since all candidates at once may need more memory than the ascent.
    activations = lax.map(lambda image: _all_units(classifier, image[None], stage)[0], candidates)
    return candidates[activations[:, jnp.asarray(units)].argmax(0)]


def _all_units(
    classifier: ImageClassifier, pixels: gradient_ascent.Images, stage: str
) -> Float[Array, "batch units"]:
    """Activations of all units of a stage; for feature maps, their means."""
    activations = classifier.activations(pixels, stage)
    return activations.reshape(len(pixels), -1, activations.shape[-1]).mean(1)


@partial(jax.jit, static_argnames=("stage", "steps", "jitter"))
def _ascend(
    classifier: ImageClassifier,
    units: Int[AnyArray, " units"],
    key: PRNGKeyArray,
    learning_rate: Float[AnyArray, ""] | float,
    regularization: _Regularization,
    initial_images: Float[AnyArray, "units height width channels"],
    *,
    stage: str,
    steps: int,
    jitter: int,
) -> MaximizationResult:
    decay, total_variation, blur = regularization
    mean, indices = classifier.pixel_mean, jnp.asarray(units)[:, None]

    def objective(pixels: gradient_ascent.Images) -> Float[Array, " units"]:
        return jnp.take_along_axis(_all_units(classifier, pixels, stage), indices, 1)[:, 0]

    def variation(pixels: gradient_ascent.Images) -> Float[Array, ""]:
        return gradient_ascent.total_variation(pixels).sum()

    def step(
        pixels: gradient_ascent.Images, inputs: tuple[Array, Array]
    ) -> tuple[gradient_ascent.Images, Array]:
        key, scale = inputs
        activations, direction = gradient_ascent.normalized_gradient(objective, pixels, key, jitter)
        direction -= total_variation * jax.grad(variation)(pixels)
        pixels = pixels + scale * learning_rate * direction
        pixels = mean + (1 - scale * decay) * (pixels - mean)
        return gradient_ascent.gaussian_blur(pixels, scale * blur).clip(0, 1), activations

    schedule = 1 - jnp.arange(steps) / steps
    initial = jnp.asarray(initial_images, float).clip(0, 1)
    return MaximizationResult(*lax.scan(step, initial, (jax.random.split(key, steps), schedule)))
