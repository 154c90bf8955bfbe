"""What explanations refuse, before they compute anything."""

from typing import Any

import jax
import numpy as np

from dlc_jax.errors import InputError
from dlc_jax.explain import ascent
from dlc_jax.explain.classifier import View


def check_pixels(view: View, pixels: Any) -> tuple[int, int, int]:
    """The shape of each image: height, width and channels.

    Raises:
      InputError: pixels are not [batch, height, width, channels] from 0 to 1, there are none, or
        the network takes no images of that shape.
    """
    shape = np.shape(pixels)
    if len(shape) != 4 or shape[0] == 0:
        raise InputError(
            f"pixels of shape {shape} are no images; give [batch, height, width, channels] of at "
            "least one image"
        )
    if not isinstance(pixels, jax.core.Tracer):
        # By NumPy: JAX would compile two programs for each shape.
        values = np.asarray(pixels)
        least, most = float(values.min()), float(values.max())
        if not (least >= 0 and most <= 1):
            raise InputError(f"pixels go from {least:g} to {most:g}; scale them to go from 0 to 1")
    height, width, channels = shape[1:]
    if not ascent.accepts(view, (height, width, channels)):
        raise ascent.refused((height, width, channels))
    return height, width, channels


def check_choices(what: str, choices: Any, batch: int, count: int) -> None:
    """Raises an InputError unless there is one of `count` things for each image.

    Args:
      what: what is chosen, as "class".
      choices: integers [batch]; under `jit` their values are not known, and any will do.
      batch: the number of images.
      count: of what there is to choose from.

    Raises:
      InputError: choices are not [batch] integers from 0 to `count` less one.
    """
    if not hasattr(choices, "dtype"):
        choices = np.asarray(choices)
    shape, dtype = choices.shape, choices.dtype
    if shape != (batch,) or not np.issubdtype(dtype, np.integer):
        raise InputError(
            f"what names a {what} for each of {batch} images are {batch} integers, not "
            f"{dtype} of shape {shape}"
        )
    if isinstance(choices, jax.core.Tracer):
        return
    outside = [choice for choice in np.asarray(choices).tolist() if not 0 <= choice < count]
    if outside:
        raise InputError(f"there is no {what} {outside[0]}; choose from 0 to {count - 1}")


def check_counts(**counts: int) -> None:
    """Raises an InputError unless each count, which it names, is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; give at least 1")


def check_labels(view: View, pixels: Any, labels: Any) -> tuple[int, int, int]:
    """The shape of each image, once pixels and labels are found to suit a network.

    Raises:
      InputError: see `check_pixels` and `check_choices`.
    """
    shape = check_pixels(view, pixels)
    check_choices("class", labels, len(pixels), view.stage_shapes(shape)["logits"][-1])
    return shape


def check_stage(view: View, image_shape: tuple[int, int, int], stage: str) -> tuple[int, ...]:
    """The shape of a stage's activations for one image.

    Raises:
      InputError: the network has no such stage.
    """
    shapes = view.stage_shapes(image_shape)
    if stage not in shapes:
        raise InputError(f"there is no stage {stage!r}; choose from {', '.join(shapes)}")
    return shapes[stage]


def check_spatial_stage(view: View, image_shape: tuple[int, int, int], stage: str) -> None:
    """Raises an InputError unless a stage has feature maps.

    Raises:
      InputError: the network has no such stage, or it is a vector.
    """
    if len(check_stage(view, image_shape, stage)) != 3:
        shapes = view.stage_shapes(image_shape)
        spatial = ", ".join(name for name, shape in shapes.items() if len(shape) == 3)
        raise InputError(f"stage {stage!r} has no feature maps; choose from {spatial}")
