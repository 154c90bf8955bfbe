"""Max-pooling and average-pooling."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from dlc_jax.ops.windows import Padding, Pads, check_window, explicit_padding, over_batches, slices

# Each place of a window is compared by an operation of its own; past this many, compiling
# takes longer than the gradient saves.
_MOST_PLACES = 32


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

    Returns:
      The maxima; equal to those of `flax.nnx.max_pool` on the same arguments.

    Raises:
      ValueError: the window does not fit, or strides or padding are malformed.
    """
    strides, pads = _strides_and_pads("max_pool", x, window, strides, padding)
    rows, columns = window
    down, right = strides
    return over_batches(lambda x: _max_pool(x, (rows, columns), (down, right), pads), x)


def avg_pool(
    x: Float[Array, "batch height width channels"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """The mean of each window, in which padding counts as zeros.

    Args:
      x: feature maps.
      window: height and width of a window in pixels.
      strides: steps between windows; by default the windows touch and do not overlap.
      padding: "VALID" (rows and columns that fill no window are left out), "SAME", or
        ((top, bottom), (left, right)) in pixels.

    Returns:
      The means; equal to those of `flax.nnx.avg_pool` on the same arguments.

    Raises:
      ValueError: the window does not fit, or strides or padding are malformed.
    """
    strides, pads = _strides_and_pads("avg_pool", x, window, strides, padding)
    total = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Sums of slices, whose gradients XLA:CPU computes faster than those of its own windows.
    for axis, size, stride in zip((1, 2), window, strides, strict=True):
        count = (total.shape[axis] - size) // stride + 1
        total = sum(slices(total, axis, size, count, stride), start=jnp.zeros((), x.dtype))
    return total / (window[0] * window[1])


def _strides_and_pads(
    name: str,
    x: Array,
    window: tuple[int, int],
    strides: tuple[int, int] | None,
    padding: Padding,
) -> tuple[tuple[int, int], Pads]:
    """What both poolings make of their arguments; a ValueError names what does not fit."""
    strides = window if strides is None else strides
    if x.ndim != 4:
        raise ValueError(f"{name} takes feature maps of 4 dimensions (NHWC), not {x.shape}")
    check_window(name, x, window, strides, padding)
    return strides, explicit_padding(x.shape[1:3], window, strides, padding)


def _xla_max_pool(x: Array, window: Sequence[int], strides: Sequence[int], pads: Pads) -> Array:
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads) -> Array:
    xla = partial(_xla_max_pool, window=window, strides=strides, pads=pads)
    if window != strides or pads != ((0, 0), (0, 0)):
        return xla(x)
    return lax.platform_dependent(x, cpu=partial(_max_of_tiles, window=window), default=xla)


def _max_pool_forward(
    x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    maxima = _max_pool(x, window, strides, pads)
    return maxima, (x, maxima)


def _max_pool_backward(
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
    residuals: tuple[Array, Array],
    grad: Array,
) -> tuple[Array]:
    x, maxima = residuals

    def xla(x: Array, maxima: Array, grad: Array) -> Array:
        del maxima
        _, vjp = jax.vjp(lambda x: _xla_max_pool(x, window, strides, pads), x)
        return vjp(grad)[0]

    def compared(x: Array, maxima: Array, grad: Array) -> Array:
        places = _places(x, maxima, window, strides, pads)
        if window == strides and pads == ((0, 0), (0, 0)):
            return _to_tiles(places, grad, window, x.shape)
        return _to_windows(places, grad, window, strides, pads, x.shape)

    if window[0] * window[1] > _MOST_PLACES:
        return (xla(x, maxima, grad),)
    return (lax.platform_dependent(x, maxima, grad, cpu=compared, default=xla),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_of_tiles(x: Array, window: tuple[int, int]) -> Array:
    """Max-pooling over windows that touch: a reduction, which XLA runs on both axes at once."""
    rows, columns = window
    height, width = x.shape[1] // rows, x.shape[2] // columns
    tiles = x[:, : height * rows, : width * columns].reshape(
        len(x), height, rows, width, columns, x.shape[3]
    )
    return tiles.max((2, 4))


def _places(
    x: Array, maxima: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Array:
    """Where in its window each maximum stands first, counted in row-major order.

    As floats, since XLA vectorises a choice between two arrays of one width. And by way of a
    square root, which is exact here: XLA computes an operation again for each of its readers
    unless it counts as expensive, as square roots do, and each place has as many readers as
    its window has pixels.
    """
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    taps = [
        tap
        for row in slices(padded, 1, window[0], maxima.shape[1], strides[0])
        for tap in slices(row, 2, window[1], maxima.shape[2], strides[1])
    ]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    squares = jnp.full(maxima.shape, (len(taps) - 1) ** 2, dtype)
    for place in reversed(range(len(taps) - 1)):
        squares = jnp.where(taps[place] == maxima, jnp.array(place**2, dtype), squares)
    return lax.optimization_barrier(jnp.sqrt(squares))


def _to_tiles(places: Array, grad: Array, window: tuple[int, int], shape: Sequence[int]) -> Array:
    """Each gradient at its maximum's place, where windows touch and do not overlap."""
    batch, height, width, channels = grad.shape
    rows, columns = window
    own = jnp.arange(rows * columns, dtype=places.dtype).reshape(1, 1, rows, 1, columns, 1)
    tiles = jnp.where(own == places[:, :, None, :, None], grad[:, :, None, :, None], 0)
    covered = tiles.reshape(batch, height * rows, width * columns, channels)
    covered = lax.optimization_barrier(covered.astype(grad.dtype))
    left_out = ((0, 0), *((0, shape[i] - covered.shape[i]) for i in (1, 2)), (0, 0))
    return jnp.pad(covered, left_out)


def _to_windows(
    places: Array,
    grad: Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
    shape: Sequence[int],
) -> Array:
    """Each gradient at its maximum's place, summed where windows overlap."""
    total: Any = 0
    zero = jnp.zeros((), places.dtype)
    for place, tap in enumerate(product(*map(range, window))):
        own = jnp.where(places == place, grad.astype(places.dtype), zero)
        config = [(0, 0, 0)] * 4
        for axis in (0, 1):
            # Where the first and the last window read with this tap, in unpadded pixels.
            first = tap[axis] - pads[axis][0]
            last = first + (grad.shape[1 + axis] - 1) * strides[axis]
            config[1 + axis] = (first, shape[1 + axis] - 1 - last, strides[axis] - 1)
        total = total + lax.pad(own, zero, config)
    return total.astype(grad.dtype)
