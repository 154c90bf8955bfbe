"""Convolution of stride 1 as products over rows of taps, for few channels on CPUs.

Only the taps along the width are gathered. One product computes what each row of an image adds
to all rows of the result that read it. This copies less than im2col, which gathers all taps of a
patch, and makes products wider.
"""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.im2col import out_shape
from dlc_jax.ops.windows import Pads, map_chunks, slices

# Size of a chunk's gathered rows and products, which stay in the cache.
_CHUNK_BYTES = 4 * 2**20
_UNROLL = 12


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this algorithm computes convolutions of these shapes, without too much memory."""
    within = all(max(pad) < taps for pad, taps in zip(pads, kernel_shape[:2], strict=True))
    del x_shape
    return tuple(strides) == (1, 1) and math.prod(kernel_shape[:2]) > 1 and within


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution."""
    del strides
    out = out_shape(x.shape, kernel.shape, (1, 1), pads)
    height, width, channels, features = kernel.shape
    wide = kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features)

    def on_chunk(x: Array) -> tuple[Array, None]:
        rows = _taps_of_rows(x, width, pads)
        products = lax.optimization_barrier(rows.reshape(-1, width * channels) @ wide)
        products = products.reshape(*rows.shape[:3], height, features)
        parts = slices(products, 1, height, out[1], 1)
        return reduce(add, [part[:, :, :, tap] for tap, part in enumerate(parts)]), None

    max_images = _images_per_chunk(x.shape, kernel.shape, pads, x.dtype.itemsize)
    y, _ = map_chunks(on_chunk, max_images, x, unroll=_UNROLL)
    return y


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images: a convolution with the flipped kernel."""
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return convolve(grad, flipped, strides, _pads_of_gradient(x_shape, kernel.shape, grad, pads))


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel."""
    del strides
    height, width, channels, features = kernel_shape

    def on_chunk(x: Array, grad: Array) -> tuple[None, Array]:
        rows = _taps_of_rows(x, width, pads)
        # The gradient of each row that reads a row of the image.
        grads = _side_by_side(
            [((tap, height - 1 - tap), (0, 0)) for tap in range(height)], [grad] * height
        )
        flat = rows.reshape(-1, width * channels), grads.reshape(-1, height * features)
        return None, lax.optimization_barrier(flat[0].T @ flat[1])

    max_images = _images_per_chunk(x.shape, kernel_shape, pads, x.dtype.itemsize)
    _, product = map_chunks(on_chunk, max_images, x, grad, unroll=_UNROLL)
    product = product.reshape(width, channels, height, features).transpose(2, 0, 1, 3)
    return product.astype(x.dtype)


def _pads_of_gradient(
    x_shape: Sequence[int], kernel_shape: Sequence[int], grad: Array, pads: Pads
) -> Pads:
    """The padding with which the gradient's convolution has the size of the images."""
    rows, columns = (
        (kernel_shape[i] - 1 - pads[i][0], x_shape[1 + i] + pads[i][0] - grad.shape[1 + i])
        for i in (0, 1)
    )
    return rows, columns


def _taps_of_rows(x: Array, width: int, pads: Pads) -> Array:
    """The pixels that each column reads from a row, [images, padded height, columns, taps]."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    parts = slices(padded, 2, width, padded.shape[2] - width + 1, 1)
    return _side_by_side([((0, 0), (0, 0))] * width, parts)


def _side_by_side(pads: Sequence[Pads], parts: Sequence[Array]) -> Array:
    """Pads maps and joins them along their channels.

    A sum of padded arrays, because XLA:CPU computes it on all cores, but concatenates on one.
    """
    count = len(parts)
    placed = [
        jnp.pad(part[:, :, :, None], ((0, 0), *pad, (i, count - 1 - i), (0, 0)))
        for i, (pad, part) in enumerate(zip(pads, parts, strict=True))
    ]
    joined = lax.optimization_barrier(reduce(add, placed))
    return joined.reshape(*joined.shape[:3], -1)


def _images_per_chunk(
    x_shape: Sequence[int], kernel_shape: Sequence[int], pads: Pads, itemsize: int
) -> int:
    height, width, channels, features = kernel_shape
    positions = (x_shape[1] + sum(pads[0])) * (x_shape[2] + sum(pads[1]))
    return max(1, _CHUNK_BYTES // (positions * (width * channels + height * features) * itemsize))
