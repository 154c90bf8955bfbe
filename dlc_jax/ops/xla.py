"""XLA's own convolution and its gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from dlc_jax.ops.windows import Pads, match_varying_axes

NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    pads: Pads,
    precision: Any = None,
    groups: int = 1,
) -> Array:
    """The convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=NHWC,
        precision=precision,
        feature_group_count=groups,
    )


def input_gradient(
    kernel: Array,
    grad: Array,
    x_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    groups: int = 1,
) -> Array:
    """The gradient with respect to the images, as JAX derives it."""

    def of_images(x: Array) -> Array:
        return convolve(x, kernel, strides, pads, groups=groups)

    return _transpose(of_images, x_shape, grad)


def kernel_gradient(
    x: Array,
    grad: Array,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    groups: int = 1,
) -> Array:
    """The gradient with respect to the kernel, as JAX derives it."""

    def of_kernel(kernel: Array) -> Array:
        return convolve(x, kernel, strides, pads, groups=groups)

    return _transpose(of_kernel, kernel_shape, grad)


def _transpose(linear: Callable[[Array], Array], shape: Sequence[int], grad: Array) -> Array:
    like = match_varying_axes(jnp.zeros(shape, grad.dtype), grad)[0]
    (result,) = jax.linear_transpose(linear, like)(grad)
    return result
