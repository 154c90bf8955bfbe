"""The gradient of a strided convolution's images by a convolution with more channels, for CPUs.

The pixels of each square of strides x strides become the channels of one pixel (space to depth),
and so do the taps of the kernel. The convolution of stride 1 that remains has a kernel smaller by
the strides, and enough channels for oneDNN to be fast where images have few.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops import onednn
from dlc_jax.ops.windows import Pads, out_shape


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether oneDNN can be called, and the kernel is not smaller than the strides."""
    del x_shape, pads
    covers = all(size >= step for size, step in zip(kernel_shape[:2], strides, strict=True))
    return onednn.is_available() and max(strides) > 1 and covers


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, computed in float32."""
    batch, height, width, channels = x_shape
    (top, _), (left, _) = pads
    folded_kernel = _fold_kernel(kernel, strides)
    out = out_shape(x_shape, kernel.shape, strides, pads)
    rows, columns = (out[1 + i] + folded_kernel.shape[i] - 1 for i in (0, 1))
    folded_shape = batch, rows, columns, folded_kernel.shape[2]
    folded = onednn.input_gradient(folded_kernel, grad, folded_shape, (1, 1), ((0, 0), (0, 0)))
    split = folded.reshape(batch, rows, columns, *strides, channels).transpose(0, 1, 3, 2, 4, 5)
    rows, columns = rows * strides[0], columns * strides[1]
    # Pixels at the ends that no window reads have no gradient.
    config = [(-top, top + height - rows, 0), (-left, left + width - columns, 0)]
    pixels = split.reshape(batch, rows, columns, channels)
    return lax.pad(pixels, jnp.zeros((), grad.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _fold_kernel(kernel: Array, strides: Sequence[int]) -> Array:
    taps = [-(-kernel.shape[i] // strides[i]) for i in (0, 1)]
    missing = [(0, taps[i] * strides[i] - kernel.shape[i]) for i in (0, 1)]
    padded = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    split = padded.reshape(taps[0], strides[0], taps[1], strides[1], *kernel.shape[2:])
    folded = split.transpose(0, 2, 1, 3, 4, 5)
    return folded.reshape(*taps, strides[0] * strides[1] * kernel.shape[2], kernel.shape[3])
