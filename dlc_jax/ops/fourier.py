"""Convolution of small images as products in the frequency domain, on CPUs.

By the convolution theorem, a circular convolution is a product of discrete Fourier transforms.
For small images, the transforms are small matrices, which a matrix product applies to the whole
batch; the products over channels are matrix products for each frequency. For 8x8 images and a
5x5 kernel, this takes 94 multiplications per channel, where the sixteen outputs take 400.

Images and kernels are real, so half of the frequencies determine the others, and a complex
product takes three real ones (Karatsuba). Together this is a bilinear algorithm
`A @ ((G @ kernel) * (B @ image))` with constant real matrices, like Winograd's (Lavin and Gray
2015, section 4.1), but with points on the unit circle, so it loses no precision.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dlc_jax.ops.onednn import matmul
from dlc_jax.ops.windows import Pads, out_shape

# Largest size of a transformed kernel.
_MAX_KERNEL_SIZE = 2**22
# With fewer channels, the transforms cost more than they save.
_MIN_CHANNELS = 8
# Larger transforms would need an FFT.
_MAX_FREQUENCIES = 100


class _Algorithm(NamedTuple):
    """The matrices of `A @ ((G @ kernel) * (B @ image))`, pixels in row-major order.

    Attributes:
      inverse: Matrix A, [out_height * out_width, products].
      kernel: Matrix G, [products, kernel_height * kernel_width].
      image: Matrix B, [products, height * width].
    """

    inverse: np.ndarray
    kernel: np.ndarray
    image: np.ndarray


def supports(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
    """Whether this algorithm is sensible for convolutions of these shapes."""
    if min(kernel_shape[2:]) < _MIN_CHANNELS or math.prod(kernel_shape[:2]) == 1:
        return False
    periods = _periods(x_shape, pads)
    if tuple(strides) != (1, 1) or math.prod(periods) > _MAX_FREQUENCIES:
        return False
    return _products(*periods) * math.prod(kernel_shape[2:]) <= _MAX_KERNEL_SIZE


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution, computed in at least float32."""
    out = out_shape(x.shape, kernel.shape, strides, pads)
    algorithm = _matrices(x.shape, kernel.shape, pads, x.dtype)
    products = _product(_image(algorithm, x), _kernel(algorithm, kernel))
    y = _product(algorithm.inverse, products.reshape(len(products), -1))
    y = y.reshape(out[1], out[2], out[0], out[3])
    return y.transpose(2, 0, 1, 3).astype(x.dtype)


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, computed in at least float32."""
    del strides
    batch, height, width, channels = x_shape
    algorithm = _matrices(x_shape, kernel.shape, pads, grad.dtype)
    of_products = _grad_of_products(algorithm, grad)
    grad_image = _product(of_products, _kernel(algorithm, kernel), transpose_b=True)
    flat = grad_image.reshape(len(algorithm.image), -1)
    grad_x = _product(algorithm.image.T, flat).reshape(height, width, batch, channels)
    return grad_x.transpose(2, 0, 1, 3).astype(grad.dtype)


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, computed in at least float32."""
    del strides
    algorithm = _matrices(x.shape, kernel_shape, pads, x.dtype)
    of_products = _grad_of_products(algorithm, grad)
    spectrum = _product(_image(algorithm, x), of_products, transpose_a=True)
    grad_kernel = _product(algorithm.kernel.T, spectrum.reshape(len(algorithm.kernel), -1))
    return grad_kernel.astype(x.dtype).reshape(kernel_shape)


def _matrices(
    x_shape: Sequence[int], kernel_shape: Sequence[int], pads: Pads, dtype: Any
) -> _Algorithm:
    matrices = _algorithm(tuple(x_shape[1:3]), tuple(kernel_shape[:2]), pads)
    wide = jnp.promote_types(dtype, jnp.float32)
    return _Algorithm(*(matrix.astype(wide) for matrix in matrices))


def _grad_of_products(algorithm: _Algorithm, grad: Array) -> Array:
    """The gradients of the products, [products, batch, features]."""
    pixels = _pixels_first(grad.astype(algorithm.inverse.dtype))
    grad_products = _product(algorithm.inverse.T, pixels)
    return grad_products.reshape(len(algorithm.image), grad.shape[0], -1)


def _image(algorithm: _Algorithm, x: Array) -> Array:
    """The image factors of the products, [products, batch, channels]."""
    spectrum = _product(algorithm.image, _pixels_first(x.astype(algorithm.image.dtype)))
    return spectrum.reshape(-1, x.shape[0], x.shape[3])


def _kernel(algorithm: _Algorithm, kernel: Array) -> Array:
    """The kernel factors of the products, [products, channels, features]."""
    flat = kernel.astype(algorithm.kernel.dtype).reshape(algorithm.kernel.shape[1], -1)
    return _product(algorithm.kernel, flat).reshape(-1, *kernel.shape[2:])


def _pixels_first(x: Array) -> Array:
    """[height * width, batch * channels]."""
    batch, height, width, channels = x.shape
    moved = lax.optimization_barrier(x.transpose(1, 2, 0, 3))
    return moved.reshape(height * width, batch * channels)


def _product(a: Any, b: Array, **transposed: bool) -> Array:
    return lax.optimization_barrier(matmul(jnp.asarray(a), b, **transposed))


def _periods(x_shape: Sequence[int], pads: Pads) -> tuple[int, int]:
    """The smallest lengths of circular convolutions that equal the linear ones.

    Circular convolutions wrap around, so the zeros of the larger padding serve both borders.
    """
    return x_shape[1] + max(pads[0]), x_shape[2] + max(pads[1])


def _products(rows: int, columns: int) -> int:
    """Number of real products that a product of transforms of real arrays takes."""
    real = (2 - rows % 2) * (2 - columns % 2)
    return real + 3 * (rows * columns - real) // 2


@lru_cache(maxsize=64)
def _algorithm(image: Sequence[int], kernel: Sequence[int], pads: Pads) -> _Algorithm:
    rows, columns = _periods((1, *image), pads)
    out = [image[i] + sum(pads[i]) - kernel[i] + 1 for i in (0, 1)]
    images = _fourier((rows, columns), image, (pads[0][0], pads[1][0]))
    # Correlation is convolution with the kernel's conjugate spectrum.
    kernels = _fourier((rows, columns), kernel, (0, 0)).conj()
    inverse = _fourier((rows, columns), out, (0, 0)).conj() / (rows * columns)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for row in range(rows):
        for column in range(columns):
            mirrored = -row % rows, -column % columns
            x, w, y = (spectrum[row, column] for spectrum in (images, kernels, inverse))
            if mirrored == (row, column):
                parts.append((y.real, w.real, x.real))
            elif (row, column) < mirrored:
                # Twice the real part of y times (x times w), in three products.
                parts += [
                    (2 * (y.real - y.imag), w.real, x.real + x.imag),
                    (-2 * y.imag, w.imag - w.real, x.real),
                    (-2 * y.real, w.imag + w.real, x.imag),
                ]
    inverses, of_kernel, of_image = (np.stack(part) for part in zip(*parts, strict=True))
    return _Algorithm(inverses.T, of_kernel, of_image)


def _fourier(periods: tuple[int, int], size: Sequence[int], offset: tuple[int, int]) -> np.ndarray:
    """exp(-2 pi i f p) by frequency and pixel, [rows, columns, pixels]."""
    waves = [
        np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(length) + start) / n)
        for n, length, start in zip(periods, size, offset, strict=True)
    ]
    return np.einsum("up,vq->uvpq", *waves).reshape(*periods, -1)
