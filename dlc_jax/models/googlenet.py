"""GoogLeNet, which won the ImageNet challenge of 2014 (Szegedy et al. 2015).

("Going deeper with convolutions".) It introduced inception modules, with parallel kernels of
several sizes after 1x1 convolutions that reduce the channels; global average pooling before a
single linear layer, for twelve times fewer parameters than AlexNet; and two auxiliary classifiers
on intermediate maps, whose losses have a weight of 0.3 in training (section 5).

The default is torchvision's network, whose weights can be loaded: convolutions have batch
normalization, and kernels are 3x3 where the paper has 5x5. `original=True` builds table 1 of the
paper: 5x5 kernels, biases, and local response normalization before and after the second
convolution. Auxiliary classifiers use adaptive 4x4 average pooling, as torchvision's.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from dlc_jax import ops
from dlc_jax.models.inception import ConvUnit
from dlc_jax.models.network import Network, check_stem
from dlc_jax.nn import layers
from dlc_jax.nn.losses import cross_entropy
from dlc_jax.typing import AnyArray

_AUXILIARY_WEIGHT = 0.3


class _Sizes(NamedTuple):
    """A row of table 1: feature maps of the branches and of the reductions before two of them."""

    ones: int
    reduced_3: int
    threes: int
    reduced_5: int
    fives: int
    pooled: int


_MODULES = {
    "3a": _Sizes(64, 96, 128, 16, 32, 32),
    "3b": _Sizes(128, 128, 192, 32, 96, 64),
    "4a": _Sizes(192, 96, 208, 16, 48, 64),
    "4b": _Sizes(160, 112, 224, 24, 64, 64),
    "4c": _Sizes(128, 128, 256, 24, 64, 64),
    "4d": _Sizes(112, 144, 288, 32, 64, 64),
    "4e": _Sizes(256, 160, 320, 32, 128, 128),
    "5a": _Sizes(256, 160, 320, 32, 128, 128),
    "5b": _Sizes(384, 192, 384, 48, 128, 128),
}
# Module that each auxiliary classifier is attached to, and its number of feature maps.
_AUXILIARY = {"aux1": ("4a", 512), "aux2": ("4d", 528)}
# Pools after modules: name and window size.
_POOLS = {"3b": ("pool3", 3), "4e": ("pool4", 2)}


class Inception(nnx.Module):
    """Inception module of four parallel branches (figure 2b).

    Args:
      inputs: Number of input channels.
      sizes: Feature maps of the branches.
      large: Height and width of the kernel of the third branch.
      **options: Further arguments of `ConvUnit`.
    """

    def __init__(self, inputs: int, sizes: _Sizes, large: int, **options: Any) -> None:
        self.branch1 = ConvUnit(inputs, sizes.ones, 1, **options)
        reduced = ConvUnit(inputs, sizes.reduced_3, 1, **options)
        self.branch2 = nnx.List([reduced, ConvUnit(sizes.reduced_3, sizes.threes, 3, **options)])
        reduced = ConvUnit(inputs, sizes.reduced_5, 1, **options)
        self.branch3 = nnx.List([reduced, ConvUnit(sizes.reduced_5, sizes.fives, large, **options)])
        self.branch4 = ConvUnit(inputs, sizes.pooled, 1, **options)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height width outputs"]:
        """Returns the concatenated feature maps of the branches."""
        pooled = ops.max_pool(x, (3, 3), (1, 1), "SAME")
        branches = [self.branch1(x)]
        for first, second in (self.branch2, self.branch3):
            branches.append(second(first(x)))
        return jnp.concatenate([*branches, self.branch4(pooled)], 3)


class AuxiliaryClassifier(nnx.Module):
    """Auxiliary classifier on intermediate feature maps (section 5).

    Args:
      inputs: Number of input channels.
      num_classes: Number of classes.
      **options: Further arguments of `ConvUnit`.
    """

    def __init__(self, inputs: int, num_classes: int, **options: Any) -> None:
        linear_options = {name: options[name] for name in ("dtype", "rngs")}
        self.conv = ConvUnit(inputs, 128, 1, **options)
        self.fc1 = layers.Linear(2048, 1024, kernel_init=options["init"], **linear_options)
        self.fc2 = layers.Linear(1024, num_classes, kernel_init=options["init"], **linear_options)
        self.dropout = layers.Dropout(0.7, rngs=options["rngs"])

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        x = self.conv(layers.adaptive_avg_pool(x, (4, 4)))
        return self.fc2(self.dropout(nnx.relu(self.fc1(layers.flatten(x)))))


class GoogLeNet(Network):
    """Three convolutions, nine inception modules, global average pooling, and a linear layer.

    Args:
      image_shape: Height, width and channels of the images; 224x224x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of initial weights and dropout.
      dtype: Dtype of the computation.
      aux_logits: Whether the network has auxiliary classifiers.
      original: Whether to build the network of the paper instead of torchvision's.
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
        aux_logits: bool = False,
        original: bool = False,
        stem: str = "imagenet",
    ) -> None:
        check_stem("GoogLeNet", stem, image_shape)
        init = layers.matrix_initializer(nnx.initializers.truncated_normal(0.01), "fan_in")
        options = {"batch_norm": not original, "init": init, "dtype": dtype, "rngs": rngs}
        channels = image_shape[2]
        if stem == "imagenet":
            self.conv1 = ConvUnit(channels, 64, 7, 2, **options)
            self.conv2 = ConvUnit(64, 64, 1, **options)
            self.conv3 = ConvUnit(64, 192, 3, **options)
        else:
            self.conv1 = ConvUnit(channels, 192, 3, **options)
        inputs = 192
        for name, sizes in _MODULES.items():
            module = Inception(inputs, sizes, 5 if original else 3, **options)
            setattr(self, f"inception{name}", module)
            inputs = sizes.ones + sizes.threes + sizes.fives + sizes.pooled
        if aux_logits:
            for name, (_, maps) in _AUXILIARY.items():
                setattr(self, name, AuxiliaryClassifier(maps, num_classes, **options))
        self.dropout = layers.Dropout(0.4 if original else 0.2, rngs=rngs)
        self.fc = layers.Linear(inputs, num_classes, kernel_init=init, dtype=dtype, rngs=rngs)
        self.aux_logits, self.original, self.stem = aux_logits, original, stem

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the stem, modules and pools, auxiliary logits if any, "average" and "logits"."""
        stages = self._stem(x)
        x = list(stages.values())[-1]
        for name in _MODULES:
            x = stages[f"inception{name}"] = getattr(self, f"inception{name}")(x)
            for auxiliary, (source, _) in _AUXILIARY.items():
                if self.aux_logits and source == name:
                    stages[auxiliary] = getattr(self, auxiliary)(x)
            if name in _POOLS:
                pool, size = _POOLS[name]
                x = stages[pool] = _pool(x, size)
        x = stages["average"] = x.mean((1, 2))
        stages["logits"] = self.fc(self.dropout(x))
        return stages

    def _stem(self, x: Array) -> OrderedDict[str, Array]:
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["conv1"] = self.conv1(x)
        if self.stem == "imagenet":
            normalize = layers.local_response_norm if self.original else lambda x: x
            x = stages["pool1"] = _pool(x, 3)
            x = stages["conv2"] = self.conv2(normalize(x))
            x = stages["conv3"] = self.conv3(x)
            stages["pool2"] = _pool(normalize(x), 3)
        return stages

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the cross-entropy, plus 0.3 times that of each auxiliary classifier."""
        loss = cross_entropy(stages["logits"], labels, label_smoothing)
        for name in _AUXILIARY:
            if name in stages:
                loss += _AUXILIARY_WEIGHT * cross_entropy(stages[name], labels, label_smoothing)
        return loss

    def torch_names(self) -> dict[str, str]:
        """Returns names of fourth branches, which start with a pool in torchvision."""
        branches = [f"inception{name}.branch4" for name in _MODULES]
        return {branch: f"{branch}.1" for branch in branches}


def _pool(x: Array, size: int) -> Array:
    window, strides = (size, size), (2, 2)
    return ops.max_pool(x, window, strides, layers.ceil_mode_padding(x.shape, window, strides))
