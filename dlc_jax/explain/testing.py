"""A small classifier for examples and tests."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dlc_jax import ops
from dlc_jax.data.dataset import Normalize
from dlc_jax.explain.classifier import ImageClassifier
from dlc_jax.models.network import Network


class TinyNetwork(Network):
    """A convolution with four feature maps, ReLU, global average pooling and a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.kernel = nnx.Param(jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32))
        self.weight = nnx.Param(jnp.asarray(rng.normal(size=(4, 3)), jnp.float32))

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        """The stages "conv" and "logits"."""
        maps = jax.nn.relu(ops.conv2d(x, self.kernel[...]))
        return OrderedDict(conv=maps, logits=maps.mean((1, 2)) @ self.weight[...])


def tiny_classifier(seed: int = 0) -> ImageClassifier:
    """An untrained classifier of small grey images with three classes.

    Its stages are "conv", with four feature maps, and "logits".

    Args:
      seed: Random seed of the weights.

    Example:
      >>> tiny_classifier().stage_shapes((8, 8, 1))
      OrderedDict({'conv': (8, 8, 4), 'logits': (3,)})
    """
    return ImageClassifier.from_model(TinyNetwork(seed), Normalize((127.5,), (63.75,)))
