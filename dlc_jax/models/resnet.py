"""Residual networks, which won the ImageNet challenge of 2015 (He, Zhang, Ren and Sun 2015).

A block of layers adds to its input, so that networks of a hundred or more layers can be trained.
Where a block changes the shape of its input, the shortcut (section 4.1, "Identity vs. projection
shortcuts") is A, every second pixel with zeros for the new maps; B, a 1x1 convolution; or C, a 1x1
convolution in every block.

The ImageNet networks are torchvision's, whose weights can be loaded: shortcut B, and bottleneck
blocks with the stride in the 3x3 convolution, where the paper has it in the first 1x1 (4.1 billion
multiply-adds for ResNet-50 instead of 3.8). The CIFAR-10 networks (section 4.2) are the paper's:
three stages of 16, 32 and 64 maps, shortcut A, and `stem="small"`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network, check_stem
from dlc_jax.nn import layers

_SHORTCUTS = ("A", "B", "C")


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, **options: Any) -> layers.Conv:
    return layers.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=layers.he_normal,
        **options,
    )


class BasicBlock(nnx.Module):
    """Residual block of two 3x3 convolutions (figure 5, left).

    Args:
      inputs: Number of input channels.
      maps: Number of feature maps.
      stride: Stride of the first convolution.
      shortcut: Type of the shortcut, "A", "B" or "C".
      dtype: Dtype of the computation.
      rngs: Random number generators of the initial weights.
    """

    expansion = 1

    def __init__(
        self, inputs: int, maps: int, stride: int, shortcut: str, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        options = {"dtype": dtype, "rngs": rngs}
        self.conv1 = _conv(inputs, maps, 3, stride, **options)
        self.bn1 = layers.BatchNorm(maps, **options)
        self.conv2 = _conv(maps, maps, 3, **options)
        self.bn2 = layers.BatchNorm(maps, **options)
        self.downsample = _projection(inputs, maps, stride, shortcut, **options)
        self.maps, self.stride = maps, stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width maps"]:
        """Returns the feature maps of the block."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + _shortcut(x, self.downsample, self.maps, self.stride))


class BottleneckBlock(nnx.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution (figure 5, right).

    Args:
      inputs: Number of input channels.
      maps: Feature maps of the 3x3 convolution; the block returns four times as many.
      stride: Stride of the 3x3 convolution.
      shortcut: Type of the shortcut, "A", "B" or "C".
      dtype: Dtype of the computation.
      rngs: Random number generators of the initial weights.
    """

    expansion = 4

    def __init__(
        self, inputs: int, maps: int, stride: int, shortcut: str, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        options = {"dtype": dtype, "rngs": rngs}
        outputs = self.expansion * maps
        self.conv1 = _conv(inputs, maps, 1, **options)
        self.bn1 = layers.BatchNorm(maps, **options)
        self.conv2 = _conv(maps, maps, 3, stride, **options)
        self.bn2 = layers.BatchNorm(maps, **options)
        self.conv3 = _conv(maps, outputs, 1, **options)
        self.bn3 = layers.BatchNorm(outputs, **options)
        self.downsample = _projection(inputs, outputs, stride, shortcut, **options)
        self.maps, self.stride = outputs, stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width maps"]:
        """Returns the feature maps of the block."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + _shortcut(x, self.downsample, self.maps, self.stride))


def _projection(
    inputs: int, outputs: int, stride: int, shortcut: str, **options: Any
) -> nnx.List[Any]:
    """The 1x1 convolution and normalization of a shortcut; an empty list if it has none."""
    changes = stride != 1 or inputs != outputs
    if shortcut == "A" or (shortcut == "B" and not changes):
        return nnx.List([])
    convolution = _conv(inputs, outputs, 1, stride, **options)
    return nnx.List([convolution, layers.BatchNorm(outputs, **options)])


def _shortcut(x: Array, projection: nnx.List[Any], maps: int, stride: int) -> Array:
    if projection:
        for layer in projection:
            x = layer(x)
        return x
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, maps - x.shape[3])])


class ResNet(Network):
    """A stem, stages of residual blocks with doubling feature maps, and a linear layer.

    Args:
      image_shape: Height, width and channels of the images.
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      stage_sizes: Number of blocks per stage.
      block: `BasicBlock` or `BottleneckBlock`.
      maps: Feature maps of the stem and of the first stage.
      stem: "imagenet" (a 7x7 convolution and a pool, output stride 4) or "small" (a 3x3
        convolution, output stride 1).
      shortcut: Type of the shortcut, "A", "B" or "C".

    Raises:
      InputError: There is no such stem or shortcut, or the images are smaller than 32x32 with
        "imagenet".
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        stage_sizes: Sequence[int] = (2, 2, 2, 2),
        block: type[BasicBlock | BottleneckBlock] = BasicBlock,
        maps: int = 64,
        stem: str = "imagenet",
        shortcut: str = "B",
    ) -> None:
        check_stem("ResNet", stem, image_shape)
        if shortcut not in _SHORTCUTS:
            raise InputError(
                f"ResNet has no shortcut {shortcut!r}; choose from {', '.join(_SHORTCUTS)}"
            )
        options = {"dtype": dtype, "rngs": rngs}
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = _conv(image_shape[2], maps, size, stride, **options)
        self.bn1 = layers.BatchNorm(maps, **options)
        inputs = maps
        for i, blocks in enumerate(stage_sizes):
            stage: nnx.List[nnx.Module] = nnx.List([])
            for j in range(blocks):
                stride = 2 if i and not j else 1
                stage.append(block(inputs, maps << i, stride, shortcut, **options))
                inputs = (maps << i) * block.expansion
            setattr(self, f"layer{i + 1}", stage)
        self.fc = layers.Linear(inputs, num_classes, **options)
        self.stem, self.depth = stem, len(stage_sizes)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "conv1", "pool1", "layer1" and so on, "average" and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["conv1"] = nnx.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = stages["pool1"] = ops.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i in range(1, self.depth + 1):
            for block in getattr(self, f"layer{i}"):
                x = block(x)
            stages[f"layer{i}"] = x
        x = stages["average"] = x.mean((1, 2))
        stages["logits"] = self.fc(x)
        return stages
