"""A small classifier for examples and tests."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from dlc_jax.data.normalization import Normalize
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.models.network import Network


class TinyNetwork(Network):
    """A convolution with four feature maps, ReLU, global average pooling and a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.kernel = nnx.Param(jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32))
        self.weight = nnx.Param(jnp.asarray(rng.normal(size=(4, 3)), jnp.float32))

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        """Returns the stages "conv" and "logits"."""
        layout = "NHWC", "HWIO", "NHWC"
        maps = lax.conv_general_dilated(
            x, self.kernel[...], (1, 1), "SAME", dimension_numbers=layout
        )
        maps = jax.nn.relu(maps)
        return OrderedDict(conv=maps, logits=maps.mean((1, 2)) @ self.weight[...])


def tiny_classifier(seed: int = 0) -> ImageClassifier:
    """Creates an untrained classifier of small gray images with three classes.

    Its stages are "conv", with four feature maps, and "logits".

    Args:
      seed: Random seed of the weights.

    Example:
      >>> dict(tiny_classifier().stage_shapes((8, 8, 1)))
      {'conv': (8, 8, 4), 'logits': (3,)}
    """
    return ImageClassifier.from_model(TinyNetwork(seed), Normalize((127.5,), (63.75,)))
