"""The network of airbench94, for fast training on CIFAR-10 (Jordan 2024, arXiv 2404.00498).

("94% on CIFAR-10 in 3.29 seconds on a single GPU".) The first layer whitens 2x2 patches and is not
trained (section 3.2): its kernels are the scaled principal components of patches of the training
images, with both signs (see `Airbench.init_from_data`). Three blocks of two 3x3 convolutions
follow, then global max-pooling and a linear layer. Batch normalization has biases, but no scales.
Convolutions are initialized as the identity where possible (section 3.3).

Batch normalization has the epsilon of the paper's listing, 1e-12. In bfloat16, images with a
constant background, such as digits, give constant feature maps, and gradients that are not finite;
train on such images in float32.
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
# Added to the variances, so that noise is not scaled up to unit variance (section 3.2).
_VARIANCE_EPSILON = 5e-4
_SCALE = 1 / 9


class AirbenchBlock(nnx.Module):
    """Two 3x3 convolutions, the first with 2x2 max-pooling.

    Args:
      inputs: Number of input channels.
      maps: Number of feature maps.
      dtype: Dtype of the computation.
      rngs: Random number generators of the initial weights.
    """

    def __init__(self, inputs: int, maps: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = layers.Conv(inputs, maps, (3, 3), use_bias=False, **options)
        self.conv2 = layers.Conv(maps, maps, (3, 3), use_bias=False, **options)
        for conv in (self.conv1, self.conv2):
            conv.kernel = nnx.Param(identity_init(conv.kernel[...]))
        norm: dict[str, Any] = {"use_scale": False, "momentum": 0.6, "epsilon": 1e-12}
        self.bn1 = layers.BatchNorm(maps, **norm, **options)
        self.bn2 = layers.BatchNorm(maps, **norm, **options)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width maps"]:
        """Returns the feature maps of the block."""
        x = layers.gelu(self.bn1(ops.max_pool(self.conv1(x), (2, 2))))
        return layers.gelu(self.bn2(self.conv2(x)))


def identity_init(
    kernel: Float[Array, "height width inputs features"],
) -> Float[Array, "height width inputs features"]:
    """Replaces the kernels of the first features, one per input, by the identity.

    Args:
      kernel: Initial kernel of a convolution.

    Example:
      >>> identity_init(jnp.zeros((3, 3, 1, 2)))[1, 1]
      Array([[1., 0.]], dtype=float32)
    """
    height, width, inputs, features = kernel.shape
    count = min(inputs, features)
    identity = jnp.zeros((height, width, inputs, count), kernel.dtype)
    identity = identity.at[height // 2, width // 2].set(jnp.eye(inputs, count, dtype=kernel.dtype))
    return kernel.at[..., :count].set(identity)


def whitening_kernel(
    images: Float[Array, "images height width channels"],
) -> Float[Array, "2 2 channels features"]:
    """Returns kernels that whiten 2x2 patches, and their negatives.

    Args:
      images: Normalized images.

    Returns:
      Principal components of the patches, scaled to unit variance, the largest first.

    Example:
      >>> whitening_kernel(jnp.ones((1, 4, 4, 3))).shape
      (2, 2, 3, 24)
    """
    channels = images.shape[3]
    height, width = (size - _PATCH + 1 for size in images.shape[1:3])
    parts = [images[:, i : i + height, j : j + width] for i in range(2) for j in range(2)]
    patches = jnp.stack(parts, 3).reshape(-1, _PATCH**2 * channels)
    covariance = patches.T @ patches / len(patches)
    variances, components = jnp.linalg.eigh(covariance)
    kernels = (components / jnp.sqrt(variances + _VARIANCE_EPSILON))[:, ::-1]
    return jnp.concatenate([kernels, -kernels], 1).reshape(_PATCH, _PATCH, channels, -1)


class Airbench(Network):
    """A whitening layer, three blocks, global max-pooling, and a linear layer.

    Args:
      image_shape: Height, width and channels of the images; 32x32x3 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      widths: Feature maps of the three blocks.

    Raises:
      InputError: The images are smaller than 25x25, or there are not three positive widths.
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
            raise InputError(f"airbench needs three positive widths, not {widths}")
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
        """Returns the network with a first layer that whitens these images."""
        del key
        model = nnx.clone(self)
        model.whitening[...] = whitening_kernel(images)
        return model

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "whitened", "block1" to "block3", "largest" (global maxima), and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        kernel, bias = (v[...].astype(self.dtype) for v in (self.whitening, self.whitening_bias))
        x = ops.conv2d(jnp.asarray(x, self.dtype), kernel, padding="VALID") + bias
        x = stages["whitened"] = layers.gelu(x)
        for i, block in enumerate(self.blocks, 1):
            x = stages[f"block{i}"] = block(x)
        x = stages["largest"] = x.max((1, 2))
        stages["logits"] = self.fc(x) * np.asarray(_SCALE, self.dtype)
        return stages
