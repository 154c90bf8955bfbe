"""PReLU-net, the first network above human accuracy on ImageNet (He, Zhang, Ren and Sun 2015).

("Delving deep into rectifiers: surpassing human-level performance on ImageNet
classification".) It introduced rectifiers with a trainable slope for negative inputs, and initial
weights of variance 2 / ((1 + slope^2) * inputs), which keeps the scale of activations at any depth.

The networks are models A, B and C of the paper's table 3, by default C: a 7x7 convolution, three
stages of 3x3 convolutions on maps of 56x56, 28x28 and 14x14, max-pooling over a spatial pyramid of
7x7, 3x3, 2x2 and 1x1 windows (He et al. 2014, "Spatial pyramid pooling", section 3.1), and three
linear layers. Slopes are per channel (section 2.1). The table does not mention dropout; as in its
predecessors, both hidden layers have a rate of 0.5.
"""

import math
from collections import OrderedDict
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers

# Feature maps of the three stages, and convolutions per stage (table 3).
_VARIANTS = {"A": ((256, 512, 512), 5), "B": ((256, 512, 512), 6), "C": ((384, 768, 896), 6)}
_PYRAMID = (7, 3, 2, 1)
_SLOPE = 0.25


class PReLUNet(Network):
    """Convolutions with PReLU, a spatial pyramid, and three linear layers.

    Args:
      image_shape: Height, width and channels of the images; 224x224x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of initial weights and dropout.
      dtype: Dtype of the computation.
      variant: Model "A", "B" or "C" of the paper.

    Raises:
      InputError: The images are smaller than 112x112, or there is no such variant.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        variant: str = "C",
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < 112:
            raise InputError(f"PReLU-net needs images of at least 112x112, not {height}x{width}")
        if variant not in _VARIANTS:
            raise InputError(f"there is no PReLU-net {variant!r}; choose from A, B, C")
        maps, depth = _VARIANTS[variant]
        init = layers.matrix_initializer(
            nnx.initializers.variance_scaling(2 / (1 + _SLOPE**2), "fan_in", "normal"), "fan_in"
        )
        options: dict[str, Any] = {
            "kernel_init": init,
            "bias_init": layers.zeros,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.conv1 = layers.Conv(channels, 96, (7, 7), strides=2, padding=3, **options)
        self.prelu1 = layers.PReLU(96, slope=_SLOPE)
        inputs = 96
        for stage, outputs in enumerate(maps, 2):
            convolutions: nnx.List[nnx.Module] = nnx.List([])
            rectifiers: nnx.List[nnx.Module] = nnx.List([])
            for _ in range(depth):
                convolutions.append(layers.Conv(inputs, outputs, (3, 3), padding=1, **options))
                rectifiers.append(layers.PReLU(outputs, slope=_SLOPE))
                inputs = outputs
            setattr(self, f"conv{stage}", convolutions)
            setattr(self, f"prelu{stage}", rectifiers)
        windows = sum(size**2 for size in _PYRAMID)
        self.fc5 = layers.Linear(windows * inputs, 4096, **options)
        self.prelu5 = layers.PReLU(4096, slope=_SLOPE)
        self.fc6 = layers.Linear(4096, 4096, **options)
        self.prelu6 = layers.PReLU(4096, slope=_SLOPE)
        self.fc7 = layers.Linear(4096, num_classes, **options)
        self.dropout = layers.Dropout(0.5, rngs=rngs)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "conv1", "pool1", "conv2_1" and so on, "pyramid", "fc5", "fc6" and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["conv1"] = self.prelu1(self.conv1(x))
        for stage in (2, 3, 4):
            x = stages[f"pool{stage - 1}"] = ops.max_pool(x, (2, 2))
            convolutions = getattr(self, f"conv{stage}"), getattr(self, f"prelu{stage}")
            for index, (conv, prelu) in enumerate(zip(*convolutions, strict=True), 1):
                x = stages[f"conv{stage}_{index}"] = prelu(conv(x))
        x = stages["pyramid"] = spatial_pyramid(x)
        x = stages["fc5"] = self.dropout(self.prelu5(self.fc5(x)))
        x = stages["fc6"] = self.dropout(self.prelu6(self.fc6(x)))
        stages["logits"] = self.fc7(x)
        return stages


def spatial_pyramid(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch windows*channels"]:
    """Concatenates the maxima over 7x7, 3x3, 2x2 and 1x1 windows that cover the maps."""
    levels = []
    for count in _PYRAMID:
        strides = tuple(math.floor(size / count) for size in x.shape[1:3])
        sizes = tuple(math.ceil(size / count) for size in x.shape[1:3])
        pooled = ops.max_pool(x, (sizes[0], sizes[1]), (strides[0], strides[1]))
        levels.append(pooled[:, :count, :count].reshape(len(x), -1))
    return jnp.concatenate(levels, 1)
