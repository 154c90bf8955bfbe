"""LeNet-5 with modern layers.

The layers' sizes are those of LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning
applied to document recognition", section II.B (see `dlc_jax.models.lenet5` for the network as
published). It differs in:

- max-pooling instead of trainable sub-sampling;
- ReLU instead of tanh;
- C3 reads all maps of S2;
- a linear output layer and softmax cross-entropy instead of distances to fixed codes;
- PyTorch's initial weights.

Images of 28x28 pixels are edge-padded to 32x32.
"""

from collections import OrderedDict
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.models.lenet5 import pad_to_32
from dlc_jax.models.network import Network
from dlc_jax.nn import layers


class LeNet5Modern(Network):
    """Two 5x5 convolutions of 6 and 16 maps with max-pooling, and layers of 120 and 84 units.

    It has 61,706 parameters for ten classes of grayscale images.

    Args:
      image_shape: Height, width and channels of the images: 32x32, or 28x28 (padded).
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.

    Raises:
      InputError: The images are neither 28x28 nor 32x32.
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
        if (height, width) not in ((28, 28), (32, 32)):
            raise InputError(
                f"LeNet-5 needs images of 32x32 or 28x28 pixels, not {height}x{width}; resize them"
            )
        valid: dict[str, Any] = {"padding": "VALID", "dtype": dtype, "rngs": rngs}
        self.c1 = layers.PooledConv(channels, 6, (5, 5), pool=(2, 2), **valid)
        self.c3 = layers.PooledConv(6, 16, (5, 5), pool=(2, 2), **valid)
        self.c5 = layers.Conv(16, 120, (5, 5), **valid)
        self.f6 = layers.Linear(120, 84, dtype=dtype, rngs=rngs)
        self.output = layers.Linear(84, num_classes, dtype=dtype, rngs=rngs)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the pooled maps, the hidden layers, and the logits.

        These are "s2" [batch, 14, 14, 6], "s4" [batch, 5, 5, 16], "c5" [batch, 120], "f6"
        [batch, 84] and "logits" [batch, classes].
        """
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["s2"] = nnx.relu(self.c1(pad_to_32(x)))
        x = stages["s4"] = nnx.relu(self.c3(x))
        x = stages["c5"] = nnx.relu(self.c5(x)).reshape(len(x), -1)
        x = stages["f6"] = nnx.relu(self.f6(x))
        stages["logits"] = self.output(x)
        return stages
