"""Strided convolution as a convolution of stride 1 with more channels, for CPUs.

The pixels of each square of strides x strides become the channels of one pixel (space to depth),
and so do the taps of the kernel. The convolution of stride 1 that remains has a kernel smaller by
the strides, for which other algorithms are faster.
"""

from collections.abc import Sequence
from types import ModuleType

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.im2col import out_shape
from dlc_jax.ops.windows import Pads

_NO_PADS: Pads = ((0, 0), (0, 0))


class SpaceToDepth:
    """The algorithm, with another one for the convolution of stride 1.

    Args:
      inner: Module of the other algorithm.
    """

    def __init__(self, inner: ModuleType) -> None:
        self._inner = inner

    def supports(
        self,
        x_shape: Sequence[int],
        kernel_shape: Sequence[int],
        strides: Sequence[int],
        pads: Pads,
    ) -> bool:
        """Whether the strides are more than 1, and the kernel is not smaller than they are."""
        fits = max(strides) > 1 and all(
            taps >= stride for taps, stride in zip(kernel_shape[:2], strides, strict=True)
        )
        if not fits or not hasattr(self._inner, "supports"):
            return fits
        kernel, images = _shapes(x_shape, kernel_shape, strides, pads)
        return bool(self._inner.supports(images, kernel, (1, 1), _NO_PADS))

    def convolve(self, x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
        """The convolution."""
        _, images = _shapes(x.shape, kernel.shape, strides, pads)
        folded = _fold_images(x, images, strides, pads)
        y: Array = self._inner.convolve(folded, _fold_kernel(kernel, strides), (1, 1), _NO_PADS)
        return y

    def input_gradient(
        self,
        kernel: Array,
        grad: Array,
        x_shape: Sequence[int],
        strides: Sequence[int],
        pads: Pads,
    ) -> Array:
        """The gradient with respect to the images."""
        _, images = _shapes(x_shape, kernel.shape, strides, pads)
        folded = self._inner.input_gradient(
            _fold_kernel(kernel, strides), grad, images, (1, 1), _NO_PADS
        )
        batch, height, width, channels = x_shape
        rows, columns = images[1] * strides[0], images[2] * strides[1]
        split = folded.reshape(batch, *images[1:3], *strides, channels).transpose(0, 1, 3, 2, 4, 5)
        pixels = split.reshape(batch, rows, columns, channels)
        (top, _), (left, _) = pads
        # Pixels at the ends that no window reads have no gradient.
        config = [(-top, top + height - rows, 0), (-left, left + width - columns, 0)]
        return lax.pad(pixels, jnp.zeros((), grad.dtype), [(0, 0, 0), *config, (0, 0, 0)])

    def kernel_gradient(
        self,
        x: Array,
        grad: Array,
        kernel_shape: Sequence[int],
        strides: Sequence[int],
        pads: Pads,
    ) -> Array:
        """The gradient with respect to the kernel."""
        kernel, images = _shapes(x.shape, kernel_shape, strides, pads)
        folded = _fold_images(x, images, strides, pads)
        of_kernel = self._inner.kernel_gradient(folded, grad, kernel, (1, 1), _NO_PADS)
        split = of_kernel.reshape(*kernel[:2], *strides, *kernel_shape[2:])
        taps = split.transpose(0, 2, 1, 3, 4, 5)
        taps = taps.reshape(kernel[0] * strides[0], kernel[1] * strides[1], *kernel_shape[2:])
        return taps[: kernel_shape[0], : kernel_shape[1]]


def _shapes(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the folded kernel and of the folded images."""
    out = out_shape(x_shape, kernel_shape, strides, pads)
    taps = [-(-kernel_shape[i] // strides[i]) for i in (0, 1)]
    channels = strides[0] * strides[1] * x_shape[3]
    images = (x_shape[0], out[1] + taps[0] - 1, out[2] + taps[1] - 1, channels)
    return (*taps, channels, kernel_shape[3]), images


def _fold_images(x: Array, images: Sequence[int], strides: Sequence[int], pads: Pads) -> Array:
    config = [(0, 0, 0)] * 4
    for i in (0, 1):
        size = images[1 + i] * strides[i]
        config[1 + i] = (pads[i][0], size - pads[i][0] - x.shape[1 + i], 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    split = padded.reshape(len(x), images[1], strides[0], images[2], strides[1], x.shape[3])
    return lax.optimization_barrier(split.transpose(0, 1, 3, 2, 4, 5)).reshape(*images)


def _fold_kernel(kernel: Array, strides: Sequence[int]) -> Array:
    taps = [-(-kernel.shape[i] // strides[i]) for i in (0, 1)]
    missing = [(0, taps[i] * strides[i] - kernel.shape[i]) for i in (0, 1)]
    padded = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    split = padded.reshape(taps[0], strides[0], taps[1], strides[1], *kernel.shape[2:])
    folded = split.transpose(0, 2, 1, 3, 4, 5)
    return folded.reshape(*taps, strides[0] * strides[1] * kernel.shape[2], kernel.shape[3])
