"""Two-dimensional convolution."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from dlc_jax.ops import choice, xla
from dlc_jax.ops.differentiation import differentiable_conv2d
from dlc_jax.ops.im2col import out_shape
from dlc_jax.ops.windows import (
    Padding,
    Pads,
    call_with_auto_axes,
    check_window,
    explicit_padding,
    int_pair,
    is_supported,
)

_LAYOUT = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), xla.NHWC)

# Each group is a separate convolution, which is slow for many groups.
_MAX_GROUPS = 4


def conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels/groups features"],
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    precision: lax.PrecisionLike = None,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolution (cross-correlation) of images with kernels.

    On a CPU, the forward pass and each gradient use the algorithm that was measured to be fastest
    for the shapes: im2col, products in the frequency domain, one of Winograd's algorithms, XLA's
    own, and others (`dlc_jax.ops.choice`). All are as accurate as XLA's.

    Args:
      x: Images.
      kernel: Weights, of the same dtype as `x`.
      strides: Steps between output positions, along height and width.
      padding: "SAME", "SAME_LOWER" or "VALID", in upper or lower case, or ((top, bottom),
        (left, right)) in pixels; negative padding crops the images.
      precision: If not None, XLA's own convolution of that `jax.lax.Precision` is used on every
        platform.
      groups: Number of groups of channels and features (`feature_group_count` in JAX). More than
        four groups are left to XLA.

    Returns:
      The feature maps: those of `jax.lax.conv_general_dilated`, up to rounding. Integers and
      complex numbers are left to XLA.

    Raises:
      ValueError: The shapes, dtypes, strides, padding or groups do not fit together.

    Example:
      >>> conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1)), padding="VALID")[0, :, :, 0]
      Array([[4., 4.],
             [4., 4.]], dtype=float32)
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    _check(x, kernel, groups)
    _, steps, pads = check_window("conv2d", x, kernel.shape[:2], strides, padding)
    if precision is not None or groups > _MAX_GROUPS or not is_supported(x, kernel, pads=pads):
        return xla.convolve(x, kernel, steps, pads, precision, groups)
    return _conv2d(x, kernel, steps, pads, int(groups))


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """Drop-in replacement of `jax.lax.conv_general_dilated` that uses `conv2d` where it can.

    Flax accepts it: `nnx.Conv(..., conv_general_dilated=ops.conv_general_dilated)`. Arguments that
    `conv2d` does not support (dilation, other layouts or ranks, integers) are passed to JAX
    unchanged, as are invalid ones.

    Example:
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
      >>> conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
      Array([[[[9.]]]], dtype=float32)
    """
    plain = (
        batch_group_count == 1
        and precision is None
        and out_sharding is None
        and _all_ones(lhs_dilation)
        and _all_ones(rhs_dilation)
    )
    window = _plain_window(lhs, rhs, window_strides, padding, dimension_numbers) if plain else None
    if (
        window is not None
        and _divides(feature_group_count, lhs.shape[3], rhs.shape[2:])
        and (preferred_element_type is None or _same_dtype(preferred_element_type, lhs.dtype))
    ):
        return _conv2d(jnp.asarray(lhs), jnp.asarray(rhs), *window, int(feature_group_count))
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
        out_sharding,
    )


def _all_ones(dilation: Any) -> bool:
    return dilation is None or int_pair(dilation) == (1, 1)


def _plain_window(
    lhs: Any, rhs: Any, window_strides: Any, padding: Any, dimension_numbers: Any
) -> tuple[tuple[int, int], Pads] | None:
    """Strides and padding if `_conv2d` supports images, kernel and layout, else None."""
    arrays = isinstance(lhs, (Array, np.ndarray)) and isinstance(rhs, (Array, np.ndarray))
    if not arrays or not lhs.ndim == rhs.ndim == 4 or dimension_numbers is None:
        return None
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    steps = int_pair(window_strides)
    if layout != _LAYOUT or steps is None or min(steps) < 1:
        return None
    images, kernel = jax.typeof(lhs), jax.typeof(rhs)
    pads = explicit_padding(lhs.shape[1:3], rhs.shape[:2], steps, padding)
    if pads is None or not is_supported(images, kernel, pads=pads) or images.dtype != kernel.dtype:
        return None
    # JAX raises an error for these shardings unless out_sharding is given.
    sharded = any((*images.sharding.spec[1:], *kernel.sharding.spec))
    fits = min(out_shape(lhs.shape, rhs.shape, steps, pads)) > 0
    return (steps, pads) if fits and not sharded else None


def _divides(groups: Any, channels: int, kernel_channels_and_features: Sequence[int]) -> bool:
    """Whether there are few groups, which divide the channels and features."""
    if not isinstance(groups, (int, np.integer)) or not 1 <= groups <= _MAX_GROUPS:
        return False
    kernel_channels, features = kernel_channels_and_features
    return kernel_channels * groups == channels and features % groups == 0


def _same_dtype(requested: Any, dtype: Any) -> bool:
    try:
        return bool(jnp.dtype(requested) == dtype)
    except TypeError:
        return False


def _check(x: Array, kernel: Array, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "conv2d takes images of 4 dimensions (NHWC) and a kernel of 4 (HWIO), "
            f"not shapes {x.shape} and {kernel.shape}"
        )
    if groups < 1 or x.shape[3] % groups or kernel.shape[3] % groups:
        raise ValueError(
            f"conv2d: {groups} groups do not divide {x.shape[3]} channels and "
            f"{kernel.shape[3]} features"
        )
    if x.shape[3] // groups != kernel.shape[2]:
        raise ValueError(
            f"conv2d: the images have {x.shape[3]} channels, but the kernel, of shape "
            f"{kernel.shape}, takes {kernel.shape[2] * groups}"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv2d: images of {x.dtype} and a kernel of {kernel.dtype}; cast one")


def _conv2d(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads, groups: int) -> Array:
    if groups > 1:
        return _conv2d_in_groups(x, kernel, strides, pads, groups)
    return call_with_auto_axes(partial(_convolve, strides=strides, padding=pads), x, kernel)


# A single program when called eagerly.
@partial(jax.jit, static_argnames=("strides", "pads", "groups"), inline=True)
def _conv2d_in_groups(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Pads, groups: int
) -> Array:
    parts = zip(jnp.split(x, groups, 3), jnp.split(kernel, groups, 3), strict=True)
    return jnp.concatenate([_conv2d(*part, strides, pads, 1) for part in parts], 3)


# Transformed arguments are not saved for the backward pass: XLA:CPU finds that it computes them
# again, and computes them once.
_convolve = differentiable_conv2d(
    cpu=choice.on_cpu(), gpu=choice.on_gpu(), default=choice.always_xla()
)
