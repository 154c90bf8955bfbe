"""GoogLeNet, which won the ImageNet challenge of 2014 (Szegedy et al. 2015).

("Going deeper with convolutions".) What was new: modules in which kernels of several sizes read
the same maps side by side, after 1x1 convolutions have reduced these; twelve times fewer
parameters than AlexNet, the classifier being one layer on averaged maps; and two auxiliary
classifiers, half-way, whose losses count 0.3 each in training (section 5).

The default is torchvision's network, whose published weights it takes: each convolution is
batch-normalised, and where the paper has 5x5 kernels there are 3x3 ones (an oversight that was
kept since weights had been trained with it). `original=True` builds the paper's table 1 instead:
5x5 kernels, biases, and responses normalised over channels before and after the second
convolution. The auxiliary classifiers average over 4x4 windows spread evenly, as torchvision's.
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
    """A row of table 1: maps of the four branches, and of what reduces the input before two."""

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
# What each auxiliary classifier reads: the name of a module, and its maps.
_AUXILIARY = {"aux1": ("4a", 512), "aux2": ("4d", 528)}
# After which modules the maps are pooled, by windows of which size.
_POOLS = {"3b": ("pool3", 3), "4e": ("pool4", 2)}


class Inception(nnx.Module):
    """Four branches side by side (figure 2b).

    Args:
      inputs: channels of what it reads.
      sizes: maps of the branches.
      large: height and width of the third branch's kernels in pixels.
      **options: of its `ConvUnit`s.
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
        """The branches' maps, one after the other."""
        pooled = ops.max_pool(x, (3, 3), (1, 1), "SAME")
        branches = [self.branch1(x)]
        for first, second in (self.branch2, self.branch3):
            branches.append(second(first(x)))
        return jnp.concatenate([*branches, self.branch4(pooled)], 3)


class AuxiliaryClassifier(nnx.Module):
    """A classifier on maps half-way through the network (section 5).

    Args:
      inputs: channels of what it reads.
      num_classes: the number of logits.
      **options: of its `ConvUnit`.
    """

    def __init__(self, inputs: int, num_classes: int, **options: Any) -> None:
        of_linear = {name: options[name] for name in ("dtype", "rngs")}
        self.conv = ConvUnit(inputs, 128, 1, **options)
        self.fc1 = layers.Linear(2048, 1024, kernel_init=options["init"], **of_linear)
        self.fc2 = layers.Linear(1024, num_classes, kernel_init=options["init"], **of_linear)
        self.dropout = layers.Dropout(0.7, rngs=options["rngs"])

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch classes"]:
        """The logits."""
        x = self.conv(layers.adaptive_avg_pool(x, (4, 4)))
        return self.fc2(self.dropout(nnx.relu(self.fc1(layers.flatten(x)))))


class GoogLeNet(Network):
    """Three convolutions, nine inception modules, and a classifier on their averaged maps.

    Args:
      image_shape: height, width and channels; the paper's are 224x224x3.
      num_classes: the number of logits.
      rngs: where initial weights and dropout come from.
      dtype: what it computes in.
      auxiliary: whether it has the auxiliary classifiers.
      original: the paper's network instead of torchvision's.
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
        auxiliary: bool = False,
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
        if auxiliary:
            for name, (_, maps) in _AUXILIARY.items():
                setattr(self, name, AuxiliaryClassifier(maps, num_classes, **options))
        self.dropout = layers.Dropout(0.4 if original else 0.2, rngs=rngs)
        self.fc = layers.Linear(inputs, num_classes, kernel_init=init, dtype=dtype, rngs=rngs)
        self.auxiliary, self.original, self.stem = auxiliary, original, stem

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """The stem, the modules and pools, the auxiliary logits if any, and the logits."""
        stages = self._stem(x)
        x = list(stages.values())[-1]
        for name in _MODULES:
            x = stages[f"inception{name}"] = getattr(self, f"inception{name}")(x)
            for auxiliary, (source, _) in _AUXILIARY.items():
                if self.auxiliary and source == name:
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
            normalise = layers.local_response_norm if self.original else lambda x: x
            x = stages["pool1"] = _pool(x, 3)
            x = stages["conv2"] = self.conv2(normalise(x))
            x = stages["conv3"] = self.conv3(x)
            stages["pool2"] = _pool(normalise(x), 3)
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
        """In torchvision the fourth branch begins with a pool."""
        branches = [f"inception{name}.branch4" for name in _MODULES]
        return {branch: f"{branch}.1" for branch in branches}


def _pool(x: Array, size: int) -> Array:
    window, strides = (size, size), (2, 2)
    return ops.max_pool(x, window, strides, layers.ceil_mode_padding(x.shape, window, strides))
