"""Convolution as one product of matrices over patches, for small problems on a GPU.

There a convolution of a small batch takes several kernels, for layouts and for sums in parts,
each of which costs microseconds; and convolutions of many networks at once (`jax.vmap`) become
grouped ones, which cuDNN runs group by group. Products of matrices have neither cost.
"""

import math
from collections.abc import Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.patches import out_shape
from dlc_jax.ops.windows import Pads

# The patches of a network's batch, in bytes: of a single network, and of each of several.
_MOST, _MOST_EACH = 8 * 2**20, 64 * 2**20


def pays(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    *,
    itemsize: int,
    apart: bool,
) -> bool:
    """Whether this is faster than XLA's own convolution on a GPU.

    Args:
      x_shape: of the images of one network.
      kernel_shape: likewise.
      strides: along height and width.
      pads: likewise.
      itemsize: bytes of a number.
      apart: whether there are several networks, each with images and a kernel of its own.
    """
    out = out_shape(x_shape, kernel_shape, strides, pads)
    size = math.prod(out[:3]) * math.prod(kernel_shape[:3]) * itemsize
    return size <= (_MOST_EACH if apart else _MOST)


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """Patches times the kernel."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    rows = kernel.reshape(-1, kernel.shape[3])
    return (_patches(x, kernel.shape, out, strides, pads) @ rows).reshape(out)


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient of each patch, added up where patches overlap."""
    height, width, channels, features = kernel.shape
    columns = grad.reshape(-1, features) @ kernel.reshape(-1, features).T
    columns = columns.reshape(*grad.shape[:3], height, width, channels)
    total = jnp.zeros(x_shape, grad.dtype)
    zero = jnp.zeros((), grad.dtype)
    for tap in product(range(height), range(width)):
        config = [(0, 0, 0)] * 4
        for axis in (0, 1):
            # Where the first and the last window read with this tap, in unpadded pixels.
            first = tap[axis] - pads[axis][0]
            last = first + (grad.shape[1 + axis] - 1) * strides[axis]
            config[1 + axis] = (first, x_shape[1 + axis] - 1 - last, strides[axis] - 1)
        total = total + lax.pad(columns[:, :, :, tap[0], tap[1]], zero, config)
    # Or XLA would add them up again for each of several readers.
    return lax.optimization_barrier(total)


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The patches, transposed, times the gradient."""
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
    """What each output position reads, [positions, height * width * channels]."""
    zero = jnp.zeros((), x.dtype)
    padded = lax.pad(x, zero, [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    rows, columns = (
        np.arange(out[1 + axis])[:, None] * strides[axis] + np.arange(kernel_shape[axis])
        for axis in (0, 1)
    )
    # One gather: of many slices XLA makes a kernel with as many branches.
    patches = padded[:, rows[:, None, :, None], columns[None, :, None, :]]
    return patches.reshape(math.prod(out[:3]), -1)
