"""The lecture's network: what its MNIST example trains (Fleuret, EE-559, lecture 1a)."""

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
    """Two 5x5 convolutions of 32 and 64 maps, then layers of 200 and `num_classes` units.

    The lecture pools before it rectifies. That order is kept: the result is the same as
    the other way round, since both keep the order of values, and nine (then four) times
    fewer values are rectified.

    Args:
      image_shape: height, width and channels of the images; the lecture's are 28x28x1.
      num_classes: the number of logits.
      rngs: where the initial weights come from.
      dtype: what it computes in.

    Raises:
      InputError: the images are under 22x22, too small for the two stages.
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
        """Both convolutions, the hidden layer, and the logits."""
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["conv1"] = nnx.relu(self.conv1(x))
        x = stages["conv2"] = nnx.relu(self.conv2(x))
        x = stages["fc1"] = nnx.relu(self.fc1(layers.flatten(x)))
        stages["logits"] = self.fc2(x)
        return stages
