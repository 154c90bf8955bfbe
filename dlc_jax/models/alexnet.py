"""AlexNet, which won the ImageNet challenge of 2012 (Krizhevsky, Sutskever and Hinton 2012).

New were its size, 60 million parameters trained on two GPUs for a week, and the use of ReLU instead
of tanh, dropout, local response normalization, and overlapping pooling. Its error of 15.3 % (the
next best: 26.2 %) made the field turn to deep learning.

The default is torchvision's network, that of Krizhevsky 2014 ("One weird trick"): fewer maps, no
normalization, no groups; torchvision's weights can be loaded. `original=True` builds the paper's:
normalization after the first two layers, and two groups in the layers that were split between the
GPUs. Images of 224x224 do not fit the first layer; as in torchvision, they are padded by two
pixels.
"""

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

_MIN_SIZE = 63
# Feature maps and groups of the five convolutions.
_ONE_TOWER = (64, 192, 384, 256, 256), (1, 1, 1, 1, 1)
_TWO_GPUS = (96, 256, 384, 384, 256), (1, 2, 1, 2, 2)


class AlexNet(Network):
    """Five convolutions, three of them pooled, and three linear layers.

    Args:
      image_shape: Height, width and channels of the images; 224x224x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of initial weights and dropout.
      dtype: Dtype of the computation.
      original: Whether to build the network of the paper instead of torchvision's.

    Raises:
      InputError: The images are smaller than 63x63.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        original: bool = False,
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < _MIN_SIZE:
            raise InputError(
                f"AlexNet needs images of at least {_MIN_SIZE}x{_MIN_SIZE}, not {height}x{width}; "
                "for small images use resnet20 or lecture"
            )
        maps, groups = _TWO_GPUS if original else _ONE_TOWER
        sizes = (11, 5, 3, 3, 3)
        paddings = (2, 2, 1, 1, 1)
        inputs = (channels, *maps[:-1])
        convolutions = [
            layers.Conv(
                inputs[i],
                maps[i],
                (sizes[i], sizes[i]),
                strides=4 if i == 0 else 1,
                padding=paddings[i],
                feature_group_count=groups[i],
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(5)
        ]
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = convolutions
        self.fc6 = layers.Linear(36 * maps[-1], 4096, dtype=dtype, rngs=rngs)
        self.fc7 = layers.Linear(4096, 4096, dtype=dtype, rngs=rngs)
        self.fc8 = layers.Linear(4096, num_classes, dtype=dtype, rngs=rngs)
        self.dropout = layers.Dropout(0.5, rngs=rngs)
        self.original = original

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "conv1" to "conv5", "pool1", "pool2", "pool5", "fc6", "fc7" and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        for i, conv in enumerate((self.conv1, self.conv2, self.conv3, self.conv4, self.conv5), 1):
            x = stages[f"conv{i}"] = nnx.relu(conv(x))
            if self.original and i in (1, 2):
                x = layers.local_response_norm(x)
            if i in (1, 2, 5):
                x = stages[f"pool{i}"] = ops.max_pool(x, (3, 3), (2, 2))
        x = layers.flatten(layers.adaptive_avg_pool(x, (6, 6)))
        x = stages["fc6"] = nnx.relu(self.fc6(self.dropout(x)))
        x = stages["fc7"] = nnx.relu(self.fc7(self.dropout(x)))
        stages["logits"] = self.fc8(x)
        return stages

    def torch_names(self) -> dict[str, str]:
        """Returns the names of torchvision's `features` and `classifier`."""
        indices = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
        features = {name: f"features.{index}" for name, index in indices.items()}
        return features | {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
