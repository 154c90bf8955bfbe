"""Filters of the first layer, and feature maps."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.explain.argument_checks import check_pixels
from dlc_jax.explain.classifier import ImageClassifier, Pixels


def first_layer_filters(
    classifier: ImageClassifier,
) -> Float[Array, "features height width channels"]:
    """Returns the kernels of the first convolution, the one that reads the image's channels.

    They may be fixed, as in airbench, whose first convolution whitens patches. If several
    convolutions have as many input channels, the first by name is used.

    Args:
      classifier: The classifier.

    Returns:
      Kernels, applied to normalized pixels.

    Raises:
      InputError: No convolution reads the image.

    Example:
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> first_layer_filters(tiny_classifier()).shape
      (4, 3, 3, 1)
    """
    channels = len(classifier.normalize.mean)
    for variable in jax.tree.leaves(classifier.variables):
        if variable.ndim == 4 and variable.shape[2] == channels:
            return variable.transpose(3, 0, 1, 2)
    raise InputError(
        f"the network has no convolution that reads {channels} channels; use a convolutional "
        "network such as 'lecture'"
    )


def feature_maps(
    classifier: ImageClassifier, pixels: Pixels
) -> OrderedDict[str, Float[Array, "batch height width maps"]]:
    """Returns the activations of all stages with feature maps, by name and in order.

    Args:
      classifier: The classifier.
      pixels: Images with pixels from 0 to 1.

    Raises:
      InputError: The pixels do not match the network.

    Example:
      >>> import numpy as np
      >>> from dlc_jax.explain.tiny_classifier import tiny_classifier
      >>> maps = feature_maps(tiny_classifier(), np.zeros((2, 8, 8, 1)))
      >>> {name: maps[name].shape for name in maps}
      {'conv': (2, 8, 8, 4)}
    """
    check_pixels(classifier, pixels)
    return _feature_maps(classifier, jnp.asarray(pixels))


@jax.jit
def _feature_maps(classifier: ImageClassifier, pixels: Array) -> OrderedDict[str, Array]:
    stages = classifier.stages(pixels)
    return OrderedDict((name, stage) for name, stage in stages.items() if stage.ndim == 4)
