"""Max-pooling and average-pooling."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad
from jaxtyping import Float

from dlc_jax.ops.primitives import Mapped, bind, is_zero, primitive, select, summed, zero_like
from dlc_jax.ops.windows import (
    Padding,
    Pads,
    call_with_auto_axes,
    check_window,
    is_supported,
    slices,
)

# The gradient takes an operation per position in the window. For larger windows, compilation
# takes longer than the gradient saves.
_MAX_WINDOW_SIZE = 32
# Larger windows are left to XLA for the same reason.
_MAX_LENGTH = 16
# For smaller inputs, XLA's own gradient is faster on a GPU.
_MIN_BYTES = 12 * 2**20


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """Max-pooling, with the values of `flax.nnx.max_pool`.

    If several values of a window are equal to the maximum, the first in row-major order receives
    the gradient, as in PyTorch.

    Args:
      x: Feature maps.
      window: Height and width of a window.
      strides: Steps between windows; by default, the size of the window.
      padding: "VALID", "SAME" or "SAME_LOWER", in upper or lower case, or ((top, bottom),
        (left, right)) in pixels.

    Raises:
      ValueError: The window does not fit, or strides or padding are malformed.

    Example:
      >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2))
      Array([[[[3.]]]], dtype=float32)
    """
    x = jnp.asarray(x)
    sizes, steps, pads = _window("max_pool", x, window, strides, padding)
    if not is_supported(x, pads=pads):
        return _xla_max_pool(x, sizes, steps, pads)
    function = partial(_max_pool, window=sizes, strides=steps, padding=pads)
    return call_with_auto_axes(function, x)


def avg_pool(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """Average pooling, with the values of `flax.nnx.avg_pool`. Padding counts as zeros.

    Args:
      x: Feature maps.
      window: Height and width of a window.
      strides: Steps between windows; by default, the size of the window.
      padding: "VALID", "SAME" or "SAME_LOWER", in upper or lower case, or ((top, bottom),
        (left, right)) in pixels.

    Raises:
      ValueError: The window does not fit, or strides or padding are malformed.

    Example:
      >>> avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2))
      Array([[[[1.5]]]], dtype=float32)
    """
    x = jnp.asarray(x)
    return _avg_pool(x, *_window("avg_pool", x, window, strides, padding))


# A single program when called eagerly.
@partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _avg_pool(x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads) -> Array:
    if is_supported(x, pads=pads):
        total = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        # XLA:CPU computes gradients of sums of slices faster than those of reduce_window.
        for axis, size, stride in zip((1, 2), window, strides, strict=True):
            count = (total.shape[axis] - size) // stride + 1
            total = sum(slices(total, axis, size, count, stride), start=jnp.zeros((), x.dtype))
    else:
        total = lax.reduce_window(x, 0.0, lax.add, *_windows(window, strides, pads))
    return total / (window[0] * window[1])


def _window(
    name: str,
    x: Array,
    window: Sequence[int],
    strides: Sequence[int] | None,
    padding: Padding,
) -> tuple[tuple[int, int], tuple[int, int], Pads]:
    """Window, strides and padding as integers; a ValueError names arguments that don't fit."""
    if x.ndim != 4:
        raise ValueError(f"{name} takes feature maps of 4 dimensions (NHWC), not {x.shape}")
    return check_window(name, x, window, window if strides is None else strides, padding)


def _windows(window: Sequence[int], strides: Sequence[int], pads: Pads) -> tuple[Any, Any, Any]:
    return (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))


def _xla_max_pool(x: Array, window: Sequence[int], strides: Sequence[int], padding: Pads) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, *_windows(window, strides, padding))


def _cpu_max_pool(x: Array, window: tuple[int, int], strides: Any, padding: Pads) -> Array:
    if _is_tiling(window, strides, padding):
        return _max_over_tiles(x, window)
    if max(window) > _MAX_LENGTH:
        return _xla_max_pool(x, window, strides, padding)
    return _max_along_axes(x, window, strides, padding)


def _is_tiling(window: Any, strides: Any, padding: Pads) -> bool:
    """Whether the windows tile the images: they neither overlap nor extend beyond them."""
    return window == strides and padding == ((0, 0), (0, 0))


def _pooled_shape(
    shape: Sequence[int], window: Any, strides: Any, padding: Pads
) -> tuple[int, ...]:
    sizes = ((shape[1 + i] + sum(padding[i]) - window[i]) // strides[i] + 1 for i in (0, 1))
    return shape[0], *sizes, shape[3]


def _max_pool(x: Array, window: Any, strides: Any, padding: Pads) -> Array:
    return bind(_max_pool_p, x, window=window, strides=strides, padding=padding)[0]


def _xla_gradient(
    x: Array, maxima: Array, grad: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    del maxima
    _, vjp = jax.vjp(lambda x: _xla_max_pool(x, window, strides, padding), x)
    return vjp(grad)[0]


def _cpu_gradient(
    x: Array, maxima: Array, grad: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    if window[0] * window[1] > _MAX_WINDOW_SIZE:
        return _xla_gradient(x, maxima, grad, window, strides, padding)
    positions = _positions(x, maxima, window, strides, padding)
    if _is_tiling(window, strides, padding):
        return _scatter_to_tiles(positions, grad, window, x.shape)
    return _scatter_to_windows(positions, grad, window, strides, padding, x.shape)


def _gpu_gradient(
    x: Array, maxima: Array, grad: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    # XLA's own gradient uses atomic additions, which are slow for 16-bit numbers; on small inputs
    # it launches fewer kernels.
    small = x.size * x.dtype.itemsize < _MIN_BYTES
    if small or window[0] * window[1] > _MAX_WINDOW_SIZE:
        return _xla_gradient(x, maxima, grad, window, strides, padding)
    if _is_tiling(window, strides, padding):
        return _gather_from_tiles(x, maxima, grad, window)
    fast = _xla_gradient if x.dtype.itemsize > 2 else _cpu_gradient
    return fast(x, maxima, grad, window, strides, padding)


def _gather_from_tiles(x: Array, maxima: Array, grad: Array, window: tuple[int, int]) -> Array:
    """The gradient for windows that tile the images, as a gather from each pixel's window."""
    rows, columns = window
    taps = _taps(x, window, maxima.shape, window)
    positions = jnp.full(maxima.shape, len(taps) - 1, jnp.int32)
    for position in reversed(range(len(taps) - 1)):
        positions = jnp.where(taps[position] == maxima, position, positions)

    def enlarged(array: Array, rest: Array) -> Array:
        batch, height, width, channels = array.shape
        tiles = jnp.broadcast_to(
            array[:, :, None, :, None], (batch, height, rows, width, columns, channels)
        )
        tiles = tiles.reshape(batch, height * rows, width * columns, channels)
        config = [(0, x.shape[i] - tiles.shape[i], 0) for i in range(4)]
        return lax.pad(tiles, rest, config)

    down, across = (jnp.arange(x.shape[1 + axis]) % window[axis] for axis in (0, 1))
    own = (down[:, None] * columns + across)[None, :, :, None]
    zero = jnp.zeros((), grad.dtype)
    return jnp.where(enlarged(positions, jnp.int32(-1)) == own, enlarged(grad, zero), zero)


def _values_at_maxima(
    x: Array, maxima: Array, values: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    """The values at the positions of the maxima of x: the transpose of the gradient."""
    if window[0] * window[1] > _MAX_WINDOW_SIZE:
        (result,) = jax.linear_transpose(
            lambda grad: _xla_gradient(x, maxima, grad, window, strides, padding), maxima
        )(values)
        return result
    positions = _positions(x, maxima, window, strides, padding)
    return _gather_at_maxima(positions, values, window, strides, padding)


def _max_over_tiles(x: Array, window: tuple[int, int]) -> Array:
    """Max-pooling over windows that tile the images, as a single reduction."""
    rows, columns = window
    height, width = x.shape[1] // rows, x.shape[2] // columns
    tiles = x[:, : height * rows, : width * columns].reshape(
        len(x), height, rows, width, columns, x.shape[3]
    )
    return tiles.max((2, 4))


def _max_along_axes(
    x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Array:
    """Max-pooling along the width, then along the height."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    maxima = lax.pad(x, lowest, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    for axis in (2, 1):
        size, stride = window[axis - 1], strides[axis - 1]
        count = (maxima.shape[axis] - size) // stride + 1
        taps = slices(maxima, axis, size, count, stride)
        maxima = lax.optimization_barrier(reduce(jnp.maximum, taps))
    return maxima


def _positions(
    x: Array, maxima: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Array:
    """Position of the first maximum in each window, counted in row-major order.

    Positions are floats, since XLA vectorizes a select between arrays of the same width. They
    are computed as square roots of their squares, which is exact: XLA recomputes cheap operations
    for each use, here for each pixel of the window, but not square roots.
    """
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, lowest, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    taps = _taps(padded, window, maxima.shape, strides)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    squares = jnp.full(maxima.shape, (len(taps) - 1) ** 2, dtype)
    for position in reversed(range(len(taps) - 1)):
        squares = jnp.where(taps[position] == maxima, jnp.array(position**2, dtype), squares)
    return lax.optimization_barrier(jnp.sqrt(squares))


def _taps(
    padded: Array, window: Sequence[int], out: Sequence[int], strides: Sequence[int]
) -> list[Array]:
    """The values of all windows at each position in the window, in row-major order."""
    return [
        tap
        for row in slices(padded, 1, window[0], out[1], strides[0])
        for tap in slices(row, 2, window[1], out[2], strides[1])
    ]


def _scatter_to_tiles(
    positions: Array, grad: Array, window: tuple[int, int], shape: Sequence[int]
) -> Array:
    """Scatters gradients to the maxima, for windows that tile the images."""
    batch, height, width, channels = grad.shape
    rows, columns = window
    own = jnp.arange(rows * columns, dtype=positions.dtype).reshape(1, 1, rows, 1, columns, 1)
    tiles = jnp.where(own == positions[:, :, None, :, None], grad[:, :, None, :, None], 0)
    covered = tiles.reshape(batch, height * rows, width * columns, channels)
    covered = lax.optimization_barrier(covered.astype(grad.dtype))
    remainder = ((0, 0), *((0, shape[i] - covered.shape[i]) for i in (1, 2)), (0, 0))
    return jnp.pad(covered, remainder)


def _scatter_to_windows(
    positions: Array,
    grad: Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
    shape: Sequence[int],
) -> Array:
    """Scatters gradients to the maxima, summed where windows overlap."""
    total: Any = 0
    zero = jnp.zeros((), positions.dtype)
    for position, tap in enumerate(product(*map(range, window))):
        own = jnp.where(positions == position, grad.astype(positions.dtype), zero)
        config = [(0, 0, 0)] * 4
        for axis in (0, 1):
            # The pixels that the first and the last window read with this tap.
            first = tap[axis] - pads[axis][0]
            last = first + (grad.shape[1 + axis] - 1) * strides[axis]
            config[1 + axis] = (first, shape[1 + axis] - 1 - last, strides[axis] - 1)
        total = total + lax.pad(own, zero, config)
    return total.astype(grad.dtype)


def _gather_at_maxima(
    positions: Array,
    values: Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
) -> Array:
    """Gathers the values at the maxima."""
    padded = jnp.pad(values, ((0, 0), *pads, (0, 0)))
    chosen = jnp.zeros(positions.shape, values.dtype)
    for position, tap in enumerate(_taps(padded, window, positions.shape, strides)):
        chosen = jnp.where(positions == position, tap, chosen)
    return chosen


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    (maxima,) = _max_pool_p.bind(x, **params)
    if is_zero(tangent):
        return [maxima], [zero_like(maxima)]
    mapped = select(params.pop("mapped"), [0, None, 0])
    return [maxima], _at_maxima_p.bind(x, maxima, tangent, mapped=mapped, **params)


def _linear_jvp(
    own: Primitive, primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    # The positions of the maxima are piecewise constant in x.
    results = own.bind(*primals, **params)
    if is_zero(tangents[2]):
        return results, [zero_like(result) for result in results]
    return results, own.bind(*primals[:2], tangents[2], **params)


def _linear_transpose(
    other: Primitive, cotangents: Sequence[Any], *operands: Any, mapped: Mapped, **params: Any
) -> list[Any]:
    (cotangent,) = cotangents
    if is_zero(cotangent):
        return [None, None, ad.Zero(operands[2].aval)]
    x, maxima, _ = operands
    (result,) = other.bind(x, maxima, cotangent, mapped=select(mapped, [0, 1, None]), **params)
    return [None, None, summed(result, mapped, 2)]


def _listed(function: Callable[..., Array]) -> Callable[..., list[Array]]:
    return lambda *operands, jointly_mapped, **params: [function(*operands, **params)]


_max_pool_p = primitive(
    "max_pool",
    lambda x, **window: [_pooled_shape(x, **window)],
    cpu=_listed(_cpu_max_pool),
    gpu=_listed(_xla_max_pool),
    default=_listed(_xla_max_pool),
)
_gradient_p = primitive(
    "max_pool_gradient",
    lambda x, maxima, grad, **window: [x],
    cpu=_listed(_cpu_gradient),
    gpu=_listed(_gpu_gradient),
    default=_listed(_xla_gradient),
)
_at_maxima_p = primitive(
    "max_pool_tangent",
    lambda x, maxima, values, **window: [maxima],
    cpu=_listed(_values_at_maxima),
    gpu=_listed(_values_at_maxima),
    default=_listed(_values_at_maxima),
)
ad.primitive_jvps[_max_pool_p] = _jvp
for _own, _other in ((_gradient_p, _at_maxima_p), (_at_maxima_p, _gradient_p)):
    ad.primitive_jvps[_own] = partial(_linear_jvp, _own)
    ad.primitive_transposes[_own] = partial(_linear_transpose, _other)
