"""The network of the fastest training on CIFAR-10 (Jordan 2024, arXiv 2404.00498).

("94% on CIFAR-10 in 3.29 seconds on a single GPU".) What was new was the recipe around it; the
network descends from Page's and Jordan's earlier ones (section 3.1). Its first layer is never
trained (section 3.2): its 2x2 kernels are the principal components of the training images'
patches, scaled to equal variance, each with both signs, so that what follows sees whitened
pixels. Then three blocks of two 3x3 convolutions, pooled after the first of them, with batch
normalisation of which only the biases are trained, and a linear layer on the largest values of
each map. The convolutions begin as the identity where they can (section 3.3).

`widths` are the maps of the three blocks; the paper's are the default.

The epsilon of its batch normalisation, 1e-12, is the paper's listing's. In bfloat16, images with a
flat ground, such as digits, make maps constant, whose gradients it can not keep finite; train
on those in float32.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers
from dlc_jax.nn.buffer import Buffer

_PATCH = 2
# Variances under about this are noise, and are not scaled up to one (section 3.2).
_LEAST_VARIANCE = 5e-4
_SCALE = 1 / 9


class AirbenchBlock(nnx.Module):
    """Two 3x3 convolutions, the first of them pooled by 2x2 windows.

    Args:
      inputs: channels of what it reads.
      maps: its feature maps.
      dtype: what it computes in.
      rngs: where the initial weights come from.
    """

    def __init__(self, inputs: int, maps: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = layers.Conv(inputs, maps, (3, 3), use_bias=False, **options)
        self.conv2 = layers.Conv(maps, maps, (3, 3), use_bias=False, **options)
        for conv in (self.conv1, self.conv2):
            conv.kernel = nnx.Param(identity_first(conv.kernel[...]))
        norm: dict[str, Any] = {"use_scale": False, "momentum": 0.6, "epsilon": 1e-12}
        self.bn1 = layers.BatchNorm(maps, **norm, **options)
        self.bn2 = layers.BatchNorm(maps, **norm, **options)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width maps"]:
        """The block's feature maps."""
        x = layers.gelu(self.bn1(ops.max_pool(self.conv1(x), (2, 2))))
        return layers.gelu(self.bn2(self.conv2(x)))


def identity_first(
    kernel: Float[Array, "height width inputs features"],
) -> Float[Array, "height width inputs features"]:
    """The kernel, whose first features, as many as there are inputs, copy these instead."""
    height, width, inputs, features = kernel.shape
    same = min(inputs, features)
    identity = jnp.zeros((height, width, inputs, same), kernel.dtype)
    identity = identity.at[height // 2, width // 2].set(jnp.eye(inputs, same, dtype=kernel.dtype))
    return kernel.at[..., :same].set(identity)


def whitening_kernel(
    images: Float[Array, "images height width channels"],
) -> Float[Array, "2 2 channels features"]:
    """Kernels that make of 2x2 patches uncorrelated numbers of variance one, and their negatives.

    Args:
      images: normalised images.
    """
    channels = images.shape[3]
    height, width = (size - _PATCH + 1 for size in images.shape[1:3])
    parts = [images[:, i : i + height, j : j + width] for i in range(2) for j in range(2)]
    patches = jnp.stack(parts, 3).reshape(-1, _PATCH**2 * channels)
    covariance = patches.T @ patches / len(patches)
    variances, components = jnp.linalg.eigh(covariance)
    kernels = (components / jnp.sqrt(variances + _LEAST_VARIANCE))[:, ::-1]
    return jnp.concatenate([kernels, -kernels], 1).reshape(_PATCH, _PATCH, channels, -1)


class Airbench(Network):
    """A whitening layer, three blocks, and a linear layer on what is largest in each map.

    Args:
      image_shape: height, width and channels; the paper's are 32x32x3.
      num_classes: the number of logits.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      widths: feature maps of the three blocks.

    Raises:
      InputError: the images are under 25x25, too small for the pools, or there are not three
        positive widths.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        widths: Sequence[int] = (64, 256, 256),
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < 25:
            raise InputError(f"airbench needs images of at least 25x25, not {height}x{width}")
        if len(widths) != 3 or min(widths) < 1:
            raise InputError(f"airbench has three blocks, whose widths can't be {widths}")
        features = 2 * _PATCH**2 * channels
        normal = layers.matrix_initializer(nnx.initializers.lecun_normal(), "fan_in")
        self.whitening = Buffer(
            normal(rngs.params(), (_PATCH, _PATCH, channels, features), jnp.float32)
        )
        self.whitening_bias = nnx.Param(jnp.zeros(features, jnp.float32))
        inputs = [features, *widths]
        self.blocks = nnx.List(
            AirbenchBlock(inputs[i], inputs[i + 1], dtype=dtype, rngs=rngs) for i in range(3)
        )
        self.fc = layers.Linear(widths[-1], num_classes, use_bias=False, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def init_from_data(
        self, images: Float[Array, "images height width channels"], key: PRNGKeyArray
    ) -> "Airbench":
        """The network whose first layer whitens these images."""
        del key
        model = nnx.clone(self)
        model.whitening[...] = whitening_kernel(images)
        return model

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """The whitened patches, the three blocks, the largest values, and the logits."""
        stages: OrderedDict[str, Array] = OrderedDict()
        kernel, bias = (v[...].astype(self.dtype) for v in (self.whitening, self.whitening_bias))
        x = ops.conv2d(jnp.asarray(x, self.dtype), kernel, padding="VALID") + bias
        x = stages["whitened"] = layers.gelu(x)
        for i, block in enumerate(self.blocks, 1):
            x = stages[f"block{i}"] = block(x)
        x = stages["largest"] = x.max((1, 2))
        stages["logits"] = self.fc(x) * np.asarray(_SCALE, self.dtype)
        return stages
