"""Convolution and pooling with gradients that are fast on CPUs.

XLA:CPU computes the gradients of these operations slowly, and inside `lax.scan` several times more
slowly again. The functions here have the values of XLA's operations. When they are lowered, they
choose their formulation by platform and shape: ours on CPUs, XLA's own or ours on GPUs, XLA's own
elsewhere. These modules depend only on JAX, NumPy and jaxtyping.

Layouts are those of Flax: images are NHWC (batch, height, width, channels), kernels are HWIO
(height, width, input channels, output channels).
"""

from dlc_jax.ops.convolution import conv2d, conv_general_dilated
from dlc_jax.ops.pooling import avg_pool, max_pool

__all__ = ["avg_pool", "conv2d", "conv_general_dilated", "max_pool"]
