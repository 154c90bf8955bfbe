"""The networks of Oxford's Visual Geometry Group (Simonyan and Zisserman 2014).

What was new: depth from the smallest kernels. Two layers of 3x3 kernels read as many pixels
as one of 5x5 and three as many as one of 7x7, with fewer weights and more rectifiers between
them. Second in the ImageNet challenge of 2014, and for years everybody's feature extractor.

`vgg11`, `13`, `16` and `19` are the configurations A, B, D and E of the paper's table 1, with
torchvision's initial weights. Batch normalisation after each convolution (`-bn`) came later
and is torchvision's. For images much smaller than 224x224 the three fully connected layers,
made for 7x7 feature maps, would hold nearly all parameters and read copies; `head="small"` puts
one layer on the averaged feature maps instead, as is usual on CIFAR-10.
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
    """Five stages of 3x3 convolutions, each followed by 2x2 max-pooling, then the classifier.

    Args:
      image_shape: height, width and channels; the paper's are 224x224x3.
      num_classes: the number of logits.
      rngs: where initial weights and dropout come from.
      dtype: what it computes in.
      depths: how many convolutions each stage has.
      batch_norm: whether each is followed by batch normalisation.
      head: "imagenet" (three layers with dropout) or "small" (one on averaged maps).

    Raises:
      InputError: the images are under 32x32, or there is no such head.
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
        for stage, place in self._places():
            name, maps = f"{stage}_{place}", _MAPS[stage - 1]
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

    def _places(self) -> list[tuple[int, int]]:
        """Stage and place in the stage of each convolution, counted from 1."""
        return [(s, i) for s, depth in enumerate(self.depths, 1) for i in range(1, depth + 1)]

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Each convolution, rectified, as the paper's successors name it: "conv1_1" and so on."""
        stages: OrderedDict[str, Array] = OrderedDict()
        for stage, place in self._places():
            name = f"{stage}_{place}"
            x = getattr(self, f"conv{name}")(x)
            if self.batch_norm:
                x = getattr(self, f"bn{name}")(x)
            x = stages[f"conv{name}"] = nnx.relu(x)
            if place == self.depths[stage - 1]:
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
        """Torchvision's `features` and `classifier`."""
        names, index, of_each = {}, 0, 3 if self.batch_norm else 2
        for stage, place in self._places():
            names[f"conv{stage}_{place}"] = f"features.{index}"
            if self.batch_norm:
                names[f"bn{stage}_{place}"] = f"features.{index + 1}"
            index += of_each + (place == self.depths[stage - 1])
        if self.head == "imagenet":
            names |= {f"classifier.{i}": f"classifier.{3 * i}" for i in range(3)}
        return names
