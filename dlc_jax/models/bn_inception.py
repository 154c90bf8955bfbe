"""The network for which batch normalisation was invented (Ioffe and Szegedy 2015).

("Batch normalization: accelerating deep network training by reducing internal covariate
shift", figure 5.) What was new: activations normalised by the statistics of their mini-batch,
with which a network learns fourteen times faster, at learning rates at which it diverged.

A GoogLeNet in which two 3x3 convolutions take the place of each 5x5, in which the pools between
stages are part of modules of stride 2, and whose pools within modules are averages, but for
the last. The stem's 7x7 convolution is an ordinary one; the paper's was separable, of depth 8.
Averages count pixels beyond the border as zeros.
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
    """A row of figure 5. Modules of stride 2 have no maps of 1x1 kernels and of the pool."""

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
    """Four branches side by side, or three, of stride 2.

    Args:
      inputs: channels of what it reads.
      sizes: maps of the branches.
      **options: of its `ConvUnit`s.
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
        """The branches' maps, one after the other."""
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
    """Three convolutions, ten inception modules, and a classifier on their averaged maps.

    Args:
      image_shape: height, width and channels; the paper's are 224x224x3.
      num_classes: the number of logits.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      stem: "imagenet" (three convolutions and two pools, which leave an eighth of height and
        width) or "small" (one 3x3 convolution of 192 maps, which leaves all of it).

    Raises:
      InputError: the images are under 32x32 with the stem for ImageNet, or there is no such
        stem.
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
        """The stem, the modules, the average of the last maps, and the logits."""
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
