"""Convolution and pooling with gradients that are fast on CPUs.

XLA:CPU computes many of these operations slowly, above all gradients. The functions here have the
values of XLA's operations. When they are lowered, they choose their formulation by platform and
shape: the one measured to be fastest on CPUs, XLA's own or ours on GPUs, XLA's own elsewhere. These
modules depend only on JAX, NumPy and jaxtyping.

Layouts are those of Flax: images are NHWC (batch, height, width, channels), kernels are HWIO
(height, width, input channels, output channels).
"""

from dlc_jax.ops.convolution import conv2d, conv_general_dilated, conv_transpose
from dlc_jax.ops.pooling import avg_pool, max_pool

__all__ = ["avg_pool", "conv2d", "conv_general_dilated", "conv_transpose", "max_pool"]
