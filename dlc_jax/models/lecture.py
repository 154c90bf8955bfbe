"""The network of the lecture's MNIST example (Fleuret, EE-559, lecture 1a)."""

from collections import OrderedDict
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers


class Lecture(Network):
    """Two 5x5 convolutions of 32 and 64 maps, then linear layers of 200 and `num_classes` units.

    As in the lecture, max-pooling comes before ReLU. Both orders give the same result, but ReLU
    then applies to nine (four) times fewer values.

    Args:
      image_shape: Height, width and channels of the images; 28x28x1 in the lecture.
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.

    Raises:
      InputError: The images are smaller than 22x22.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        height, width, channels = image_shape
        rows, columns = (((size - 4) // 3 - 4) // 2 for size in (height, width))
        if min(rows, columns) < 1:
            raise InputError(
                f"the lecture's network needs images of at least 22x22, not {height}x{width}"
            )
        valid: dict[str, Any] = {"padding": "VALID", "dtype": dtype, "rngs": rngs}
        self.conv1 = layers.PooledConv(channels, 32, (5, 5), pool=(3, 3), **valid)
        self.conv2 = layers.PooledConv(32, 64, (5, 5), pool=(2, 2), **valid)
        self.fc1 = layers.Linear(rows * columns * 64, 200, dtype=dtype, rngs=rngs)
        self.fc2 = layers.Linear(200, num_classes, dtype=dtype, rngs=rngs)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "conv1" and "conv2" (pooled), "fc1", and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["conv1"] = nnx.relu(self.conv1(x))
        x = stages["conv2"] = nnx.relu(self.conv2(x))
        x = stages["fc1"] = nnx.relu(self.fc1(layers.flatten(x)))
        stages["logits"] = self.fc2(x)
        return stages
