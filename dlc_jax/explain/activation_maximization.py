"""Images that a unit answers most to: activation maximisation (Erhan et al. 2009).

("Visualizing higher-layer features of a deep network".) Simonyan et al. 2014 ("Deep inside
convolutional networks", section 2) maximise the logits of classes. The regularisers are those of
Yosinski et al. 2015 ("Understanding neural networks through deep visualization", section 3: decay
and blur) and of Mahendran and Vedaldi 2016 ("Visualizing deep convolutional neural networks using
natural pre-images", section 3: total variation and jitter).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.errors import InputError
from dlc_jax.explain import ascent
from dlc_jax.explain.checks import check_choices
from dlc_jax.explain.classifier import View

# Half of a trained network's rectified units are silent on any one image, and then have no
# gradient; so that each begins with the best of some. They are smooth, as what deeper layers look
# for is.
_STARTS = 32
_CONTRAST = 0.3


class Maximised(NamedTuple):
    """Images that units answer to, and how they came to.

    Attributes:
      images: one for each unit; pixels from 0 to 1.
      activations: each unit's before each step, of the image moved as in that step.
    """

    images: Float[Array, "count height width channels"]
    activations: Float[Array, "steps count"]


def maximise(
    view: View,
    stage: str,
    maps: Int[AnyArray, " count"],
    *,
    key: PRNGKeyArray,
    image_shape: tuple[int, int, int],
    steps: int = 256,
    learning_rate: Float[AnyArray, ""] | float = 0.1,
    decay: Float[AnyArray, ""] | float = 0.05,
    total_variation: Float[AnyArray, ""] | float = 0.5,
    jitter: int = 1,
    blur: Float[AnyArray, ""] | float = 0.3,
    start: Float[AnyArray, "count height width channels"] | None = None,
) -> Maximised:
    """For each of some units an image that it answers most to.

    The unit is a feature map's mean over all positions, or a vector's element; of "logits" it is
    a class. From `start` on, each step adds to the image, times the learning rate, the unit's
    gradient (of mean absolute value 1) less that of the total variation times its weight; then
    the image decays, is blurred, and its pixels are clipped to [0, 1]. Learning rate, decay and
    blur go linearly to zero, so that the image comes to rest. A rectified unit that is silent at
    `start` has no gradient: its activations stay zero.

    Args:
      view: the network.
      stage: whose units, as `View.stages` has it.
      maps: the units, each an index of the stage's last axis.
      key: of the first images and of the jitter.
      image_shape: height, width and channels of the images.
      steps: how many, at least one.
      learning_rate: of the first step; by how much a pixel changes on average.
      decay: what part of its difference to the training images' mean an image loses in the
        first step.
      total_variation: weight of the sum of the lengths of the image's differences between
        neighbours, against the unit's gradient.
      jitter: by how many pixels an image is moved at most in each step; see `ascent.slope`.
      blur: standard deviation in pixels of the first step's Gaussian.
      start: where to begin; by default for each unit that of 32 images of smooth noise, around the
        training images' mean, which it answers most to.

    Raises:
      InputError: there is no such stage or unit, no units are asked for, the network takes no
        such images, `start` is of another shape, there are no steps, or the jitter is negative.
    """
    _check(view, stage, maps, image_shape, steps, jitter)
    shape = (len(maps), *image_shape)
    start_key, jitter_key = jax.random.split(key)
    if start is None:
        start = _start(view, stage, maps, start_key, image_shape)
    if start.shape != shape:
        raise InputError(f"the start for these units is of shape {shape}, not {start.shape}")
    settings = learning_rate, decay, total_variation, blur
    return _ascend(view, stage, maps, jitter_key, steps, jitter, settings, start)


def _check(
    view: View,
    stage: str,
    maps: Int[AnyArray, " count"],
    image_shape: tuple[int, int, int],
    steps: int,
    jitter: int,
) -> None:
    ascent.check(view, stage, image_shape, steps, jitter)
    if len(maps) == 0:
        raise InputError("maps is empty; give the index of at least one unit")
    check_choices("unit", maps, len(maps), view.stage_shapes(image_shape)[stage][-1])


@partial(jax.jit, static_argnames=("stage", "image_shape"))
def _start(
    view: View,
    stage: str,
    maps: Int[AnyArray, " count"],
    key: PRNGKeyArray,
    image_shape: tuple[int, int, int],
) -> Float[Array, "count height width channels"]:
    """For each unit that of some random images which it answers most to."""
    width = min(image_shape[:2]) / 14
    noise = jax.random.normal(key, (_STARTS, *image_shape), jnp.float32).astype(float)
    noise = ascent.blur(noise, width)
    candidates = (view.mean_pixels + _CONTRAST * noise / noise.std()).clip(0, 1)
    # One after the other, since all at once may take more memory than the ascent.
    answers = lax.map(lambda image: _units(view, image[None], stage)[0], candidates)
    return candidates[answers[:, jnp.asarray(maps)].argmax(0)]


def _units(view: View, pixels: ascent.Images, stage: str) -> Float[Array, "batch units"]:
    """The activations of all units of a stage, of feature maps the means."""
    activations = view.activations(pixels, stage)
    return activations.reshape(len(pixels), -1, activations.shape[-1]).mean(1)


@partial(jax.jit, static_argnames=("stage", "steps", "jitter"))
def _ascend(
    view: View,
    stage: str,
    maps: Int[AnyArray, " count"],
    key: PRNGKeyArray,
    steps: int,
    jitter: int,
    settings: tuple[Float[AnyArray, ""] | float, ...],
    start: Float[AnyArray, "count height width channels"],
) -> Maximised:
    learning_rate, decay, total_variation, blur = settings
    mean, units = view.mean_pixels, jnp.asarray(maps)[:, None]

    def answers(pixels: ascent.Images) -> Float[Array, " count"]:
        return jnp.take_along_axis(_units(view, pixels, stage), units, 1)[:, 0]

    def variation(pixels: ascent.Images) -> Float[Array, ""]:
        return ascent.total_variation(pixels).sum()

    def step(pixels: ascent.Images, inputs: tuple[Array, Array]) -> tuple[ascent.Images, Array]:
        key, left = inputs
        activations, direction = ascent.slope(answers, pixels, key, jitter)
        direction -= total_variation * jax.grad(variation)(pixels)
        pixels = pixels + left * learning_rate * direction
        pixels = ascent.blur(mean + (1 - left * decay) * (pixels - mean), left * blur)
        return pixels.clip(0, 1), activations

    # What part of the first step's is left.
    left = 1 - jnp.arange(steps) / steps
    first = jnp.asarray(start, float).clip(0, 1)
    return Maximised(*lax.scan(step, first, (jax.random.split(key, steps), left)))
