"""AlexNet, which won the ImageNet challenge of 2012 (Krizhevsky, Sutskever and Hinton 2012).

What was new: a convnet of 60 million parameters trained on two GPUs for a week, with ReLU
instead of tanh, dropout, responses normalised over neighbouring channels, and pooling windows
that overlap. Its error of 15.3 % (the next best: 26.2 %) made the field turn to deep learning.

The default is torchvision's network, that of Krizhevsky's later "one weird trick" (2014): fewer
maps, no normalisation, no groups, so that published weights can be loaded. `original=True`
builds the paper's: normalisation after the first two layers, and the layers that were split
between the two GPUs in two groups. The paper's images of 224x224 do not fit its first layer,
here as in torchvision they are padded by two pixels.
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

_SMALLEST = 63
# Maps of the five convolutions, and in how many groups each is computed.
_ONE_TOWER = (64, 192, 384, 256, 256), (1, 1, 1, 1, 1)
_TWO_GPUS = (96, 256, 384, 384, 256), (1, 2, 1, 2, 2)


class AlexNet(Network):
    """Five convolutions, three of them pooled, then three layers of 4,096, 4,096 and classes.

    Args:
      image_shape: height, width and channels; the paper's are 224x224x3.
      num_classes: the number of logits.
      rngs: where initial weights and dropout come from.
      dtype: what it computes in.
      original: the paper's network instead of torchvision's.

    Raises:
      InputError: the images are under 63x63, too small for the strides.
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
        if min(height, width) < _SMALLEST:
            raise InputError(
                f"AlexNet needs images of at least {_SMALLEST}x{_SMALLEST}, not {height}x{width}; "
                "resnet20 and lecture take small ones"
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
        """The five convolutions, rectified, with what is pooled of them; then the layers."""
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
        """Torchvision's `features` and `classifier`."""
        places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
        features = {name: f"features.{place}" for name, place in places.items()}
        return features | {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
