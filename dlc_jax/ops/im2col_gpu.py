"""Convolution as a matrix product over patches (im2col), for small problems on GPUs.

cuDNN launches several GPU kernels per convolution, which dominate for small batches, and computes
the grouped convolutions of `jax.vmap` over several networks group by group. Matrix products avoid
both costs.
"""

import math
from collections.abc import Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.windows import Pads, out_shape

# Size of the patches of a batch: of a single network, and of each of several networks.
_MAX_BYTES, _MAX_BYTES_EACH = 8 * 2**20, 64 * 2**20


def is_fastest(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    *,
    itemsize: int,
    jointly_mapped: bool,
) -> bool:
    """Whether this formulation is faster than XLA's own on a GPU.

    Args:
      x_shape: Shape of the images of one network.
      kernel_shape: Shape of the kernel of one network.
      strides: Strides along height and width.
      pads: Padding of height and width.
      itemsize: Bytes per number.
      jointly_mapped: Whether there are several networks, with their own images and kernels.
    """
    out = out_shape(x_shape, kernel_shape, strides, pads)
    size = math.prod(out[:3]) * math.prod(kernel_shape[:3]) * itemsize
    return size <= (_MAX_BYTES_EACH if jointly_mapped else _MAX_BYTES)


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution as a product, patches @ kernel."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    rows = kernel.reshape(-1, kernel.shape[3])
    return (_patches(x, kernel.shape, out, strides, pads) @ rows).reshape(out)


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images: those of the patches, summed where they overlap."""
    height, width, channels, features = kernel.shape
    columns = grad.reshape(-1, features) @ kernel.reshape(-1, features).T
    columns = columns.reshape(*grad.shape[:3], height, width, channels)
    total = jnp.zeros(x_shape, grad.dtype)
    zero = jnp.zeros((), grad.dtype)
    for tap in product(range(height), range(width)):
        config = [(0, 0, 0)] * 4
        for axis in (0, 1):
            # The pixels that the first and the last window read with this tap.
            first = tap[axis] - pads[axis][0]
            last = first + (grad.shape[1 + axis] - 1) * strides[axis]
            config[1 + axis] = (first, x_shape[1 + axis] - 1 - last, strides[axis] - 1)
        total = total + lax.pad(columns[:, :, :, tap[0], tap[1]], zero, config)
    # Without the barrier, XLA repeats the sum for each use.
    return lax.optimization_barrier(total)


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, patches.T @ grad."""
    patches = _patches(x, kernel_shape, grad.shape, strides, pads)
    return (patches.T @ grad.reshape(-1, kernel_shape[3])).reshape(tuple(kernel_shape))


def gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    """Both gradients."""
    grad_x = input_gradient(kernel, grad, x.shape, strides, pads)
    return grad_x, kernel_gradient(x, grad, kernel.shape, strides, pads)


def _patches(
    x: Array,
    kernel_shape: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
) -> Array:
    """Patches that the output positions read, [positions, height * width * channels]."""
    zero = jnp.zeros((), x.dtype)
    padded = lax.pad(x, zero, [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    rows, columns = (
        np.arange(out[1 + axis])[:, None] * strides[axis] + np.arange(kernel_shape[axis])
        for axis in (0, 1)
    )
    # A single gather: XLA compiles many slices into a GPU kernel with as many branches.
    patches = padded[:, rows[:, None, :, None], columns[None, :, None, :]]
    return patches.reshape(math.prod(out[:3]), -1)
