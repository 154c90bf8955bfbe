"""Residual networks, which won the ImageNet challenge of 2015 (He, Zhang, Ren and Sun 2015).

What was new: a block of layers learns what to add to its input instead of what to replace it
by, so that a hundred layers and more train as easily as twenty. Where a block changes the
shape of its input, the shortcut around it (section 4.1, "Identity vs. projection shortcuts") is
A, every second pixel with zeros for the new maps; B, a 1x1 convolution; or C, a 1x1 convolution
around every block.

The ImageNet networks are torchvision's, whose published weights they take: shortcut B, and in
bottleneck blocks the stride in the 3x3 convolution, where the paper has it in the 1x1 before
(4.1 billion multiply-adds for ResNet-50 instead of 3.8). The CIFAR-10 family (section 4.2) is
the paper's: three stages of 16, 32 and 64 maps, shortcut A. `stem="small"` begins with a single
3x3 convolution, which keeps images of 28x28 and 32x32 at their size.
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
    """Two 3x3 convolutions, with a shortcut around them (figure 5, left).

    Args:
      inputs: channels of what it reads.
      maps: its feature maps.
      stride: by how many pixels the first convolution moves.
      shortcut: "A", "B" or "C".
      dtype: what it computes in.
      rngs: where the initial weights come from.
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
        """The block's feature maps, rectified."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + _shortcut(x, self.downsample, self.maps, self.stride))


class BottleneckBlock(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, with a shortcut around them (figure 5, right).

    Args:
      inputs: channels of what it reads.
      maps: feature maps of the 3x3 convolution; the block returns four times as many.
      stride: by how many pixels the 3x3 convolution moves.
      shortcut: "A", "B" or "C".
      dtype: what it computes in.
      rngs: where the initial weights come from.
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
        """The block's feature maps, rectified."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + _shortcut(x, self.downsample, self.maps, self.stride))


def _projection(
    inputs: int, outputs: int, stride: int, shortcut: str, **options: Any
) -> nnx.List[Any]:
    """The 1x1 convolution of a shortcut and its normalisation, or nothing."""
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
    """A stem, stages of residual blocks, each with twice the maps of the last, and a classifier.

    Args:
      image_shape: height, width and channels.
      num_classes: the number of logits.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      stage_sizes: how many blocks each stage has.
      block: `BasicBlock` or `BottleneckBlock`.
      maps: feature maps of the stem and of the first stage.
      stem: "imagenet" (a 7x7 convolution and a pool, which leave a quarter of height and
        width) or "small" (a 3x3 convolution, which leaves all of it).
      shortcut: "A", "B" or "C"; see above.

    Raises:
      InputError: there is no such stem or shortcut, or the images are under 32x32 with the
        stem for ImageNet.
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
        """The stem, each stage, the average of its maps, and the logits."""
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
