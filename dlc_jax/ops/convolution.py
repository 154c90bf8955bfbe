"""Two-dimensional convolution, and the choice between its formulations."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from dlc_jax.ops import patches, spectral, strided, winograd
from dlc_jax.ops.windows import Padding, Pads, check_window, explicit_padding, over_batches

_NHWC = ("NHWC", "HWIO", "NHWC")

# Each group is a convolution of its own, which pays while they are few.
_MOST_GROUPS = 4


def conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels/groups features"],
    strides: tuple[int, int] = (1, 1),
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
      padding: "SAME", "VALID", or ((top, bottom), (left, right)) in pixels.
      precision: the switch to XLA's own convolution and gradients, with their rounding, on
        every platform: anything but None, as `jax.lax.Precision.HIGHEST`.
      groups: into how many parts channels and features are split, each part of the features
        reading its own part of the channels. Many small groups are left to XLA.

    Returns:
      The feature maps; equal to `jax.lax.conv_general_dilated` on the same arguments, up to
      rounding.

    Raises:
      ValueError: the shapes, dtypes, strides, padding or groups do not fit together.
    """
    _check(x, kernel, strides, padding, groups)
    pads = explicit_padding(x.shape[1:3], kernel.shape[:2], strides, padding)
    steps = (int(strides[0]), int(strides[1]))
    if precision is not None or groups > _MOST_GROUPS:
        return _xla_conv2d(x, kernel, steps, pads, precision, groups)
    if groups > 1:
        parts = zip(jnp.split(x, groups, 3), jnp.split(kernel, groups, 3), strict=True)
        return jnp.concatenate([conv2d(*part, strides, padding) for part in parts], 3)
    return over_batches(lambda x, kernel: _conv2d(x, kernel, steps, pads), x, kernel)


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
    not cover (dilation, other layouts, other ranks) goes to XLA unchanged.
    """
    plain = (
        lhs.ndim == 4
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and dimension_numbers is not None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and batch_group_count == 1
        and precision is None
        and preferred_element_type in (None, lhs.dtype)
        and lhs.dtype == rhs.dtype
        and out_sharding is None
        and padding != "SAME_LOWER"
        and min(rhs.shape) > 0
    )
    if plain:
        strides = (window_strides[0], window_strides[1])
        return conv2d(lhs, rhs, strides, padding, groups=feature_group_count)
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


def _check(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Padding, groups: int
) -> None:
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
    check_window("conv2d", x, kernel.shape[:2], strides, padding)


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


def _xla_gradients(
    x: Array, kernel: Array, grad: Array, strides: Sequence[int], pads: Pads
) -> tuple[Array, Array]:
    _, vjp = jax.vjp(partial(_xla_conv2d, strides=strides, pads=pads), x, kernel)
    return vjp(grad)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    xla = partial(_xla_conv2d, strides=strides, pads=pads)
    formulation = _formulation(x, kernel, strides, pads)
    if formulation is None:
        return xla(x, kernel)
    ours = partial(formulation.convolve, strides=strides, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=ours, default=xla)


def _conv2d_forward(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    # What the formulation makes of them is not kept: on a CPU XLA finds that the backward
    # pass makes the same of them, and does it once.
    return _conv2d(x, kernel, strides, pads), (x, kernel)


def _conv2d_backward(
    strides: tuple[int, int], pads: Pads, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    xla = partial(_xla_gradients, strides=strides, pads=pads)
    formulation = _formulation(x, kernel, strides, pads)
    if formulation is None:
        return xla(x, kernel, grad)
    ours = partial(formulation.gradients, strides=strides, pads=pads)
    return lax.platform_dependent(x, kernel, grad, cpu=ours, default=xla)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _formulation(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Any:
    """The module whose `convolve` and `gradients` are fastest on a CPU; None for XLA's own."""
    shapes = (x.shape, kernel.shape, strides, pads)
    if spectral.pays(*shapes):
        return spectral
    if winograd.pays(*shapes):
        return winograd
    if strided.pays(*shapes):
        return strided
    if patches.pays(*shapes, itemsize=x.dtype.itemsize):
        return patches
    return None
