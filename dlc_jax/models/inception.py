"""What GoogLeNet and its successor with batch normalisation share."""

from typing import Any

from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax.nn import layers


class ConvUnit(nnx.Module):
    """A convolution, batch normalisation where it is wanted, and a rectifier.

    Args:
      inputs: channels of what it reads.
      outputs: its feature maps.
      size: height and width of its kernel in pixels.
      stride: by how many pixels it moves.
      batch_norm: whether it is normalised, instead of having biases.
      init: where its initial kernel comes from.
      dtype: what it computes in.
      rngs: where its random numbers come from.
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
        """The feature maps, rectified."""
        y = self.conv(x)
        return nnx.relu(y if self.bn is None else self.bn(y))
