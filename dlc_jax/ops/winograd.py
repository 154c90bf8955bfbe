"""Convolution of 3x3 kernels by Winograd's algorithm F(2x2, 3x3).

Each 2x2 tile of the result takes 16 multiplications a channel instead of 36 (Lavin and Gray
2015, section 4.1). The points of interpolation are 0, 1, -1 and infinity, with which it is
as exact as the direct computation.

It runs over a few images at a time, so that what it makes of them stays in the processor's
cache. The transforms are sums and differences of strided slices, along the rows first.
"""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.patches import out_shape
from dlc_jax.ops.windows import Pads, in_chunks, slices

_TILE, _PATCH = 2, 4

# The three transforms of F(2, 3) along one axis (Lavin and Gray 2015, equation 5).
_IMAGE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
_INVERSE = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_KERNEL_2D, _INVERSE_2D = (np.kron(matrix, matrix) for matrix in (_KERNEL, _INVERSE))

# With fewer channels the transforms cost more than the products that they save.
_FEWEST_CHANNELS = 32
_MANY_CHANNELS = 128
# So many tiles at a time make products large enough to run at their full rate.
_TILES = 256


def pays(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this formulation is the fastest on a CPU."""
    batch, height, width, _ = out_shape(x_shape, kernel_shape, strides, pads)
    fits = tuple(kernel_shape[:2]) == (3, 3) and tuple(strides) == (1, 1)
    large = batch * height * width >= _TILES and min(height, width) >= 2 * _TILE
    return fits and large and min(kernel_shape[2:]) >= _FEWEST_CHANNELS


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    spectrum = _product(_KERNEL_2D, kernel.astype(dtype).reshape(9, *kernel.shape[2:]))

    def some(_: None, x: Array) -> tuple[None, Array]:
        image, grid = _image(x.astype(dtype), out, pads)
        tiles = _product(_INVERSE_2D, _by_position(image, spectrum))
        return None, _joined(tiles, len(x), grid, out).astype(x.dtype)

    _, y = lax.scan(some, None, in_chunks(x, _images(out)))
    return y.reshape(out)


def gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    """The gradients with respect to images and kernel, computed in at least float32."""
    del strides
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    flat = kernel.astype(dtype).reshape(9, *kernel.shape[2:]).transpose(0, 2, 1)
    spectrum = _product(_KERNEL_2D, lax.optimization_barrier(flat))

    def some(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        x, grad = chunk
        image, grid = _image(x.astype(dtype), grad.shape, pads)
        products = _grad_of_products(grad.astype(dtype), grid)
        total = total + _over_tiles(image, products)
        grad_x = _grad_of_image(_by_position(products, spectrum), x.shape, grid, pads)
        return total, grad_x.astype(x.dtype)

    zeros = jnp.zeros_like(spectrum.transpose(0, 2, 1))
    most = _images(grad.shape)
    chunks = in_chunks(x, most), in_chunks(grad, most)
    total, grad_x = lax.scan(some, zeros, chunks)
    grad_kernel = _product(_KERNEL_2D.T, total).reshape(kernel.shape)
    return grad_x.reshape(x.shape), grad_kernel.astype(kernel.dtype)


def _product(matrix: np.ndarray, x: Array) -> Array:
    """The matrix applied along the first axis."""
    product = matrix.astype(x.dtype) @ x.reshape(len(x), -1)
    return lax.optimization_barrier(product).reshape(len(matrix), *x.shape[1:])


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """The matrix, of 0, 1 and -1, applied to a list of arrays."""
    sums = []
    for row in matrix:
        terms = [part if sign > 0 else -part for sign, part in zip(row, parts, strict=True) if sign]
        sums.append(functools.reduce(operator.add, terms))
    return sums


def _by_position(a: Array, b: Array) -> Array:
    return lax.optimization_barrier(lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,)))))


def _over_tiles(a: Array, b: Array) -> Array:
    """a^T @ b by position. With many channels transposing first is the faster way."""
    if a.shape[2] >= _MANY_CHANNELS:
        return _by_position(lax.optimization_barrier(a.transpose(0, 2, 1)), b)
    return lax.optimization_barrier(lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,)))))


def _images(out: Sequence[int]) -> int:
    """How many images have about `_TILES` tiles."""
    return max(1, _TILES * _TILE**2 // (out[1] * out[2]))


def _image(x: Array, out: Sequence[int], pads: Pads) -> tuple[Array, tuple[int, int]]:
    """The transforms of overlapping 4x4 patches, [16, tiles, channels], and their grid."""
    rows, columns = -(-out[1] // _TILE), -(-out[2] // _TILE)
    (top, _), (left, _) = pads
    bottom = _TILE * rows + 2 - top - x.shape[1]
    right = _TILE * columns + 2 - left - x.shape[2]
    padded = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    )
    by_row = jnp.stack(_sums(_IMAGE, slices(padded, 1, _PATCH, rows, _TILE)))
    by_row = lax.optimization_barrier(by_row)
    tiles = jnp.stack(_sums(_IMAGE, slices(by_row, 3, _PATCH, columns, _TILE)), 1)
    return lax.optimization_barrier(tiles).reshape(_PATCH**2, -1, x.shape[3]), (rows, columns)


def _joined(y: Array, images: int, grid: tuple[int, int], out: Sequence[int]) -> Array:
    """Tiles [4, tiles, features] as feature maps."""
    rows, columns = grid
    y = y.reshape(_TILE, _TILE, images, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    y = lax.optimization_barrier(y).reshape(images, _TILE * rows, _TILE * columns, -1)
    return y[:, : out[1], : out[2]]


def _grad_of_products(grad: Array, grid: tuple[int, int]) -> Array:
    """From the gradient of feature maps that of the products, [16, tiles, features]."""
    beyond = [(0, 0), *((0, _TILE * n - grad.shape[1 + i]) for i, n in enumerate(grid)), (0, 0)]
    padded = jnp.pad(grad, beyond)
    rows, columns = grid
    by_row = jnp.stack(_sums(_INVERSE.T, slices(padded, 1, _TILE, rows, _TILE)))
    by_row = lax.optimization_barrier(by_row)
    tiles = jnp.stack(_sums(_INVERSE.T, slices(by_row, 3, _TILE, columns, _TILE)), 1)
    return lax.optimization_barrier(tiles).reshape(_PATCH**2, -1, grad.shape[3])


def _grad_of_image(
    tiles: Array, x_shape: Sequence[int], grid: tuple[int, int], pads: Pads
) -> Array:
    """The transpose of `_image`: what the tiles give back, added up where patches overlap."""
    images, height, width, channels = x_shape
    tiles = tiles.reshape(_PATCH, _PATCH, images, *grid, channels)
    by_row = _overlapped(_sums(_IMAGE.T, [tiles[:, b] for b in range(_PATCH)]), 3)
    whole = _overlapped(_sums(_IMAGE.T, list(by_row)), 1)
    (top, _), (left, _) = pads
    return whole[:, top : top + height, left : left + width]


def _overlapped(parts: list[Array], axis: int) -> Array:
    """Pixels 0 to 3 of the tiles along an axis, added up as the tiles lie."""
    # Two neighbours overlap by half: the second half of each falls on the first of the next.
    first, second = (jnp.stack(parts[i : i + 2], axis + 1) for i in (0, 2))
    after, before = [(0, 0)] * first.ndim, [(0, 0)] * first.ndim
    after[axis], before[axis] = (0, 1), (1, 0)
    total = lax.optimization_barrier(jnp.pad(first, after) + jnp.pad(second, before))
    return total.reshape(*total.shape[:axis], -1, *total.shape[axis + 2 :])
