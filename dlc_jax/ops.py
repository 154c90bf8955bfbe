"""Convolution and max-pooling whose gradients are fast on a CPU.

XLA:CPU computes these operations' values quickly and their gradients slowly, and inside
`lax.scan` several times more slowly again. Each function here computes XLA's values and
chooses the formulation of its gradient when it is lowered: ours on a CPU, XLA's own
elsewhere. This module needs nothing but JAX.

Layouts are Flax's: images are NHWC (batch, height, width, channels), kernels are HWIO
(height, width, input channels, output channels).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Padding: TypeAlias = str | Sequence[tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")

# Past this size the patches of a whole batch no longer pay: they are read and written
# from memory, and XLA's own formulations are faster.
_LARGEST_PATCHES = 32 * 2**20

# With fewer channels than this, patches are gathered a few bytes at a time, and XLA's
# convolution and a transposed layout of the patches are faster.
_FEWEST_CHANNELS = 8


def conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width features"]:
    """Cross-correlates images with kernels, as deep learning's "convolution" does.

    Args:
      x: the images.
      kernel: the weights, of the same dtype as `x`.
      strides: steps between output positions, along height and width.
      padding: "SAME", "VALID", or ((top, bottom), (left, right)) in pixels.

    Returns:
      The feature maps; equal to `jax.lax.conv_general_dilated` on the same arguments.

    Raises:
      ValueError: the shapes, dtypes, strides or padding do not fit together.
    """
    _check_conv(x, kernel, strides, padding)
    pads = _explicit_padding(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv2d(x, kernel, (int(strides[0]), int(strides[1])), pads)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` with `conv2d`'s gradients where `conv2d` covers the case.

    It takes the same arguments, so that it can be handed to Flax:
    `nnx.Conv(..., conv_general_dilated=ops.conv_general_dilated)`. Whatever `conv2d` does
    not cover (dilation, groups, other layouts, other ranks) goes to XLA unchanged.
    """
    plain = (
        lhs.ndim == 4
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and dimension_numbers is not None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and feature_group_count == batch_group_count == 1
        and precision is None
        and preferred_element_type in (None, lhs.dtype)
        and lhs.dtype == rhs.dtype
        and out_sharding is None
        and padding != "SAME_LOWER"
        and min(rhs.shape) > 0
    )
    if plain:
        return conv2d(lhs, rhs, (window_strides[0], window_strides[1]), padding)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        # Older releases of JAX do not know this argument.
        **({} if out_sharding is None else {"out_sharding": out_sharding}),
    )


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """The largest value of each window.

    Where several values of a window are equally large, the gradient goes to the first of
    them in row-major order, as PyTorch's does.

    Args:
      x: feature maps.
      window: height and width of a window in pixels.
      strides: steps between windows; by default the windows touch and do not overlap.
      padding: "VALID" (rows and columns that fill no window are left out), "SAME", or
        ((top, bottom), (left, right)) in pixels.

    Raises:
      ValueError: the window does not fit, or strides or padding are malformed.
    """
    strides = window if strides is None else strides
    _check_pool(x, window, strides, padding)
    pads = _explicit_padding(x.shape[1:3], window, strides, padding)
    if tuple(strides) == tuple(window) and pads == ((0, 0), (0, 0)):
        height, width = (x.shape[1 + i] // window[i] * window[i] for i in range(2))
        return _max_pool_tiles(x[:, :height, :width], (int(window[0]), int(window[1])))
    return _xla_max_pool(x, window, strides, pads)


# --- convolution ------------------------------------------------------------------------


def _check_conv(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "conv2d takes images of 4 dimensions (NHWC) and a kernel of 4 (HWIO), "
            f"not shapes {x.shape} and {kernel.shape}"
        )
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"conv2d: the images have {x.shape[3]} channels, but the kernel, of shape "
            f"{kernel.shape}, takes {kernel.shape[2]}"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv2d: images of {x.dtype} and a kernel of {kernel.dtype}; cast one")
    _check_window("conv2d", x, kernel.shape[:2], strides, padding)


def _check_pool(x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding) -> None:
    if x.ndim != 4:
        raise ValueError(f"max_pool takes feature maps of 4 dimensions (NHWC), not {x.shape}")
    _check_window("max_pool", x, window, strides, padding)


def _check_window(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding
) -> None:
    if len(window) != 2 or len(strides) != 2 or min(*window, *strides) < 1:
        raise ValueError(
            f"{name}: window {tuple(window)} and strides {tuple(strides)} must each be two "
            "integers of at least 1"
        )
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'{name}: padding {padding!r} is neither "SAME" nor "VALID"')
    elif len(padding) != 2 or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise ValueError(
            f"{name}: padding {padding!r} is not ((top, bottom), (left, right)) of at least 0"
        )
    pads = _explicit_padding(x.shape[1:3], window, strides, padding)
    if any(size + sum(pad) < w for size, w, pad in zip(x.shape[1:3], window, pads, strict=True)):
        raise ValueError(
            f"{name}: a window of {tuple(window)} does not fit into images of "
            f"{x.shape[1]}x{x.shape[2]} with padding {padding!r}"
        )


def _explicit_padding(
    shape: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape, window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _xla_conv2d(x: Array, kernel: Array, strides: Sequence[int], pads: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: Array, kernel: Array, strides: tuple[int, int], pads: Any) -> Array:
    xla = partial(_xla_conv2d, strides=strides, pads=pads)
    if x.shape[3] < _FEWEST_CHANNELS or not _patches_pay(jax.eval_shape(xla, x, kernel), kernel):
        return xla(x, kernel)
    patches = partial(_conv2d_by_patches, strides=strides, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=patches, default=xla)


def _conv2d_forward(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Any
) -> tuple[Array, tuple[Array, Array]]:
    # The patches are not kept: on a CPU XLA finds that the backward pass gathers the same
    # ones, and does it once.
    return _conv2d(x, kernel, strides, pads), (x, kernel)


def _conv2d_backward(
    strides: tuple[int, int], pads: Any, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals

    def xla(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        _, vjp = jax.vjp(partial(_xla_conv2d, strides=strides, pads=pads), x, kernel)
        return vjp(grad)

    if not _patches_pay(grad, kernel):
        return xla(x, kernel, grad)
    patches = partial(_conv2d_backward_by_patches, strides=strides, pads=pads)
    return lax.platform_dependent(x, kernel, grad, cpu=patches, default=xla)


def _patches_pay(out: Array | jax.ShapeDtypeStruct, kernel: Array) -> bool:
    positions = math.prod(out.shape[:3])
    return positions * kernel[..., 0].size * kernel.dtype.itemsize <= _LARGEST_PATCHES


# In what follows, barriers keep XLA from fusing the gathering of patches into the products,
# which would make it run its slow general product instead of the fast one.


def _conv2d_by_patches(x: Array, kernel: Array, strides: tuple[int, int], pads: Any) -> Array:
    out_shape = jax.eval_shape(partial(_xla_conv2d, strides=strides, pads=pads), x, kernel).shape
    patches = _patches(x, kernel.shape, out_shape, strides, pads)
    out = lax.optimization_barrier(patches @ kernel.reshape(-1, kernel.shape[3]))
    return out.reshape(out_shape)


def _conv2d_backward_by_patches(
    x: Array, kernel: Array, grad: Array, strides: tuple[int, int], pads: Any
) -> tuple[Array, Array]:
    """Both gradients as one matrix product each, over all patches of the batch."""
    kernel_height, kernel_width, channels, features = kernel.shape
    flat_grad = lax.optimization_barrier(grad).reshape(-1, features)
    if channels < _FEWEST_CHANNELS:
        taps = _taps(x, kernel.shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(taps @ flat_grad)
    else:
        patches = _patches(x, kernel.shape, grad.shape, strides, pads)
        grad_kernel = lax.optimization_barrier(flat_grad.T @ patches).T

    grad_patches = lax.optimization_barrier(flat_grad @ kernel.reshape(-1, features).T)
    (top, bottom), (left, right) = pads
    height, width = x.shape[1:3]
    grad_rows = _unshifted(
        grad_patches.reshape(*grad.shape[:3], kernel_height, kernel_width * channels),
        axis=1,
        size=top + height + bottom,
        stride=strides[0],
    )
    grad_rows = lax.optimization_barrier(grad_rows)
    grad_padded = _unshifted(
        grad_rows.reshape(*grad_rows.shape[:3], kernel_width, channels),
        axis=2,
        size=left + width + right,
        stride=strides[1],
    )
    grad_x = grad_padded[:, top : top + height, left : left + width]
    return grad_x, grad_kernel.reshape(kernel.shape)


def _patches(
    x: Array, kernel_shape: Sequence[int], out_shape: Sequence[int], strides: Any, pads: Any
) -> Array:
    """What each output position reads, [positions, kernel_height * kernel_width * channels].

    Gathered along the width first, then along the height, it moves far fewer bytes than
    kernel_height * kernel_width slices at once.
    """
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = _shifted(padded, 2, kernel_shape[1], out_shape[2], strides[1])
    rows = lax.optimization_barrier(jnp.concatenate(rows, axis=3))
    patches = _shifted(rows, 1, kernel_shape[0], out_shape[1], strides[0])
    patches = lax.optimization_barrier(jnp.concatenate(patches, axis=3))
    return patches.reshape(math.prod(out_shape[:3]), -1)


def _taps(
    x: Array, kernel_shape: Sequence[int], out_shape: Sequence[int], strides: Any, pads: Any
) -> Array:
    """The transpose of `_patches`, gathered as such: it keeps whole rows of pixels together."""
    channels_first = jnp.pad(x, ((0, 0), *pads, (0, 0))).transpose(3, 0, 1, 2)
    rows = _shifted(channels_first, 3, kernel_shape[1], out_shape[2], strides[1])
    rows = lax.optimization_barrier(jnp.stack(rows))
    taps = _shifted(rows, 3, kernel_shape[0], out_shape[1], strides[0])
    taps = lax.optimization_barrier(jnp.stack(taps))
    return taps.reshape(math.prod(kernel_shape[:3]), -1)


def _shifted(x: Array, axis: int, taps: int, count: int, stride: int) -> list[Array]:
    """For each tap of the kernel along `axis`, the `count` values of `x` that it reads."""
    last = (count - 1) * stride + 1
    return [lax.slice_in_dim(x, tap, tap + last, stride, axis) for tap in range(taps)]


def _unshifted(x: Array, axis: int, size: int, stride: int) -> Array:
    """The transpose of `_shifted`: adds the taps, which lie along `x`'s axis 3, back in place."""
    total = None
    for tap in range(x.shape[3]):
        piece = x[:, :, :, tap]
        last = (piece.shape[axis] - 1) * stride + 1
        config = [(0, 0, 0)] * piece.ndim
        config[axis] = (tap, size - tap - last, stride - 1)
        piece = lax.pad(piece, jnp.zeros((), x.dtype), config)
        total = piece if total is None else total + piece
    assert total is not None
    return total


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


# --- max-pooling ------------------------------------------------------------------------


def _xla_max_pool(x: Array, window: Sequence[int], strides: Sequence[int], pads: Any) -> Array:
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )


def _tiles(x: Array, window: tuple[int, int]) -> Array:
    batch, height, width, channels = x.shape
    rows, columns = window
    return x.reshape(batch, height // rows, rows, width // columns, columns, channels)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_tiles(x: Array, window: tuple[int, int]) -> Array:
    """Max-pooling over windows that tile the image exactly."""

    def reshaped(x: Array) -> Array:
        return lax.optimization_barrier(_tiles(x, window).max((2, 4)))

    def xla(x: Array) -> Array:
        return _xla_max_pool(x, window, window, ((0, 0), (0, 0)))

    return lax.platform_dependent(x, cpu=reshaped, default=xla)


def _max_pool_tiles_forward(x: Array, window: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    maxima = _max_pool_tiles(x, window)
    return maxima, (x, maxima)


def _max_pool_tiles_backward(
    window: tuple[int, int], residuals: tuple[Array, Array], grad: Array
) -> tuple[Array]:
    x, maxima = residuals

    def compared(x: Array, maxima: Array, grad: Array) -> Array:
        rows, columns = window
        place = jnp.arange(rows * columns, dtype=jnp.int32).reshape(1, 1, rows, 1, columns, 1)
        is_maximum = _tiles(x, window) == maxima[:, :, None, :, None]
        first = jnp.where(is_maximum, place, rows * columns).min((2, 4))
        first = lax.optimization_barrier(first)[:, :, None, :, None]
        spread = jnp.where(place == first, grad[:, :, None, :, None], 0)
        return lax.optimization_barrier(spread.reshape(x.shape))

    def xla(x: Array, maxima: Array, grad: Array) -> Array:
        del maxima
        _, vjp = jax.vjp(lambda x: _xla_max_pool(x, window, window, ((0, 0), (0, 0))), x)
        return vjp(grad)[0]

    return (lax.platform_dependent(x, maxima, grad, cpu=compared, default=xla),)


_max_pool_tiles.defvjp(_max_pool_tiles_forward, _max_pool_tiles_backward)
