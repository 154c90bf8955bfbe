"""The gradient of a convolution's images as forward convolutions, for CPUs.

The pixels whose positions have the same remainders by the strides form a phase of the padded
images. The gradient of a phase is the convolution, of stride 1, of the result's gradient with
the flipped taps of the kernel that read this phase. XLA's forward convolutions are faster than
the dilated ones that it uses for these gradients. With stride 1 there is one phase.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from dlc_jax.ops import xla
from dlc_jax.ops.windows import Pads


def input_gradient(
    kernel: Array,
    grad: Array,
    x_shape: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    convolve: Callable[..., Array] = xla.convolve,
    groups: int = 1,
) -> Array:
    """The gradient with respect to the images; `convolve` computes the forward convolutions."""
    batch, height, width, channels = x_shape
    (top, _), (left, _) = pads
    rows, columns = -(-(top + height) // strides[0]), -(-(left + width) // strides[1])
    grad, flipped = grad[:, :rows, :columns], _flipped(kernel, groups)

    def phase(row: int, column: int) -> Array:
        # Where the taps that read this phase begin among the flipped ones.
        first = [(kernel.shape[i] - 1 - (row, column)[i]) % strides[i] for i in (0, 1)]
        taps = flipped[first[0] :: strides[0], first[1] :: strides[1]]
        if row >= kernel.shape[0] or column >= kernel.shape[1]:
            return jnp.zeros((batch, rows, columns, channels), grad.dtype)
        padding = (
            (taps.shape[0] - 1, rows - grad.shape[1]),
            (taps.shape[1] - 1, columns - grad.shape[2]),
        )
        return convolve(grad, taps, (1, 1), padding, groups=groups)

    if tuple(strides) == (1, 1):
        pixels = phase(0, 0)
    else:
        phases = [
            jnp.stack([phase(row, column) for column in range(strides[1])], 3)
            for row in range(strides[0])
        ]
        shape = batch, rows * strides[0], columns * strides[1], channels
        pixels = jnp.stack(phases, 2).reshape(shape)
    return pixels[:, top : top + height, left : left + width]


def _flipped(kernel: Array, groups: int) -> Array:
    """The kernel with its taps in reverse order, from features to channels."""
    height, width, channels, features = kernel.shape
    split = kernel[::-1, ::-1].reshape(height, width, channels, groups, features // groups)
    return split.transpose(0, 1, 4, 3, 2).reshape(height, width, -1, groups * channels)
