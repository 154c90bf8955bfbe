"""Max-pooling and average-pooling."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad
from jaxtyping import Float

from dlc_jax.ops.primitives import Mapped, bind, is_zero, primitive, select, summed, zero_like
from dlc_jax.ops.windows import Padding, Pads, check_window, covered, over_batches, slices

# Each place of a window is compared by an operation of its own; past this many, compiling
# takes longer than the gradient saves.
_MOST_PLACES = 32


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """The largest value of each window.

    Where several values of a window are equally large, the gradient goes to the first of
    them in row-major order, as PyTorch's does.

    Args:
      x: feature maps.
      window: height and width of a window in pixels.
      strides: steps between windows; by default the windows touch and do not overlap.
      padding: "VALID" (rows and columns that fill no window are left out), "SAME" or
        "SAME_LOWER" as JAX has them, in upper or lower case, or ((top, bottom), (left, right))
        in pixels.

    Returns:
      The maxima; equal to those of `flax.nnx.max_pool` on the same arguments.

    Raises:
      ValueError: the window does not fit, or strides or padding are malformed.
    """
    x = jnp.asarray(x)
    sizes, steps, pads = _window("max_pool", x, window, strides, padding)
    if not covered(x, pads=pads):
        return _xla_max_pool(x, sizes, steps, pads)
    function = partial(_max_pool, window=sizes, strides=steps, padding=pads)
    return over_batches(function, x)


def avg_pool(
    x: Float[Array, "batch height width channels"],
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch out_height out_width channels"]:
    """The mean of each window, in which padding counts as zeros.

    Args:
      x: feature maps.
      window: height and width of a window in pixels.
      strides: steps between windows; by default the windows touch and do not overlap.
      padding: "VALID" (rows and columns that fill no window are left out), "SAME" or
        "SAME_LOWER" as JAX has them, in upper or lower case, or ((top, bottom), (left, right))
        in pixels.

    Returns:
      The means; equal to those of `flax.nnx.avg_pool` on the same arguments.

    Raises:
      ValueError: the window does not fit, or strides or padding are malformed.
    """
    x = jnp.asarray(x)
    return _avg_pool(x, *_window("avg_pool", x, window, strides, padding))


# Inlined where it is traced; called eagerly, it is one program.
@partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _avg_pool(x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads) -> Array:
    if covered(x, pads=pads):
        total = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        # Sums of slices, whose gradients XLA:CPU computes faster than those of its own windows.
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
    """What both poolings make of their arguments; a ValueError names what does not fit."""
    if x.ndim != 4:
        raise ValueError(f"{name} takes feature maps of 4 dimensions (NHWC), not {x.shape}")
    return check_window(name, x, window, window if strides is None else strides, padding)


def _windows(window: Sequence[int], strides: Sequence[int], pads: Pads) -> tuple[Any, Any, Any]:
    return (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))


def _xla_max_pool(x: Array, window: Sequence[int], strides: Sequence[int], padding: Pads) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, *_windows(window, strides, padding))


def _cpu_max_pool(x: Array, window: tuple[int, int], strides: Any, padding: Pads) -> Array:
    if _touch(window, strides, padding):
        return _max_of_tiles(x, window)
    return _xla_max_pool(x, window, strides, padding)


def _touch(window: Any, strides: Any, padding: Pads) -> bool:
    """Whether windows neither overlap nor reach beyond the images."""
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
    if window[0] * window[1] > _MOST_PLACES:
        return _xla_gradient(x, maxima, grad, window, strides, padding)
    places = _places(x, maxima, window, strides, padding)
    if _touch(window, strides, padding):
        return _to_tiles(places, grad, window, x.shape)
    return _to_windows(places, grad, window, strides, padding, x.shape)


def _gpu_gradient(
    x: Array, maxima: Array, grad: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    # XLA's own adds up gradients by atomic operations, which are slow for numbers of 16 bits.
    if window[0] * window[1] > _MOST_PLACES:
        return _xla_gradient(x, maxima, grad, window, strides, padding)
    if _touch(window, strides, padding):
        return _to_own_tiles(x, maxima, grad, window)
    fast = _xla_gradient if x.dtype.itemsize > 2 else _cpu_gradient
    return fast(x, maxima, grad, window, strides, padding)


def _to_own_tiles(x: Array, maxima: Array, grad: Array, window: tuple[int, int]) -> Array:
    """The gradient where windows touch, each pixel of which looks at its own window."""
    rows, columns = window
    taps = _taps(x, window, maxima.shape, window)
    places = jnp.full(maxima.shape, len(taps) - 1, jnp.int32)
    for place in reversed(range(len(taps) - 1)):
        places = jnp.where(taps[place] == maxima, place, places)

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
    return jnp.where(enlarged(places, jnp.int32(-1)) == own, enlarged(grad, zero), zero)


def _at_maxima(
    x: Array, maxima: Array, values: Array, window: Any, strides: Any, padding: Pads
) -> Array:
    """What stands among the values where the maxima stand in x: the transpose of the gradient."""
    if window[0] * window[1] > _MOST_PLACES:
        (at,) = jax.linear_transpose(
            lambda grad: _xla_gradient(x, maxima, grad, window, strides, padding), maxima
        )(values)
        return at
    places = _places(x, maxima, window, strides, padding)
    return _from_windows(places, values, window, strides, padding)


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
    taps = _taps(padded, window, maxima.shape, strides)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    squares = jnp.full(maxima.shape, (len(taps) - 1) ** 2, dtype)
    for place in reversed(range(len(taps) - 1)):
        squares = jnp.where(taps[place] == maxima, jnp.array(place**2, dtype), squares)
    return lax.optimization_barrier(jnp.sqrt(squares))


def _taps(
    padded: Array, window: Sequence[int], out: Sequence[int], strides: Sequence[int]
) -> list[Array]:
    """For each place in a window, in row-major order, what stands there in all windows."""
    return [
        tap
        for row in slices(padded, 1, window[0], out[1], strides[0])
        for tap in slices(row, 2, window[1], out[2], strides[1])
    ]


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


def _from_windows(
    places: Array,
    values: Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
) -> Array:
    """The value at each maximum's place."""
    padded = jnp.pad(values, ((0, 0), *pads, (0, 0)))
    chosen = jnp.zeros(places.shape, values.dtype)
    for place, tap in enumerate(_taps(padded, window, places.shape, strides)):
        chosen = jnp.where(places == place, tap, chosen)
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
    # Where the maxima stand does not change with x, but from one place to another.
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
    return lambda *operands, apart, **params: [function(*operands, **params)]


_max_pool_p = primitive(
    "max_pool",
    lambda x, **window: [_pooled_shape(x, **window)],
    cpu=_listed(_cpu_max_pool),
    gpu=_listed(_xla_max_pool),
    elsewhere=_listed(_xla_max_pool),
)
_gradient_p = primitive(
    "max_pool_gradient",
    lambda x, maxima, grad, **window: [x],
    cpu=_listed(_cpu_gradient),
    gpu=_listed(_gpu_gradient),
    elsewhere=_listed(_xla_gradient),
)
_at_maxima_p = primitive(
    "max_pool_tangent",
    lambda x, maxima, values, **window: [maxima],
    cpu=_listed(_at_maxima),
    gpu=_listed(_at_maxima),
    elsewhere=_listed(_at_maxima),
)
ad.primitive_jvps[_max_pool_p] = _jvp
for _own, _other in ((_gradient_p, _at_maxima_p), (_at_maxima_p, _gradient_p)):
    ad.primitive_jvps[_own] = partial(_linear_jvp, _own)
    ad.primitive_transposes[_own] = partial(_linear_transpose, _other)
