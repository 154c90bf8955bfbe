"""Two-dimensional convolution, and the choice between its formulations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from dlc_jax.ops import columns, patches, spectral, strided, winograd
from dlc_jax.ops.differentiation import Parts, differentiable
from dlc_jax.ops.patches import out_shape
from dlc_jax.ops.windows import (
    Padding,
    Pads,
    check_window,
    covered,
    equally_varying,
    explicit_padding,
    integers,
    over_batches,
)

_NHWC = ("NHWC", "HWIO", "NHWC")
_LAYOUT = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), _NHWC)

# Each group is a convolution of its own, which pays while they are few.
_MOST_GROUPS = 4


def conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels/groups features"],
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    precision: lax.PrecisionLike = None,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width features"]:
    """Cross-correlates images with kernels, as deep learning's "convolution" does.

    On a CPU it takes the formulation that was measured to be fastest for such shapes: matrix
    products over patches, products in the frequency domain, Winograd's algorithms, rows of strided
    layers in pairs, or XLA's own. All are as near to the exact result as XLA's.

    Args:
      x: the images.
      kernel: the weights, of the same dtype as `x`.
      strides: steps between output positions, along height and width.
      padding: "SAME", "SAME_LOWER" or "VALID" as JAX has them, in upper or lower case, or
        ((top, bottom), (left, right)) in pixels, of which negative ones crop the images.
      precision: the switch to XLA's own convolution and gradients, with their rounding, on
        every platform: anything but None, as `jax.lax.Precision.HIGHEST`.
      groups: into how many parts channels and features are split, each part of the features
        reading its own part of the channels. Many small groups are left to XLA.

    Returns:
      The feature maps; equal to `jax.lax.conv_general_dilated` on the same arguments, up to
      rounding. Integers and complex numbers are left to XLA, and equal.

    Raises:
      ValueError: the shapes, dtypes, strides, padding or groups do not fit together.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    _check(x, kernel, groups)
    _, steps, pads = check_window("conv2d", x, kernel.shape[:2], strides, padding)
    if precision is not None or groups > _MOST_GROUPS or not covered(x, kernel, pads=pads):
        return _xla_conv2d(x, kernel, steps, pads, precision, groups)
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
    """`jax.lax.conv_general_dilated` with `conv2d`'s gradients where `conv2d` covers the case.

    It takes the same arguments, so that it can be handed to Flax:
    `nnx.Conv(..., conv_general_dilated=ops.conv_general_dilated)`. Whatever `conv2d` does
    not cover (dilation, other layouts, other ranks, integers) goes to XLA unchanged, and so
    does what JAX refuses.
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
    return dilation is None or integers(dilation) == (1, 1)


def _plain_window(
    lhs: Any, rhs: Any, window_strides: Any, padding: Any, dimension_numbers: Any
) -> tuple[tuple[int, int], Pads] | None:
    """Strides and padding where `_conv2d` covers images, kernel and layout, else None."""
    arrays = isinstance(lhs, (Array, np.ndarray)) and isinstance(rhs, (Array, np.ndarray))
    if not arrays or not lhs.ndim == rhs.ndim == 4 or dimension_numbers is None:
        return None
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    steps = integers(window_strides)
    if layout != _LAYOUT or steps is None or min(steps) < 1:
        return None
    images, kernel = jax.typeof(lhs), jax.typeof(rhs)
    pads = explicit_padding(lhs.shape[1:3], rhs.shape[:2], steps, padding)
    if pads is None or not covered(images, kernel, pads=pads) or images.dtype != kernel.dtype:
        return None
    # Where JAX wants to be told how the result is spread over devices, it is to say so itself.
    spread = any((*images.sharding.spec[1:], *kernel.sharding.spec))
    fits = min(out_shape(lhs.shape, rhs.shape, steps, pads)) > 0
    return (steps, pads) if fits and not spread else None


def _divides(groups: Any, channels: int, kernel_channels_and_features: Sequence[int]) -> bool:
    """Whether these are few enough groups, and the right number for the channels."""
    if not isinstance(groups, (int, np.integer)) or not 1 <= groups <= _MOST_GROUPS:
        return False
    of_kernel, features = kernel_channels_and_features
    return of_kernel * groups == channels and features % groups == 0


def _same_dtype(asked: Any, dtype: Any) -> bool:
    try:
        return bool(jnp.dtype(asked) == dtype)
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
        return _grouped(x, kernel, strides, pads, groups)
    return over_batches(partial(_convolve, strides=strides, padding=pads), x, kernel)


# Inlined where it is traced; called eagerly, it is one program.
@partial(jax.jit, static_argnames=("strides", "pads", "groups"), inline=True)
def _grouped(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads, groups: int) -> Array:
    parts = zip(jnp.split(x, groups, 3), jnp.split(kernel, groups, 3), strict=True)
    return jnp.concatenate([_conv2d(*part, strides, pads, 1) for part in parts], 3)


def _xla_conv2d(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    pads: Pads,
    precision: Any = None,
    groups: int = 1,
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=_NHWC,
        precision=precision,
        feature_group_count=groups,
    )


def _xla_input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    convolve = partial(_xla_conv2d, kernel=kernel, strides=strides, pads=pads)
    return _transposed(convolve, x_shape, grad)


def _xla_kernel_gradient(
    x: Array, grad: Array, kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    def convolve(kernel: Array) -> Array:
        return _xla_conv2d(x, kernel, strides, pads)

    return _transposed(convolve, kernel_shape, grad)


def _transposed(convolve: Callable[[Array], Array], shape: Sequence[int], grad: Array) -> Array:
    like = equally_varying(jnp.zeros(shape, grad.dtype), grad)[0]
    (result,) = jax.linear_transpose(convolve, like)(grad)
    return result


def _xla_gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    grad_x = _xla_input_gradient(kernel, grad, x.shape, strides, pads)
    return grad_x, _xla_kernel_gradient(x, grad, kernel.shape, strides, pads)


def _on_cpu(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: tuple[int, int],
    pads: Pads,
    *,
    dtype: Any,
    apart: bool,
) -> Any:
    """The module whose functions are fastest on a CPU; None for XLA's own operations."""
    del apart
    shapes = (x_shape, kernel_shape, strides, pads)
    if spectral.pays(*shapes):
        return spectral
    if winograd.pays(*shapes):
        return winograd
    if strided.pays(*shapes):
        return strided
    if patches.pays(*shapes, itemsize=jnp.dtype(dtype).itemsize):
        return patches
    return None


def _on_gpu(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: tuple[int, int],
    pads: Pads,
    *,
    dtype: Any,
    apart: bool,
) -> Any:
    """The same on a GPU."""
    shapes = (x_shape, kernel_shape, strides, pads)
    return (
        columns if columns.pays(*shapes, itemsize=jnp.dtype(dtype).itemsize, apart=apart) else None
    )


def _parts(choose: Callable[..., Any]) -> Parts:
    """The parts of a convolution by the formulation that is chosen for each of its shapes.

    Args:
      choose: as `_on_cpu`.
    """

    def convolve(x: Array, kernel: Array, strides: Any, pads: Pads, apart: bool) -> Array:
        chosen = choose(x.shape, kernel.shape, strides, pads, dtype=x.dtype, apart=apart)
        return (chosen.convolve if chosen else _xla_conv2d)(x, kernel, strides, pads)

    def input_gradient(
        kernel: Array, grad: Array, x_shape: Any, strides: Any, pads: Pads, apart: bool
    ) -> Array:
        chosen = choose(x_shape, kernel.shape, strides, pads, dtype=grad.dtype, apart=apart)
        function = chosen.input_gradient if chosen else _xla_input_gradient
        return function(kernel, grad, x_shape, strides, pads)

    def kernel_gradient(
        x: Array, grad: Array, kernel_shape: Any, strides: Any, pads: Pads, apart: bool
    ) -> Array:
        chosen = choose(x.shape, kernel_shape, strides, pads, dtype=grad.dtype, apart=apart)
        function = chosen.kernel_gradient if chosen else _xla_kernel_gradient
        return function(x, grad, kernel_shape, strides, pads)

    def gradients(
        x: Array, kernel: Array, grad: Array, strides: Any, pads: Pads, apart: bool
    ) -> tuple[Array, Array]:
        chosen = choose(x.shape, kernel.shape, strides, pads, dtype=grad.dtype, apart=apart)
        function = chosen.gradients if chosen else _xla_gradients
        return function(x, kernel, grad, strides, pads)

    return Parts(convolve, input_gradient, kernel_gradient, gradients)


# What a formulation makes of its arguments is not kept for the backward pass: on a CPU XLA finds
# that the latter makes the same of them, and does it once.
_convolve = differentiable(
    cpu=_parts(_on_cpu), gpu=_parts(_on_gpu), elsewhere=_parts(lambda *shapes, dtype, apart: None)
)
