"""Convolution as matrix products over patches (im2col), for CPUs.

Optimization barriers keep XLA from fusing the gathering of patches into other operations before
it has chosen which products its fast library computes.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.onednn import matmul
from dlc_jax.ops.windows import Pads, map_chunks, out_shape, slices

# Patches up to the first size are gathered for the whole batch. Larger ones are gathered in
# chunks of about the second size, which stay in the cache.
_MAX_BATCH_BYTES, _CHUNK_BYTES = 16 * 2**20, 2 * 2**20
# Largest size of the patches of an image.
_MAX_IMAGE_SIZE = 2**24

# With fewer channels, patches are gathered a few bytes at a time. Then their transpose is
# gathered directly, and several output columns share a patch.
_MIN_CHANNELS = 8

# A product with this many columns runs at full rate.
_FULL_RATE_COLUMNS = 128


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this algorithm computes convolutions of these shapes, without too much memory."""
    out = out_shape(x_shape, kernel_shape, strides, pads)
    return math.prod(out[1:3]) * math.prod(kernel_shape[:3]) <= _MAX_IMAGE_SIZE


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution as a product, patches @ kernel, in chunks of the batch."""
    out = out_shape(x.shape, kernel.shape, strides, pads)

    def on_chunk(x: Array) -> tuple[Array, None]:
        return _convolve(x, kernel, strides, pads), None

    y, _ = map_chunks(on_chunk, _images_per_chunk(kernel.shape, out, x.dtype.itemsize), x)
    return y


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, as a product."""

    def on_chunk(grad: Array) -> tuple[Array, None]:
        return _grad_of_images(x_shape, kernel, grad, strides, pads), None

    max_images = _images_per_chunk(kernel.shape, grad.shape, grad.dtype.itemsize)
    grad_x, _ = map_chunks(on_chunk, max_images, grad)
    return grad_x


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, as a product."""

    def on_chunk(x: Array, grad: Array) -> tuple[None, Array]:
        return None, _grad_of_kernel(x, kernel_shape, grad, strides, pads)

    max_images = _images_per_chunk(kernel_shape, grad.shape, x.dtype.itemsize)
    _, grad_kernel = map_chunks(on_chunk, max_images, x, grad)
    return grad_kernel.astype(x.dtype)


def _bytes_per_image(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    return math.prod(out[1:3]) * math.prod(kernel_shape[:3]) * itemsize


def _images_per_chunk(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    size = _bytes_per_image(kernel_shape, out, itemsize)
    return out[0] if out[0] * size <= _MAX_BATCH_BYTES else max(1, _CHUNK_BYTES // size)


def _convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    out = out_shape(x.shape, kernel.shape, strides, pads)
    shared = _columns_per_patch(kernel.shape, out, strides)
    patches = _patches(x, kernel.shape, out, strides, pads, shared)
    product = lax.optimization_barrier(matmul(patches, _widened(kernel, shared)))
    return product.reshape(out)


def _grad_of_kernel(
    x: Array, kernel_shape: Sequence[int], grad: Array, strides: Sequence[int], pads: Pads
) -> Array:
    """The product of taps and features, summed over positions."""
    flat_grad = lax.optimization_barrier(grad).reshape(-1, kernel_shape[3])
    if kernel_shape[2] < _MIN_CHANNELS:
        taps = _taps(x, kernel_shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(matmul(taps, flat_grad))
    else:
        patches = _patches(x, kernel_shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(matmul(flat_grad, patches, transpose_a=True)).T
    return grad_kernel.reshape(kernel_shape)


def _columns_per_patch(
    kernel_shape: Sequence[int], out: Sequence[int], strides: Sequence[int]
) -> int:
    """Number of neighbouring output columns that share a patch, for a wider product."""
    if kernel_shape[2] >= _MIN_CHANNELS or strides[1] != 1:
        return 1
    max_count = max(1, _FULL_RATE_COLUMNS // kernel_shape[3])
    return max(count for count in (1, 2, 4) if count <= max_count and out[2] % count == 0)


def _widened(kernel: Array, shared: int) -> Array:
    """Copies of the kernel for the `shared` columns, each shifted right by one column.

    [kernel_height * (kernel_width + shared - 1) * channels, shared * features]
    """
    shifted = [
        jnp.pad(kernel, ((0, 0), (column, shared - 1 - column), (0, 0), (0, 0)))
        for column in range(shared)
    ]
    return jnp.stack(shifted, 3).reshape(-1, shared * kernel.shape[3])


def _patches(
    x: Array,
    kernel_shape: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    shared: int = 1,
) -> Array:
    """Patches that `shared` output columns read, [positions, height * width * channels].

    Gathering along the width first, then along the height, moves far fewer bytes than slicing
    each pixel of a patch.
    """
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    width = kernel_shape[1] + shared - 1
    if shared == 1:
        rows = jnp.concatenate(slices(padded, 2, width, out[2], strides[1]), axis=3)
    else:
        starts = range(0, out[2], shared)
        rows = jnp.stack([padded[:, :, start : start + width] for start in starts], 2)
        rows = rows.reshape(*rows.shape[:3], -1)
    rows = lax.optimization_barrier(rows)
    patches = jnp.concatenate(slices(rows, 1, kernel_shape[0], out[1], strides[0]), axis=3)
    return lax.optimization_barrier(patches).reshape(-1, patches.shape[3])


def _taps(
    x: Array, kernel_shape: Sequence[int], out: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The transpose of `_patches`, gathered directly in rows of pixels."""
    channels_first = jnp.pad(x, ((0, 0), *pads, (0, 0))).transpose(3, 0, 1, 2)
    rows = jnp.concatenate(slices(channels_first, 3, kernel_shape[1], out[2], strides[1]))
    rows = lax.optimization_barrier(rows)
    taps = jnp.concatenate(slices(rows, 2, kernel_shape[0], out[1], strides[0]))
    return lax.optimization_barrier(taps).reshape(math.prod(kernel_shape[:3]), -1)


def _grad_of_images(
    x_shape: Sequence[int], kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> Array:
    """The gradients with respect to the patches, summed where these overlap."""
    kernel_height, kernel_width, channels, features = kernel.shape
    flat_grad = lax.optimization_barrier(grad).reshape(-1, features)
    grad_patches = lax.optimization_barrier(
        matmul(flat_grad, kernel.reshape(-1, features), transpose_b=True)
    )
    (top, bottom), (left, right) = pads
    height, width = x_shape[1:3]
    grad_rows = transpose_slices(
        grad_patches.reshape(*grad.shape[:3], kernel_height, kernel_width * channels),
        axis=1,
        size=top + height + bottom,
        stride=strides[0],
    )
    grad_rows = lax.optimization_barrier(grad_rows)
    grad_padded = transpose_slices(
        grad_rows.reshape(*grad_rows.shape[:3], kernel_width, channels),
        axis=2,
        size=left + width + right,
        stride=strides[1],
    )
    return grad_padded[:, top : top + height, left : left + width]


def transpose_slices(x: Array, axis: int, size: int, stride: int) -> Array:
    """The transpose of `slices`: adds up the taps, which are axis 3 of `x`, at their pixels."""
    taps, count = x.shape[3], -(-size // stride)
    # Taps whose distance is a multiple of the stride fall on the same pixels.
    phases = [jnp.zeros((), x.dtype)] * stride
    for tap in range(taps):
        piece = x[:, :, :, tap]
        config = [(0, 0, 0)] * piece.ndim
        before = tap // stride
        config[axis] = (before, count - before - piece.shape[axis], 0)
        phases[tap % stride] += lax.pad(piece, jnp.zeros((), x.dtype), config)
    shape = max(phase.shape for phase in phases)
    pixels = jnp.stack([jnp.broadcast_to(phase, shape) for phase in phases], axis + 1)
    pixels = pixels.reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return lax.slice_in_dim(pixels, 0, size, axis=axis)
