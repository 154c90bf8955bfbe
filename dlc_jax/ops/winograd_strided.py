"""Winograd's minimal filtering for kernels of height 3 with a vertical stride of 2, on CPUs.

Two neighbouring rows of the result read five rows of the image, one of them shared, and take six
products of an image row with a kernel row. Five suffice: the even rows form a filter of two taps,
for which F(2, 2) takes three products instead of four (Lavin and Gray 2015, section 4.1):

    upper = (row 0 - row 2) * tap 0 + row 1 * tap 1 + row 2 * (tap 0 + tap 2)
    lower = (row 4 - row 2) * tap 2 + row 3 * tap 1 + row 2 * (tap 0 + tap 2)

The last term is shared, and the first two terms of each row are one matrix product, so there are
three products in all. They read 2.5 times the size of the image, where im2col reads 4.5 times.
Sums and differences of two numbers lose no precision.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.im2col import out_shape, transpose_slices
from dlc_jax.ops.windows import Pads, map_chunks, slices

# Size of a chunk's gathered rows, which stay in the cache.
_CHUNK_BYTES, _UNROLL = 4 * 2**20, 12


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this algorithm computes convolutions of these shapes, without too much memory."""
    height = out_shape(x_shape, kernel_shape, strides, pads)[1]
    return kernel_shape[0] == 3 and strides[0] == 2 and height >= 2


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    taps = _combined_taps(kernel.astype(dtype))

    def on_chunk(x: Array) -> tuple[Array, None]:
        rows = _combined_rows(x.astype(dtype), kernel.shape, out, strides, pads)
        above, below, both = (_product(row, tap) for row, tap in zip(rows, taps, strict=True))
        halves = [(half + both).reshape(len(x), -1, *out[2:]) for half in (above, below)]
        y = jnp.stack(halves, 2).reshape(len(x), -1, *out[2:])
        return y[:, : out[1]].astype(kernel.dtype), None

    y, _ = map_chunks(
        on_chunk, _images_per_chunk(kernel.shape, out, dtype.itemsize), x, unroll=_UNROLL
    )
    return y


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, computed in at least float32."""
    return _gradients(None, kernel, grad, x_shape, kernel.shape, strides, pads)[0]


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, computed in at least float32."""
    return _gradients(x, None, grad, x.shape, kernel_shape, strides, pads)[1]


def gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    """Both gradients, in the same chunks of the batch."""
    return _gradients(x, kernel, grad, x.shape, kernel.shape, strides, pads)


def _gradients(
    x: Array | None,
    kernel: Array | None,
    grad: Array,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
) -> tuple[Any, Any]:
    """The gradient of the images if `kernel` is given, that of the kernel if `x` is given."""
    dtype = jnp.promote_types(grad.dtype, jnp.float32)
    taps = None if kernel is None else _combined_taps(kernel.astype(dtype))

    def on_chunk(grad: Array, x: Array | None = None) -> tuple[Any, Any]:
        grads = _combined_grads(grad.astype(dtype))
        grad_x = of_taps = None
        if x is not None:
            rows = _combined_rows(x.astype(dtype), kernel_shape, grad.shape, strides, pads)
            of_taps = [
                lax.optimization_barrier(g.T @ row) for g, row in zip(grads, rows, strict=True)
            ]
        if taps is not None:
            of_rows = [_product(g, tap.T) for g, tap in zip(grads, taps, strict=True)]
            shape = len(grad), *x_shape[1:]
            grad_x = _grad_of_images(of_rows, shape, kernel_shape, grad.shape, strides, pads)
            grad_x = grad_x.astype(grad.dtype)
        return grad_x, of_taps

    max_images = _images_per_chunk(kernel_shape, grad.shape, dtype.itemsize)
    arrays = [grad] if x is None else [grad, x]
    grad_x, of_taps = map_chunks(on_chunk, max_images, *arrays, unroll=_UNROLL)
    if of_taps is None:
        return grad_x, None
    return grad_x, _grad_of_kernel(of_taps).reshape(kernel_shape).astype(grad.dtype)


def _images_per_chunk(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    pair = 5 * math.prod(kernel_shape[1:3]) * out[2]
    return max(1, _CHUNK_BYTES // (-(-out[1] // 2) * pair * itemsize))


def _product(a: Array, b: Array) -> Array:
    # The barrier keeps XLA from fusing the computation of `a` into the product.
    return lax.optimization_barrier(a @ b)


def _combined_taps(kernel: Array) -> list[Array]:
    """The kernel rows [(0, 1), (2, 1), 0 + 2], as matrices with one column per feature."""
    first, second, third = kernel.reshape(3, -1, kernel.shape[3])
    combined = [jnp.concatenate([first, second]), jnp.concatenate([third, second]), first + third]
    return lax.optimization_barrier(combined)


def _grad_of_kernel(of_taps: list[Array]) -> Array:
    """The transpose of `_combined_taps`, [3, ..., features]."""
    above, below, both = (grad.T for grad in of_taps)
    size = len(both)
    return jnp.stack([above[:size] + both, above[size:] + below[size:], below[:size] + both])


def _combined_rows(
    x: Array, kernel_shape: Sequence[int], out: Sequence[int], strides: Sequence[int], pads: Pads
) -> list[Array]:
    """The image rows [(0 - 2, 1), (4 - 2, 3), 2] of each pair of rows of the result.

    Each is a matrix with one row per pair and column of the result.
    """
    pairs = -(-out[1] // 2)
    sizes = 4 * pairs + 1, strides[1] * (out[2] - 1) + kernel_shape[1]
    config = [(0, 0, 0)] * 4
    for i, size in enumerate(sizes):
        config[1 + i] = (pads[i][0], size - pads[i][0] - x.shape[1 + i], 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    columns = jnp.concatenate(slices(padded, 2, kernel_shape[1], out[2], strides[1]), 3)
    rows = slices(lax.optimization_barrier(columns), 1, 5, pairs, 4)
    above = jnp.concatenate([rows[0] - rows[2], rows[1]], 3)
    below = jnp.concatenate([rows[4] - rows[2], rows[3]], 3)
    combined = lax.optimization_barrier([above, below, rows[2]])
    return [matrix.reshape(-1, matrix.shape[3]) for matrix in combined]


def _combined_grads(grad: Array) -> list[Array]:
    """The upper and lower rows of the gradient's pairs of rows, and their sums."""
    grad = jnp.pad(grad, ((0, 0), (0, grad.shape[1] % 2), (0, 0), (0, 0)))
    images, height, width, features = grad.shape
    pairs = grad.reshape(images, height // 2, 2, width, features)
    above, below = pairs[:, :, 0], pairs[:, :, 1]
    combined = lax.optimization_barrier([above, below, above + below])
    return [matrix.reshape(-1, features) for matrix in combined]


def _grad_of_images(
    of_rows: list[Array],
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    out: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
) -> Array:
    """The transpose of `_combined_rows`."""
    pairs = -(-out[1] // 2)
    above, below, both = (rows.reshape(x_shape[0], pairs, out[2], -1) for rows in of_rows)
    (first, second), (last, fourth) = (jnp.split(half, 2, 3) for half in (above, below))
    third = both - first - last

    def shifted(rows: Array, before: int) -> Array:
        return jnp.pad(rows, ((0, 0), (before, 1 - before), (0, 0), (0, 0)))

    # The last row of a pair is the first row of the next.
    parts = [shifted(rows, 0) for rows in (first, second, third, fourth)]
    parts[0] = parts[0] + shifted(last, 1)
    rows = lax.optimization_barrier(jnp.stack(parts, 2))
    rows = rows.reshape(x_shape[0], 4 * (pairs + 1), out[2], *kernel_shape[1:3])
    top, left = pads[0][0], pads[1][0]
    rows = _slice_with_zeros(rows, 1, top, x_shape[1])
    width = left + x_shape[2] + pads[1][1]
    return _slice_with_zeros(transpose_slices(rows, 2, width, strides[1]), 2, left, x_shape[2])


def _slice_with_zeros(x: Array, axis: int, start: int, size: int) -> Array:
    """`size` elements along an axis from `start` on, padded with zeros beyond the end of `x`."""
    missing = [(0, 0, 0)] * x.ndim
    missing[axis] = (-start, start + size - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), missing)
