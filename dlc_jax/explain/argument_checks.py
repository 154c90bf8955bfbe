"""Checks of the arguments of explanations, which do not run the network."""

from typing import Any

import jax
import numpy as np

from dlc_jax.errors import InputError
from dlc_jax.explain.classifier import ImageClassifier, ImageShape


def is_traced(*values: Any) -> bool:
    """Returns whether `jax.jit` or another transformation traces one of the values."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def check_image_shape(classifier: ImageClassifier, image_shape: ImageShape) -> None:
    """Raises an InputError if a classifier can't be applied to images of a shape."""
    if not classifier.accepts(image_shape):
        shape = "x".join(map(str, image_shape))
        raise InputError(
            f"the network does not accept images of {shape}; use the size that it was built for"
        )


def check_pixels(classifier: ImageClassifier, pixels: Any) -> ImageShape:
    """Checks a batch of images.

    Args:
      classifier: Classifier to apply to them.
      pixels: Images; their values are not checked under `jax.jit`.

    Returns:
      Height, width and channels of an image.

    Raises:
      InputError: Pixels are not [batch, height, width, channels] from 0 to 1, the batch is empty,
        or the network can't be applied to images of that shape.
    """
    shape = np.shape(pixels)
    if len(shape) != 4 or shape[0] == 0:
        raise InputError(
            f"pixels have shape {shape}; give [batch, height, width, channels] with at least one "
            "image"
        )
    if not is_traced(pixels):
        # NumPy is used because JAX would compile two programs for each shape.
        values = np.asarray(pixels)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"pixels range from {low:g} to {high:g}; scale them to [0, 1]")
    height, width, channels = shape[1:]
    check_image_shape(classifier, (height, width, channels))
    return height, width, channels


def check_indices(name: str, indices: Any, batch: int, count: int) -> None:
    """Checks one index for each image.

    Args:
      name: What the indices refer to, such as "class".
      indices: Integers [batch]; their values are not checked under `jax.jit`.
      batch: Number of images.
      count: Upper bound of the indices, exclusive.

    Raises:
      InputError: The indices are not [batch] integers from 0 to `count` - 1.
    """
    if not hasattr(indices, "dtype"):
        indices = np.asarray(indices)
    shape, dtype = indices.shape, indices.dtype
    if shape != (batch,) or not np.issubdtype(dtype, np.integer):
        raise InputError(
            f"give {batch} integers, one {name} for each image, not {dtype} of shape {shape}"
        )
    if is_traced(indices):
        return
    invalid = [index for index in np.asarray(indices).tolist() if not 0 <= index < count]
    if invalid:
        raise InputError(f"there is no {name} {invalid[0]}; choose from 0 to {count - 1}")


def check_positive(**counts: int) -> None:
    """Raises an InputError if one of the counts, given by name, is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; give at least 1")


def check_labels(classifier: ImageClassifier, pixels: Any, labels: Any) -> ImageShape:
    """Checks a batch of images and a class for each.

    Returns:
      Height, width and channels of an image.

    Raises:
      InputError: See `check_pixels` and `check_indices`.
    """
    shape = check_pixels(classifier, pixels)
    check_indices("class", labels, len(pixels), classifier.stage_shapes(shape)["logits"][-1])
    return shape


def check_stage(
    classifier: ImageClassifier, image_shape: ImageShape, stage: str
) -> tuple[int, ...]:
    """Checks the name of a stage.

    Returns:
      Shape of the stage's activations for one image.

    Raises:
      InputError: The network has no such stage.
    """
    shapes = classifier.stage_shapes(image_shape)
    if stage not in shapes:
        raise InputError(f"there is no stage {stage!r}; choose from {', '.join(shapes)}")
    return shapes[stage]


def check_spatial_stage(classifier: ImageClassifier, image_shape: ImageShape, stage: str) -> None:
    """Raises an InputError if there is no such stage or it has no feature maps."""
    if len(check_stage(classifier, image_shape, stage)) != 3:
        shapes = classifier.stage_shapes(image_shape)
        spatial = ", ".join(name for name, shape in shapes.items() if len(shape) == 3)
        raise InputError(f"stage {stage!r} has no feature maps; choose from {spatial}")
