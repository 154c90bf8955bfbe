"""Convolution as matrix products over patches: what each output position reads.

In what follows, barriers keep XLA from merging the gathering of patches into other work
before it has decided which products it hands to its fast library.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.windows import Pads, over_chunks, slices

# Patches of a whole batch up to the first size in bytes are gathered at once. Larger ones
# are gathered for a few images at a time, about the second size, which stay in the cache.
_LARGEST_WHOLE, _CHUNK = 16 * 2**20, 2 * 2**20
# An image whose patches are larger than this is left to XLA.
_LARGEST_IMAGE = 64 * 2**20

# With fewer channels than this, patches are gathered a few bytes at a time. Their transpose
# is then gathered for its own sake, and several output columns share one patch.
_FEWEST_CHANNELS = 8

# A product with this many columns runs at its full rate.
_FULL_COLUMNS = 128


def pays(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    *,
    itemsize: int,
) -> bool:
    """Whether this formulation is faster than XLA's own on a CPU."""
    out = out_shape(x_shape, kernel_shape, strides, pads)
    return _bytes_an_image(kernel_shape, out, itemsize) <= _LARGEST_IMAGE


def convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The convolution as one product, patches @ kernel, for as many images as the cache holds."""
    out = out_shape(x.shape, kernel.shape, strides, pads)

    def some(x: Array) -> tuple[Array, None]:
        return _convolve(x, kernel, strides, pads), None

    y, _ = over_chunks(some, _images_at_once(kernel.shape, out, x.dtype.itemsize), x)
    return y


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images, one product."""

    def some(grad: Array) -> tuple[Array, None]:
        return _grad_of_images(x_shape, kernel, grad, strides, pads), None

    most = _images_at_once(kernel.shape, grad.shape, grad.dtype.itemsize)
    grad_x, _ = over_chunks(some, most, grad)
    return grad_x


def kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the kernel, one product."""

    def some(x: Array, grad: Array) -> tuple[None, Array]:
        return None, _grad_of_kernel(x, kernel_shape, grad, strides, pads)

    most = _images_at_once(kernel_shape, grad.shape, x.dtype.itemsize)
    _, grad_kernel = over_chunks(some, most, x, grad)
    return grad_kernel.astype(x.dtype)


def gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    """Both gradients, for the same few images at a time."""

    def some(x: Array, grad: Array) -> tuple[Array, Array]:
        grad_x = _grad_of_images(x.shape, kernel, grad, strides, pads)
        return grad_x, _grad_of_kernel(x, kernel.shape, grad, strides, pads)

    most = _images_at_once(kernel.shape, grad.shape, x.dtype.itemsize)
    grad_x, grad_kernel = over_chunks(some, most, x, grad)
    return grad_x, grad_kernel.astype(kernel.dtype)


def _bytes_an_image(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    return math.prod(out[1:3]) * math.prod(kernel_shape[:3]) * itemsize


def _images_at_once(kernel_shape: Sequence[int], out: Sequence[int], itemsize: int) -> int:
    size = _bytes_an_image(kernel_shape, out, itemsize)
    return out[0] if out[0] * size <= _LARGEST_WHOLE else max(1, _CHUNK // size)


def _convolve(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    out = out_shape(x.shape, kernel.shape, strides, pads)
    shared = _columns_a_patch(kernel.shape, out, strides)
    patches = _patches(x, kernel.shape, out, strides, pads, shared)
    product = lax.optimization_barrier(patches @ _widened(kernel, shared))
    return product.reshape(out)


def _grad_of_kernel(
    x: Array, kernel_shape: Sequence[int], grad: Array, strides: Sequence[int], pads: Pads
) -> Array:
    """Each product of a tap and a feature, summed over positions."""
    flat_grad = lax.optimization_barrier(grad).reshape(-1, kernel_shape[3])
    if kernel_shape[2] < _FEWEST_CHANNELS:
        taps = _taps(x, kernel_shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(taps @ flat_grad)
    else:
        patches = _patches(x, kernel_shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(flat_grad.T @ patches).T
    return grad_kernel.reshape(kernel_shape)


def out_shape(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> tuple[int, int, int, int]:
    """The shape of the convolution's result."""
    height, width = (
        (x_shape[1 + i] + sum(pads[i]) - kernel_shape[i]) // strides[i] + 1 for i in (0, 1)
    )
    return x_shape[0], height, width, kernel_shape[3]


def _columns_a_patch(
    kernel_shape: Sequence[int], out: Sequence[int], strides: Sequence[int]
) -> int:
    """How many neighbouring output columns share a patch, which makes the product wider."""
    if kernel_shape[2] >= _FEWEST_CHANNELS or strides[1] != 1:
        return 1
    most = max(1, _FULL_COLUMNS // kernel_shape[3])
    return max(count for count in (1, 2, 4) if count <= most and out[2] % count == 0)


def _widened(kernel: Array, shared: int) -> Array:
    """The kernel once for each of the `shared` columns, each a column further to the right.

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
    """What each `shared` output columns read, [positions, height * width * channels].

    Gathered along the width first, then along the height, it moves far fewer bytes than
    a slice for each pixel of a patch.
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
    """The transpose of `_patches`, gathered as such: it keeps whole rows of pixels together."""
    channels_first = jnp.pad(x, ((0, 0), *pads, (0, 0))).transpose(3, 0, 1, 2)
    rows = jnp.concatenate(slices(channels_first, 3, kernel_shape[1], out[2], strides[1]))
    rows = lax.optimization_barrier(rows)
    taps = jnp.concatenate(slices(rows, 2, kernel_shape[0], out[1], strides[0]))
    return lax.optimization_barrier(taps).reshape(math.prod(kernel_shape[:3]), -1)


def _grad_of_images(
    x_shape: Sequence[int], kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> Array:
    """Each position's gradient with respect to its patch, added up where patches overlap."""
    kernel_height, kernel_width, channels, features = kernel.shape
    flat_grad = lax.optimization_barrier(grad).reshape(-1, features)
    grad_patches = lax.optimization_barrier(flat_grad @ kernel.reshape(-1, features).T)
    (top, bottom), (left, right) = pads
    height, width = x_shape[1:3]
    grad_rows = unsliced(
        grad_patches.reshape(*grad.shape[:3], kernel_height, kernel_width * channels),
        axis=1,
        size=top + height + bottom,
        stride=strides[0],
    )
    grad_rows = lax.optimization_barrier(grad_rows)
    grad_padded = unsliced(
        grad_rows.reshape(*grad_rows.shape[:3], kernel_width, channels),
        axis=2,
        size=left + width + right,
        stride=strides[1],
    )
    return grad_padded[:, top : top + height, left : left + width]


def unsliced(x: Array, axis: int, size: int, stride: int) -> Array:
    """The transpose of `slices`: adds the taps, which lie along `x`'s axis 3, back in place."""
    taps, count = x.shape[3], -(-size // stride)
    # Taps that lie a multiple of the stride apart fall on the same pixels.
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
