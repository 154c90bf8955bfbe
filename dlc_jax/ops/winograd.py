"""Winograd's minimal filtering algorithms for 3x3 kernels, on CPUs.

A tile of the result is computed in three steps, with fewer multiplications than the direct sum:
transform the tile's patch of the image, multiply by the transformed kernel, transform back (Lavin
and Gray 2015, section 4.1). Over channels the multiplications are matrix products. The transforms
of the two algorithms here contain only 0, 1 and -1, so they are as accurate as the direct sum.

Images are processed in chunks that fit the cache. The transforms are sums and differences of
strided slices, along the rows first.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.onednn import matmul
from dlc_jax.ops.windows import Pads, map_chunks, out_shape, slices


class _Algorithm(NamedTuple):
    """Along one axis, a tile of the result is inverse @ ((kernel @ taps) * (image @ patch))."""

    image: np.ndarray  # [products, patch]
    kernel: np.ndarray  # [products, 3]
    inverse: np.ndarray  # [tile, products]

    @property
    def patch(self) -> int:
        return self.image.shape[1]

    @property
    def tile(self) -> int:
        return len(self.inverse)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles that cover a result of that size."""
        return -(-height // self.tile), -(-width // self.tile)


# F(2, 3), from the points 0, 1, -1 and infinity: 4 products instead of 6 (Lavin and Gray 2015,
# equation 5).
_TWO = _Algorithm(
    image=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    inverse=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
# F(4, 3), from the points 0, 1, -1, i, -i and infinity: 7 products instead of 12. Those at i and
# -i are conjugate and take three real products (Karatsuba). The usual points 2 and -2 instead
# take 6 products, but lose most of the accuracy.
_FOUR = _Algorithm(
    image=np.array(
        [
            [1, 0, 0, 0, -1, 0],
            [0, 1, 1, 1, 1, 0],
            [0, -1, 1, -1, 1, 0],
            [0, -1, -1, 1, 1, 0],
            [0, -1, 1, 1, -1, 0],
            [0, 1, 0, -1, 0, 0],
            [0, -1, 0, 0, 0, 1],
        ]
    ),
    kernel=np.array(
        [[4, 0, 0], [1, 1, 1], [1, -1, 1], [2, 0, -2], [0, 2, 0], [2, 2, -2], [0, 0, 4]]
    )
    / 4,
    inverse=np.array(
        [
            [1, 1, 1, 1, 0, 1, 0],
            [0, 1, -1, 0, 1, 1, 0],
            [0, 1, 1, -1, 0, -1, 0],
            [0, 1, -1, 0, -1, -1, 1],
        ]
    ),
)

# With this many channels, the larger kernels of F(4, 3) cost more than they save.
_F4_MAX_CHANNELS = 128
# With this number of output positions per chunk, products run at nearly full rate.
_POSITIONS = 1024


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this algorithm computes convolutions of these shapes, without too much memory."""
    del x_shape, pads
    return tuple(kernel_shape[:2]) == (3, 3) and tuple(strides) == (1, 1)


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    algorithm, max_images = _choose(kernel.shape, out)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    spectrum = _spectrum(algorithm, kernel.astype(dtype))

    def on_chunk(x: Array) -> tuple[Array, None]:
        images = _padded(algorithm, x.astype(dtype), 1, out, pads)
        images = _transform(algorithm.image, images, 1, algorithm.tile)
        flat = images.reshape(len(spectrum), -1, x.shape[3])
        products = lax.optimization_barrier(matmul(flat, spectrum))
        tiles = _product(_in_two_dimensions(algorithm.inverse), products)
        return _joined(algorithm, tiles, (len(x), *out[1:])).astype(x.dtype), None

    y, _ = map_chunks(on_chunk, max_images, x)
    return y


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, computed in at least float32."""
    del strides
    algorithm, max_images = _choose(kernel.shape, grad.shape)
    dtype = jnp.promote_types(grad.dtype, jnp.float32)
    spectrum = _spectrum(algorithm, kernel.astype(dtype))

    def on_chunk(grad: Array) -> tuple[Array, None]:
        products = _grad_of_inverse(algorithm, grad.astype(dtype))
        flat = products.reshape(len(spectrum), -1, grad.shape[3])
        tiles = lax.optimization_barrier(matmul(flat, spectrum, transpose_b=True))
        tiles = tiles.reshape(*products.shape[:-1], x_shape[3])
        return _grad_of_images(algorithm, tiles, x_shape, pads).astype(grad.dtype), None

    return map_chunks(on_chunk, max_images, grad)[0]


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, computed in at least float32."""
    del strides
    algorithm, max_images = _choose(kernel_shape, grad.shape)
    dtype = jnp.promote_types(grad.dtype, jnp.float32)
    matrix = _in_two_dimensions(algorithm.kernel)

    def on_chunk(x: Array, grad: Array) -> tuple[None, Array]:
        images = _padded(algorithm, x.astype(dtype), 1, grad.shape, pads)
        images = _transform(algorithm.image, images, 1, algorithm.tile)
        products = _grad_of_inverse(algorithm, grad.astype(dtype))
        flat = (part.reshape(len(matrix), -1, part.shape[-1]) for part in (images, products))
        return None, lax.optimization_barrier(matmul(*flat, transpose_a=True))

    _, grad_spectrum = map_chunks(on_chunk, max_images, x, grad)
    return _product(matrix.T, grad_spectrum).reshape(kernel_shape).astype(grad.dtype)


def _choose(kernel_shape: Sequence[int], out: Sequence[int]) -> tuple[_Algorithm, int]:
    """The fastest algorithm, and the size of its chunks in images."""
    few_channels = min(kernel_shape[2:]) < _F4_MAX_CHANNELS
    algorithm = _FOUR if few_channels and min(out[1:3]) >= 2 * _FOUR.tile else _TWO
    positions = (2 if algorithm is _FOUR else 1) * _POSITIONS
    return algorithm, max(1, positions // (out[1] * out[2]))


def _in_two_dimensions(matrix: np.ndarray) -> np.ndarray:
    return np.kron(matrix, matrix)


def _product(matrix: np.ndarray, x: Array) -> Array:
    """Applies the matrix along the first axis."""
    product = matrix.astype(x.dtype) @ x.reshape(len(x), -1)
    return lax.optimization_barrier(product).reshape(len(matrix), *x.shape[1:])


def _spectrum(algorithm: _Algorithm, kernel: Array) -> Array:
    """The transformed kernel, [products, channels, features]."""
    return _product(_in_two_dimensions(algorithm.kernel), kernel.reshape(9, *kernel.shape[2:]))


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Applies a matrix of 0, 1 and -1 to a list of arrays."""
    sums = []
    for row in matrix:
        terms = [part if sign > 0 else -part for sign, part in zip(row, parts, strict=True) if sign]
        sums.append(functools.reduce(operator.add, terms))
    return sums


def _transform(matrix: np.ndarray, x: Array, axis: int, step: int) -> Array:
    """Applies the matrix to patches at distance `step`, along `axis` and the next one.

    The result is [matrix rows, matrix rows, ...], with patches in place of the two axes.
    """
    size = matrix.shape[1]
    for along in (axis, axis + 2):
        count = (x.shape[along] - size) // step + 1
        parts = slices(x, along, size, count, step)
        # The matrix rows of the first iteration are the second axis of the result.
        x = lax.optimization_barrier(jnp.stack(_sums(matrix, parts), min(along - axis, 1)))
    return x


def _padded(algorithm: _Algorithm, x: Array, axis: int, out: Sequence[int], pads: Pads) -> Array:
    """Pads or crops `axis` and the next one to the pixels that the tiles' patches read."""
    config = [(0, 0, 0)] * x.ndim
    for i, count in enumerate(algorithm.grid(*out[1:3])):
        size = algorithm.tile * (count - 1) + algorithm.patch
        config[axis + i] = (pads[i][0], size - pads[i][0] - x.shape[axis + i], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _joined(algorithm: _Algorithm, y: Array, out: Sequence[int]) -> Array:
    """Joins tiles [positions in a tile, tiles, features] to feature maps."""
    images, height, width, features = out
    tile, (rows, columns) = algorithm.tile, algorithm.grid(height, width)
    y = y.reshape(tile, tile, images, rows, columns, features).transpose(2, 3, 0, 4, 1, 5)
    y = lax.optimization_barrier(y).reshape(images, tile * rows, tile * columns, features)
    return y[:, :height, :width]


def _grad_of_inverse(algorithm: _Algorithm, grad: Array) -> Array:
    """The gradient of the products, from that of feature maps."""
    tile = algorithm.tile
    padding = [(0, -size % tile) for size in grad.shape[1:3]]
    return _transform(algorithm.inverse.T, jnp.pad(grad, [(0, 0), *padding, (0, 0)]), 1, tile)


def _grad_of_images(
    algorithm: _Algorithm, tiles: Array, x_shape: Sequence[int], pads: Pads
) -> Array:
    """The gradient of images, from tiles [products, products, images, rows, columns, channels]."""
    columns = [tiles[:, i] for i in range(tiles.shape[1])]
    by_row = _overlapped(algorithm, _sums(algorithm.image.T, columns), 3)
    padded = _overlapped(algorithm, _sums(algorithm.image.T, list(by_row)), 1)
    (top, _), (left, _) = pads
    return padded[:, top : top + x_shape[1], left : left + x_shape[2]]


def _overlapped(algorithm: _Algorithm, parts: list[Array], axis: int) -> Array:
    """Sums the overlapping pixels of patches along an axis."""
    tile = algorithm.tile
    # Pixels beyond a tile are the first pixels of the next.
    missing = [jnp.zeros_like(parts[0])] * (2 * tile - len(parts))
    first, rest = (jnp.stack(half, axis + 1) for half in (parts[:tile], parts[tile:] + missing))
    after, before = [(0, 0)] * first.ndim, [(0, 0)] * first.ndim
    after[axis], before[axis] = (0, 1), (1, 0)
    total = lax.optimization_barrier(jnp.pad(first, after) + jnp.pad(rest, before))
    return total.reshape(*total.shape[:axis], -1, *total.shape[axis + 2 :])
