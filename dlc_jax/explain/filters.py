"""A network's first filters, and its feature maps, as they are."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.explain.checks import check_pixels
from dlc_jax.explain.classifier import Pixels, View


def first_filters(view: View) -> Float[Array, "features height width channels"]:
    """The kernels of the first convolution, that which reads the image's channels.

    It need not be trained: airbench's is its whitening. Of several such convolutions it is the
    first by name.

    Args:
      view: the network.

    Returns:
      The weights on normalised pixels.

    Raises:
      InputError: no convolution reads the image.
    """
    channels = len(view.normalise.mean)
    for variable in jax.tree.leaves(view.variables):
        if variable.ndim == 4 and variable.shape[2] == channels:
            return variable.transpose(3, 0, 1, 2)
    raise InputError(
        f"the network has no convolution that reads {channels} channels; look at one that has, "
        "such as 'lecture'"
    )


def feature_maps(
    view: View, pixels: Pixels
) -> OrderedDict[str, Float[Array, "batch height width maps"]]:
    """The activations of each stage that has positions, by its name, in their order.

    Args:
      view: the network.
      pixels: the images, from 0 to 1.

    Raises:
      InputError: the pixels do not suit the network.
    """
    check_pixels(view, pixels)
    return _feature_maps(view, jnp.asarray(pixels))


@jax.jit
def _feature_maps(view: View, pixels: Array) -> OrderedDict[str, Array]:
    stages = view.stages(pixels)
    return OrderedDict((name, stage) for name, stage in stages.items() if stage.ndim == 4)
