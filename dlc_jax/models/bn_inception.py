"""BN-Inception, the network that introduced batch normalization (Ioffe and Szegedy 2015).

("Batch normalization: accelerating deep network training by reducing internal covariate shift",
figure 5.) Normalizing activations by the statistics of the mini-batch allowed higher learning
rates, at which the network trained in fourteen times fewer steps.

It is a GoogLeNet with two 3x3 convolutions in place of each 5x5, modules of stride 2 in place of
pools between stages, and average pooling in the modules except the last. The first convolution is
an ordinary one, where the paper's is separable. Average pooling counts padding as zeros.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax import ops
from dlc_jax.models.inception import ConvUnit
from dlc_jax.models.network import Network, check_stem
from dlc_jax.nn import layers


class _Sizes(NamedTuple):
    """A row of figure 5: feature maps of the branches. Modules of stride 2 lack two of them."""

    ones: int
    reduced: int
    threes: int
    reduced_twice: int
    threes_twice: int
    pooled: int
    pool: str = "average"


_MODULES = {
    "3a": _Sizes(64, 64, 64, 64, 96, 32),
    "3b": _Sizes(64, 64, 96, 64, 96, 64),
    "3c": _Sizes(0, 128, 160, 64, 96, 0, "max"),
    "4a": _Sizes(224, 64, 96, 96, 128, 128),
    "4b": _Sizes(192, 96, 128, 96, 128, 128),
    "4c": _Sizes(160, 128, 160, 128, 160, 96),
    "4d": _Sizes(96, 128, 192, 160, 192, 96),
    "4e": _Sizes(0, 128, 192, 192, 256, 0, "max"),
    "5a": _Sizes(352, 192, 320, 160, 224, 128),
    "5b": _Sizes(352, 192, 320, 192, 224, 128, "max"),
}


class Inception(nnx.Module):
    """Inception module of four parallel branches, or of three with stride 2.

    Args:
      inputs: Number of input channels.
      sizes: Feature maps of the branches.
      **options: Further arguments of `ConvUnit`.
    """

    def __init__(self, inputs: int, sizes: _Sizes, **options: Any) -> None:
        stride = 1 if sizes.ones else 2
        self.ones = ConvUnit(inputs, sizes.ones, 1, **options) if sizes.ones else None
        self.threes = nnx.List(
            [
                ConvUnit(inputs, sizes.reduced, 1, **options),
                ConvUnit(sizes.reduced, sizes.threes, 3, stride, **options),
            ]
        )
        self.threes_twice = nnx.List(
            [
                ConvUnit(inputs, sizes.reduced_twice, 1, **options),
                ConvUnit(sizes.reduced_twice, sizes.threes_twice, 3, **options),
                ConvUnit(sizes.threes_twice, sizes.threes_twice, 3, stride, **options),
            ]
        )
        self.pooled = ConvUnit(inputs, sizes.pooled, 1, **options) if sizes.pooled else None
        self.pool, self.stride = sizes.pool, stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the concatenated feature maps of the branches."""
        branches = [] if self.ones is None else [self.ones(x)]
        for units in (self.threes, self.threes_twice):
            y = x
            for unit in units:
                y = unit(y)
            branches.append(y)
        pool = ops.avg_pool if self.pool == "average" else ops.max_pool
        pooled = pool(x, (3, 3), (self.stride, self.stride), ((1, 1), (1, 1)))
        branches.append(pooled if self.pooled is None else self.pooled(pooled))
        return jnp.concatenate(branches, 3)


class BNInception(Network):
    """Three convolutions, ten inception modules, global average pooling, and a linear layer.

    Args:
      image_shape: Height, width and channels of the images; 224x224x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      stem: "imagenet" (three convolutions and two pools, output stride 8) or "small" (one 3x3
        convolution of 192 maps, output stride 1).

    Raises:
      InputError: There is no such stem, or the images are smaller than 32x32 with "imagenet".
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        stem: str = "imagenet",
    ) -> None:
        check_stem("BN-Inception", stem, image_shape)
        options: dict[str, Any] = {
            "batch_norm": True,
            "init": layers.he_normal,
            "dtype": dtype,
            "rngs": rngs,
        }
        channels = image_shape[2]
        if stem == "imagenet":
            self.conv1 = ConvUnit(channels, 64, 7, 2, **options)
            self.conv2 = ConvUnit(64, 64, 1, **options)
            self.conv3 = ConvUnit(64, 192, 3, **options)
        else:
            self.conv1 = ConvUnit(channels, 192, 3, **options)
        inputs = 192
        for name, sizes in _MODULES.items():
            setattr(self, f"inception{name}", Inception(inputs, sizes, **options))
            inputs = sizes.ones + sizes.threes + sizes.threes_twice + (sizes.pooled or inputs)
        self.fc = layers.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)
        self.stem = stem

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the stem, the modules, "average" and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        pads = ((1, 1), (1, 1))
        x = stages["conv1"] = self.conv1(x)
        if self.stem == "imagenet":
            x = stages["pool1"] = ops.max_pool(x, (3, 3), (2, 2), pads)
            x = stages["conv2"] = self.conv2(x)
            x = stages["conv3"] = self.conv3(x)
            x = stages["pool2"] = ops.max_pool(x, (3, 3), (2, 2), pads)
        for name in _MODULES:
            x = stages[f"inception{name}"] = getattr(self, f"inception{name}")(x)
        x = stages["average"] = x.mean((1, 2))
        stages["logits"] = self.fc(x)
        return stages
