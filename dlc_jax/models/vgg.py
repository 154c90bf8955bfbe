"""The networks of Oxford's Visual Geometry Group (Simonyan and Zisserman 2014).

The idea is depth with small kernels. Two 3x3 convolutions have the receptive field of a 5x5
convolution, and three that of a 7x7 one, with fewer weights and more nonlinearities. VGG was
second in the ImageNet challenge of 2014, and for years the usual feature extractor.

`vgg11`, `13`, `16` and `19` are the configurations A, B, D and E of the paper's table 1, with
torchvision's initial weights. Batch normalization after each convolution (`-bn`) is torchvision's.
For images much smaller than 224x224, use `head="small"`: one linear layer on the averaged feature
maps, as is usual on CIFAR-10, instead of three layers on 7x7 feature maps.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers

_MAPS = (64, 128, 256, 512, 512)
_HEADS = ("imagenet", "small")


class VGG(Network):
    """Five stages of 3x3 convolutions, each followed by 2x2 max-pooling, then the head.

    Args:
      image_shape: Height, width and channels of the images; 224x224x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of initial weights and dropout.
      dtype: Dtype of the computation.
      depths: Number of convolutions per stage.
      batch_norm: Whether each convolution is followed by batch normalization.
      head: "imagenet" (three linear layers with dropout) or "small" (one, on averaged maps).

    Raises:
      InputError: The images are smaller than 32x32, or there is no such head.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        batch_norm: bool = False,
        head: str = "imagenet",
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < 32:
            raise InputError(f"VGG needs images of at least 32x32, not {height}x{width}")
        if head not in _HEADS:
            raise InputError(f"VGG has no head {head!r}; choose from {', '.join(_HEADS)}")
        self.depths, self.head, self.batch_norm = tuple(depths), head, batch_norm
        for stage, index in self._conv_indices():
            name, maps = f"{stage}_{index}", _MAPS[stage - 1]
            options: dict[str, Any] = {"kernel_init": layers.he_normal, "bias_init": layers.zeros}
            conv = layers.Conv(channels, maps, (3, 3), padding=1, dtype=dtype, rngs=rngs, **options)
            setattr(self, f"conv{name}", conv)
            if batch_norm:
                setattr(self, f"bn{name}", layers.BatchNorm(maps, dtype=dtype, rngs=rngs))
            channels = maps
        sizes = [channels, num_classes] if head == "small" else [49 * 512, 4096, 4096, num_classes]
        self.classifier = nnx.List(
            layers.Linear(
                inputs,
                outputs,
                kernel_init=nnx.initializers.normal(0.01),
                bias_init=layers.zeros,
                dtype=dtype,
                rngs=rngs,
            )
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.dropout = layers.Dropout(0.5, rngs=rngs)

    def _conv_indices(self) -> list[tuple[int, int]]:
        """Stage and index in the stage of each convolution, counted from 1."""
        return [(s, i) for s, depth in enumerate(self.depths, 1) for i in range(1, depth + 1)]

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "conv1_1" and so on, "pool1" to "pool5", the layers of the head, and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        for stage, index in self._conv_indices():
            name = f"{stage}_{index}"
            x = getattr(self, f"conv{name}")(x)
            if self.batch_norm:
                x = getattr(self, f"bn{name}")(x)
            x = stages[f"conv{name}"] = nnx.relu(x)
            if index == self.depths[stage - 1]:
                x = stages[f"pool{stage}"] = ops.max_pool(x, (2, 2))
        if self.head == "small":
            x = stages["average"] = x.mean((1, 2))
        else:
            x = layers.flatten(layers.adaptive_avg_pool(x, (7, 7)))
        *hidden, last = self.classifier
        for i, layer in enumerate(hidden, 6):
            x = stages[f"fc{i}"] = self.dropout(nnx.relu(layer(x)))
        stages["logits"] = last(x)
        return stages

    def torch_names(self) -> dict[str, str]:
        """Returns the names of torchvision's `features` and `classifier`."""
        names, position, modules_per_conv = {}, 0, 3 if self.batch_norm else 2
        for stage, index in self._conv_indices():
            names[f"conv{stage}_{index}"] = f"features.{position}"
            if self.batch_norm:
                names[f"bn{stage}_{index}"] = f"features.{position + 1}"
            position += modules_per_conv + (index == self.depths[stage - 1])
        if self.head == "imagenet":
            names |= {f"classifier.{i}": f"classifier.{3 * i}" for i in range(3)}
        return names
