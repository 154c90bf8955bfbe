"""Convolution and pooling whose gradients are fast on a CPU.

XLA:CPU computes these operations' values quickly and their gradients slowly, and inside
`lax.scan` several times more slowly again. Each function here computes XLA's values and
chooses the formulation of itself and of its gradient when it is lowered: ours on a CPU,
XLA's own elsewhere. These modules need nothing but JAX.

Layouts are Flax's: images are NHWC (batch, height, width, channels), kernels are HWIO
(height, width, input channels, output channels).
"""

from dlc_jax.ops.convolution import conv2d, conv_general_dilated
from dlc_jax.ops.pooling import avg_pool, max_pool

__all__ = ["avg_pool", "conv2d", "conv_general_dilated", "max_pool"]
