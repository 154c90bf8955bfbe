"""The gradient of a convolution's images as forward convolutions, for CPUs.

The pixels whose positions have the same remainders by the strides form a phase of the padded
images. The gradient of a phase is the convolution, of stride 1, of the result's gradient with
the flipped taps of the kernel that read this phase. XLA's forward convolutions are faster than
the dilated ones that it uses for these gradients. With stride 1 there is one phase.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from dlc_jax.ops import xla
from dlc_jax.ops.windows import Pads


def input_gradient(
    kernel: Array, grad: Array, x_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """The gradient with respect to the images."""
    batch, height, width, channels = x_shape
    (top, _), (left, _) = pads
    rows, columns = -(-(top + height) // strides[0]), -(-(left + width) // strides[1])
    phases = [
        jnp.stack(
            [
                _phase(kernel[row :: strides[0], column :: strides[1]], grad, rows, columns)
                for column in range(strides[1])
            ],
            3,
        )
        for row in range(strides[0])
    ]
    pixels = jnp.stack(phases, 2).reshape(batch, rows * strides[0], columns * strides[1], channels)
    return pixels[:, top : top + height, left : left + width]


def _phase(taps: Array, grad: Array, rows: int, columns: int) -> Array:
    """The gradient of the first `rows` rows and `columns` columns of a phase."""
    if 0 in taps.shape[:2]:
        return jnp.zeros((len(grad), rows, columns, taps.shape[2]), grad.dtype)
    pads = (
        (taps.shape[0] - 1, rows - grad.shape[1]),
        (taps.shape[1] - 1, columns - grad.shape[2]),
    )
    return xla.convolve(grad, taps[::-1, ::-1].transpose(0, 1, 3, 2), (1, 1), pads)
