"""Convolution of kernels three pixels high, two apart, over two rows of the result at a time.

Two neighbouring rows of the result read five rows of the image, of which they share one, and
take six products of a row with a row of the kernel. Five do (the even rows make a filter of
two taps, for which Winograd's minimal filtering F(2, 2) takes three products instead of four:
Lavin and Gray 2015, section 4.1):

    upper = (row 0 - row 2) * tap 0 + row 1 * tap 1 + row 2 * (tap 0 + tap 2)
    lower = (row 4 - row 2) * tap 2 + row 3 * tap 1 + row 2 * (tap 0 + tap 2)

The last term of both is the same. The first two of each make one matrix product, so there are
three of those in all, and they read 2.5 times as many numbers as the image has, where
patches are 4.5 times as many. Differences and sums of two numbers cost no precision.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.patches import out_shape, unsliced
from dlc_jax.ops.windows import Pads, over_chunks, slices

# With fewer channels the additions cost more than the products that they save, and with fewer
# positions of the result those of the kernel do.
_FEWEST_CHANNELS = 64
_FEWEST_POSITIONS = 512
# Rows of images up to this size in bytes are gathered at once, larger ones for a few images at
# a time.
_LARGEST_WHOLE = 64 * 2**20


def pays(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this formulation is the fastest on a CPU."""
    batch, height, width, _ = out_shape(x_shape, kernel_shape, strides, pads)
    fits = kernel_shape[0] == 3 and strides[0] == 2 and height >= 2
    large = batch * height * width >= _FEWEST_POSITIONS
    return fits and large and min(kernel_shape[2:]) >= _FEWEST_CHANNELS


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    taps = _combined_taps(kernel.astype(dtype))

    def some(x: Array) -> tuple[Array, None]:
        rows = _combined_rows(x.astype(dtype), kernel.shape, out, strides, pads)
        above, below, both = (_product(row, tap) for row, tap in zip(rows, taps, strict=True))
        halves = [(half + both).reshape(len(x), -1, *out[2:]) for half in (above, below)]
        y = jnp.stack(halves, 2).reshape(len(x), -1, *out[2:])
        return y[:, : out[1]].astype(kernel.dtype), None

    y, _ = over_chunks(some, _images_at_once(kernel.shape, out, dtype.itemsize), x)
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
    """Both gradients, for the same few images at a time."""
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
    """That of the images if there is a kernel, and that of the kernel if there are images."""
    dtype = jnp.promote_types(grad.dtype, jnp.float32)
    taps = None if kernel is None else _combined_taps(kernel.astype(dtype))

    def some(grad: Array, x: Array | None = None) -> tuple[Any, Any]:
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

    most = _images_at_once(kernel_shape, grad.shape, dtype.itemsize)
    grad_x, of_taps = over_chunks(some, most, grad, *([] if x is None else [x]))
    if of_taps is None:
        return grad_x, None
    return grad_x, _grad_of_kernel(of_taps).reshape(kernel_shape).astype(grad.dtype)


def _images_at_once(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    pair = 5 * math.prod(kernel_shape[1:3]) * out[2]
    return max(1, _LARGEST_WHOLE // (-(-out[1] // 2) * pair * itemsize))


def _product(a: Array, b: Array) -> Array:
    # The barrier keeps XLA from merging what makes `a` into the product.
    return lax.optimization_barrier(a @ b)


def _combined_taps(kernel: Array) -> list[Array]:
    """The kernel's rows [(0, 1), (2, 1), 0 + 2], each as a matrix with a column a feature."""
    first, second, third = kernel.reshape(3, -1, kernel.shape[3])
    combined = [jnp.concatenate([first, second]), jnp.concatenate([third, second]), first + third]
    return lax.optimization_barrier(combined)


def _grad_of_kernel(of_taps: list[Array]) -> Array:
    """What the combined rows of the kernel, transposed, give back to it: [3, ..., features]."""
    above, below, both = (grad.T for grad in of_taps)
    size = len(both)
    return jnp.stack([above[:size] + both, above[size:] + below[size:], below[:size] + both])


def _combined_rows(
    x: Array, kernel_shape: Sequence[int], out: Sequence[int], strides: Sequence[int], pads: Pads
) -> list[Array]:
    """The images' rows [(0 - 2, 1), (4 - 2, 3), 2] of each pair of rows of the result.

    Each is a matrix with a row for each pair and column of the result.
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
    """Of each pair of the gradient's rows the upper one, the lower one, and their sum."""
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
    """What the combined rows give back to the images."""
    pairs = -(-out[1] // 2)
    above, below, both = (rows.reshape(x_shape[0], pairs, out[2], -1) for rows in of_rows)
    (first, second), (last, fourth) = (jnp.split(half, 2, 3) for half in (above, below))
    third = both - first - last

    def beyond(rows: Array, before: int) -> Array:
        return jnp.pad(rows, ((0, 0), (before, 1 - before), (0, 0), (0, 0)))

    # The last row of a pair is the first one of the next.
    parts = [beyond(rows, 0) for rows in (first, second, third, fourth)]
    parts[0] = parts[0] + beyond(last, 1)
    rows = lax.optimization_barrier(jnp.stack(parts, 2))
    rows = rows.reshape(x_shape[0], 4 * (pairs + 1), out[2], *kernel_shape[1:3])
    top, left = pads[0][0], pads[1][0]
    rows = _from(rows, 1, top, x_shape[1])
    width = left + x_shape[2] + pads[1][1]
    return _from(unsliced(rows, 2, width, strides[1]), 2, left, x_shape[2])


def _from(x: Array, axis: int, start: int, size: int) -> Array:
    """So many elements along an axis; zeros where `x` ends before them."""
    missing = [(0, 0, 0)] * x.ndim
    missing[axis] = (-start, start + size - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), missing)
