"""The convolution of GoogLeNet and BN-Inception."""

from typing import Any

from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax.nn import layers


class ConvUnit(nnx.Module):
    """Convolution, optional batch normalization, and ReLU.

    Args:
      inputs: Number of input channels.
      outputs: Number of feature maps.
      size: Height and width of the kernel.
      stride: Stride of the convolution.
      batch_norm: Whether to use batch normalization instead of biases.
      init: Initializer of the kernel.
      dtype: Dtype of the computation.
      rngs: Random number generators.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        batch_norm: bool,
        init: Any,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = layers.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=not batch_norm,
            kernel_init=init,
            bias_init=layers.zeros,
            dtype=dtype,
            rngs=rngs,
        )
        norm = layers.BatchNorm(outputs, epsilon=1e-3, dtype=dtype, rngs=rngs)
        self.bn = norm if batch_norm else None

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the feature maps after the rectifier."""
        y = self.conv(x)
        return nnx.relu(y if self.bn is None else self.bn(y))
