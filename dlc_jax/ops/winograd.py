"""Convolution of 3x3 kernels by Winograd's algorithm F(2x2, 3x3).

Each 2x2 tile of the result takes 16 multiplications a channel instead of 36 (Lavin and Gray
2015, section 4.1). The points of interpolation are 0, 1, -1 and infinity, with which it is
as exact as the direct computation.

It runs over a few images at a time, so that what it makes of them stays in the processor's
cache, and applies the transforms as matrix products, which give the tiles in the layout that
the products over channels want.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.patches import out_shape
from dlc_jax.ops.windows import Pads, slices

_TILE, _PATCH = 2, 4

# The three transforms of F(2, 3) along one axis (Lavin and Gray 2015, equation 5).
_IMAGE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
_INVERSE = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_IMAGE_2D, _KERNEL_2D, _INVERSE_2D = (np.kron(m, m) for m in (_IMAGE, _KERNEL, _INVERSE))

# With fewer channels the transforms cost more than the products that they save.
_FEWEST_CHANNELS = 32
# So many tiles at a time make products large enough to run at their full rate.
_TILES = 256


def pays(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this formulation is the fastest on a CPU."""
    outputs = math.prod(out_shape(x_shape, kernel_shape, strides, pads)[:3])
    fits = tuple(kernel_shape[:2]) == (3, 3) and tuple(strides) == (1, 1)
    return fits and min(kernel_shape[2:]) >= _FEWEST_CHANNELS and outputs >= 4 * _TILES


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    spectrum = _transform(_KERNEL_2D, kernel.astype(dtype).reshape(9, *kernel.shape[2:]))

    def some(_: None, x: Array) -> tuple[None, Array]:
        tiles, grid = _tiles(x.astype(dtype), out, pads)
        products = _by_position(_transform(_IMAGE_2D, tiles), spectrum)
        return None, _joined(_transform(_INVERSE_2D, products), len(x), grid, out).astype(x.dtype)

    _, y = lax.scan(some, None, _in_chunks(x, out))
    return y.reshape(out)


def gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    """The gradients with respect to images and kernel, computed in at least float32."""
    del strides
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    flat = kernel.astype(dtype).reshape(9, *kernel.shape[2:]).transpose(0, 2, 1)
    spectrum = _transform(_KERNEL_2D, lax.optimization_barrier(flat))

    def some(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        x, grad = chunk
        tiles, grid = _tiles(x.astype(dtype), grad.shape, pads)
        image = _transform(_IMAGE_2D, tiles)
        products = _transform(_INVERSE_2D.T, _split(grad.astype(dtype), grid))
        transposed = lax.optimization_barrier(image.transpose(0, 2, 1))
        total = total + _by_position(transposed, products)
        grad_tiles = _transform(_IMAGE_2D.T, _by_position(products, spectrum))
        return total, _added(grad_tiles, x.shape, grid, pads).astype(x.dtype)

    zeros = jnp.zeros_like(spectrum.transpose(0, 2, 1))
    chunks = _in_chunks(x, grad.shape), _in_chunks(grad, grad.shape)
    total, grad_x = lax.scan(some, zeros, chunks)
    grad_kernel = _transform(_KERNEL_2D.T, total).reshape(kernel.shape)
    return grad_x.reshape(x.shape), grad_kernel.astype(kernel.dtype)


def _transform(matrix: np.ndarray, x: Array) -> Array:
    """The matrix applied along the first axis."""
    product = matrix.astype(x.dtype) @ x.reshape(len(x), -1)
    return lax.optimization_barrier(product).reshape(len(matrix), *x.shape[1:])


def _by_position(a: Array, b: Array) -> Array:
    return lax.optimization_barrier(lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,)))))


def _in_chunks(x: Array, out: Sequence[int]) -> Array:
    """[chunks, images, height, width, channels], with about `_TILES` tiles a chunk."""
    most = max(1, _TILES * _TILE**2 // (out[1] * out[2]))
    images = max(count for count in range(1, most + 1) if len(x) % count == 0)
    return x.reshape(-1, images, *x.shape[1:])


def _tiles(x: Array, out: Sequence[int], pads: Pads) -> tuple[Array, tuple[int, int]]:
    """The overlapping 4x4 patches, [16, tiles, channels], and how many there are each way."""
    rows, columns = -(-out[1] // _TILE), -(-out[2] // _TILE)
    (top, _), (left, _) = pads
    bottom = _TILE * rows + 2 - top - x.shape[1]
    right = _TILE * columns + 2 - left - x.shape[2]
    padded = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    )
    parts = [
        part
        for row in slices(padded, 1, _PATCH, rows, _TILE)
        for part in slices(row, 2, _PATCH, columns, _TILE)
    ]
    tiles = lax.optimization_barrier(jnp.concatenate(parts))
    return tiles.reshape(_PATCH**2, -1, x.shape[3]), (rows, columns)


def _joined(y: Array, images: int, grid: tuple[int, int], out: Sequence[int]) -> Array:
    """Tiles [4, tiles, features] as feature maps."""
    rows, columns = grid
    y = y.reshape(_TILE, _TILE, images, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    y = lax.optimization_barrier(y).reshape(images, _TILE * rows, _TILE * columns, -1)
    return y[:, : out[1], : out[2]]


def _split(y: Array, grid: tuple[int, int]) -> Array:
    """The transpose of `_joined`."""
    rows, columns = grid
    beyond = ((0, 0), *((0, _TILE * n - y.shape[1 + i]) for i, n in enumerate(grid)), (0, 0))
    y = jnp.pad(y, beyond).reshape(len(y), rows, _TILE, columns, _TILE, -1)
    y = lax.optimization_barrier(y.transpose(2, 4, 0, 1, 3, 5))
    return y.reshape(_TILE**2, -1, y.shape[-1])


def _added(tiles: Array, x_shape: Sequence[int], grid: tuple[int, int], pads: Pads) -> Array:
    """The transpose of `_tiles`: patches [16, tiles, channels] added up where they overlap."""
    images, height, width, channels = x_shape
    rows, columns = grid
    tiles = tiles.reshape(_PATCH, _PATCH, images, rows, columns, channels)
    # Two neighbours overlap by half: the second half of each falls on the first of the next.
    by_row = [_overlapped([tiles[a, b] for b in range(_PATCH)], 2) for a in range(_PATCH)]
    whole = _overlapped(by_row, 1)
    (top, _), (left, _) = pads
    return whole[:, top : top + height, left : left + width]


def _overlapped(parts: list[Array], axis: int) -> Array:
    """Pixels 0 to 3 of the tiles along an axis, added up as the tiles lie."""
    first, second = (jnp.stack(parts[i : i + 2], axis + 1) for i in (0, 2))
    after, before = [(0, 0)] * first.ndim, [(0, 0)] * first.ndim
    after[axis], before[axis] = (0, 1), (1, 0)
    total = jnp.pad(first, after) + jnp.pad(second, before)
    total = lax.optimization_barrier(total)
    shape = list(total.shape)
    shape[axis : axis + 2] = [-1]
    return total.reshape(shape)
