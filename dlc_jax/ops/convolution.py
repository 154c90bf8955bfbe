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
from dlc_jax.ops.differentiation import differentiable
from dlc_jax.ops.windows import (
    Padding,
    Pads,
    call_with_auto_axes,
    check_window,
    explicit_padding,
    int_pair,
    is_supported,
    out_shape,
)

_LAYOUT = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), xla.NHWC)


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
    for similar shapes: oneDNN's, Winograd's, im2col, XLA's own and others (`dlc_jax.ops.choice`).
    All are as accurate as XLA's. XLA's own are used in programs that are exported by `jax.export`,
    or that XLA divides among devices.

    Args:
      x: Images.
      kernel: Weights, of the same dtype as `x`.
      strides: Steps between output positions, along height and width.
      padding: "SAME", "SAME_LOWER" or "VALID", in upper or lower case, or ((top, bottom),
        (left, right)) in pixels; negative padding crops the images.
      precision: If not None, XLA's own convolution of that `jax.lax.Precision` is used on every
        platform.
      groups: Number of groups of channels and features (`feature_group_count` in JAX).

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
    _check("conv2d", x, kernel, groups)
    _, steps, pads = check_window("conv2d", x, kernel.shape[:2], strides, padding)
    if precision is not None or not is_supported(x, kernel, pads=pads):
        return xla.convolve(x, kernel, steps, pads, precision, groups)
    return _conv2d(x, kernel, steps, pads, int(groups))


def conv_transpose(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width features"]:
    """Transposed convolution, with the values of `jax.lax.conv_transpose`.

    It is the gradient of a convolution with respect to its images, and as fast as `conv2d`.

    Args:
      x: Images.
      kernel: Weights, of the same dtype as `x`.
      strides: Steps between the pixels of `x` in the result, along height and width.
      padding: "SAME", for images larger by the strides, "VALID", for all positions that a pixel
        contributes to, or ((top, bottom), (left, right)), the padding of the images that strides
        have spread out.

    Raises:
      ValueError: The shapes, dtypes, strides or padding do not fit together.

    Example:
      >>> conv_transpose(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1)), (2, 2)).shape
      (1, 4, 4, 1)
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    _check("conv_transpose", x, kernel, 1)
    steps, pads = _transpose_window(kernel.shape, strides, padding)
    # The convolution of which this is a gradient.
    sizes = [(x.shape[1 + i] - 1) * steps[i] + 2 + sum(pads[i]) - kernel.shape[i] for i in (0, 1)]
    if min(sizes) < 1:
        raise ValueError(
            f"conv_transpose: a kernel of {kernel.shape[:2]} does not fit into images of "
            f"{x.shape[1]}x{x.shape[2]} with padding {padding!r}"
        )
    outer = [(kernel.shape[i] - 1 - pads[i][0], kernel.shape[i] - 1 - pads[i][1]) for i in (0, 1)]
    forward: Pads = ((outer[0][0], max(0, outer[0][1])), (outer[1][0], max(0, outer[1][1])))
    shape = len(x), sizes[0], sizes[1], kernel.shape[3]
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    same = out_shape(shape, flipped.shape, steps, forward) == x.shape
    if not same or not is_supported(x, kernel, pads=forward):
        return lax.conv_transpose(x, kernel, steps, pads, dimension_numbers=xla.NHWC)

    def gradient(x: Array, flipped: Array) -> Array:
        return _operations.input_gradient(
            flipped, x, shape, strides=steps, padding=forward, groups=1
        )

    return call_with_auto_axes(gradient, x, flipped)


def _transpose_window(
    kernel_shape: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], Pads]:
    """Strides and padding of a transposed convolution as integers."""
    steps = int_pair(strides)
    if steps is None or min(steps) < 1:
        raise ValueError(f"conv_transpose: strides {strides!r} must be two integers of at least 1")
    if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
        pairs = zip(kernel_shape[:2], steps, strict=True)
        height, width = (_transpose_pads(*pair, padding.upper()) for pair in pairs)
        return steps, (height, width)
    pads = None if isinstance(padding, str) else explicit_padding((), (), (), padding)
    if pads is None:
        raise ValueError(
            f'conv_transpose: padding {padding!r} is none of "SAME", "VALID" and '
            "((top, bottom), (left, right)) in integers"
        )
    return steps, pads


def _transpose_pads(size: int, stride: int, padding: str) -> tuple[int, int]:
    """The padding along an axis, as `jax.lax.conv_transpose` has it."""
    total = size + stride - 2
    if padding == "VALID":
        return size - 1, total + max(size - stride, 0) - (size - 1)
    before = size - 1 if stride > size - 1 else -(-total // 2)
    return before, total - before


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
    """Whether the groups divide the channels and features."""
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        return False
    kernel_channels, features = kernel_channels_and_features
    return kernel_channels * groups == channels and features % groups == 0


def _same_dtype(requested: Any, dtype: Any) -> bool:
    try:
        return bool(jnp.dtype(requested) == dtype)
    except TypeError:
        return False


def _check(name: str, x: Array, kernel: Array, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"{name} takes images of 4 dimensions (NHWC) and a kernel of 4 (HWIO), "
            f"not shapes {x.shape} and {kernel.shape}"
        )
    if groups < 1 or x.shape[3] % groups or kernel.shape[3] % groups:
        raise ValueError(
            f"{name}: {groups} groups do not divide {x.shape[3]} channels and "
            f"{kernel.shape[3]} features"
        )
    if x.shape[3] // groups != kernel.shape[2]:
        raise ValueError(
            f"{name}: the images have {x.shape[3]} channels, but the kernel, of shape "
            f"{kernel.shape}, takes {kernel.shape[2] * groups}"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"{name}: images of {x.dtype} and a kernel of {kernel.dtype}; cast one")


def _conv2d(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads, groups: int) -> Array:
    function = partial(_operations.convolve, strides=strides, padding=pads, groups=groups)
    return call_with_auto_axes(function, x, kernel)


# Transformed arguments are not saved for the backward pass: XLA:CPU finds that it computes them
# again, and computes them once.
_operations = differentiable(cpu=choice.on_cpu(), gpu=choice.on_gpu(), default=choice.always_xla())
