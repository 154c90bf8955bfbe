"""Windows, strides and padding of convolution and pooling."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

Padding: TypeAlias = str | Sequence[Sequence[int]] | np.ndarray
Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]

_PADDINGS = ("SAME", "SAME_LOWER", "VALID")
# Our formulations round, so integers are left to XLA, and so are complex numbers.
_FLOATS = frozenset(map(jnp.dtype, ("float16", "bfloat16", "float32", "float64")))


def check_window(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], tuple[int, int], Pads]:
    """Window, strides and padding as integers.

    Raises:
      ValueError: They are malformed, or do not fit the images.
    """
    sizes, steps = int_pair(window), int_pair(strides)
    if sizes is None or steps is None or min(*sizes, *steps) < 1:
        raise ValueError(
            f"{name}: window {_readable(window)} and strides {_readable(strides)} must each be two "
            "integers of at least 1"
        )
    pads = explicit_padding(x.shape[1:3], sizes, steps, padding)
    if pads is None and isinstance(padding, str):
        raise ValueError(f'{name}: padding {padding!r} is none of "SAME", "SAME_LOWER" and "VALID"')
    if pads is None:
        raise ValueError(
            f"{name}: padding {padding!r} is not ((top, bottom), (left, right)) in integers"
        )
    if any(size + sum(pad) < w for size, w, pad in zip(x.shape[1:3], sizes, pads, strict=True)):
        raise ValueError(
            f"{name}: a window of {sizes} does not fit into images of "
            f"{x.shape[1]}x{x.shape[2]} with padding {padding!r}"
        )
    return sizes, steps, pads


def explicit_padding(
    shape: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Any
) -> Pads | None:
    """The padding in pixels, ((top, bottom), (left, right)); None if it is malformed."""
    if isinstance(padding, str):
        if padding.upper() not in _PADDINGS:
            return None
        padding = lax.padtype_to_pads(shape, window, strides, padding)
    if not isinstance(padding, (tuple, list, np.ndarray)) or len(padding) != 2:
        return None
    vertical, horizontal = map(int_pair, padding)
    return None if vertical is None or horizontal is None else (vertical, horizontal)


def int_pair(values: Any) -> tuple[int, int] | None:
    """A pair of integers as Python integers; None if it is anything else."""
    if not isinstance(values, (tuple, list, np.ndarray)) or len(values) != 2:
        return None
    if not all(isinstance(value, (int, np.integer)) for value in values):
        return None
    return int(values[0]), int(values[1])


def _readable(values: Any) -> Any:
    return tuple(values) if isinstance(values, (list, np.ndarray)) else values


def is_supported(*arrays: Array, pads: Pads) -> bool:
    """Whether our formulations support arrays of these shapes and dtypes, and this padding.

    They need floating-point numbers, static positive sizes, and padding that does not crop.
    """
    known = all(type(size) is int and size > 0 for array in arrays for size in array.shape)
    floats = all(array.dtype in _FLOATS for array in arrays)
    return known and floats and min(*pads[0], *pads[1]) >= 0


def call_with_auto_axes(function: Callable[..., Array], *arguments: Array) -> Array:
    """Calls a function of arrays of which the first may be sharded along its batch.

    JAX refuses to reshape a sharded batch on a mesh with explicit axes. There, the function runs
    with automatic axes, and its result is sharded like the first argument.

    Inside `jax.shard_map`, arguments are marked as varying over the same axes, so that the
    gradient of one that is equal on all devices is summed over these.
    """
    x, *others = match_varying_axes(*arguments)
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(x, *others)
    spec = PartitionSpec(*sharding.spec[:1])
    wrapped: Any = jax.sharding.auto_axes(function, out_sharding=spec)
    return wrapped(x, *others)


def match_varying_axes(*arrays: Array) -> list[Array]:
    """Marks arrays as varying over the same mesh axes inside `jax.shard_map`."""
    axes = frozenset().union(*map(varying_axes, arrays))
    missing = [tuple(axes - varying_axes(array)) for array in arrays]
    return [
        lax.pcast(array, names, to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    ]


def varying_axes(x: Array) -> frozenset[str]:
    """Mesh axes over which an array varies inside `jax.shard_map`."""
    # The attribute depends on the JAX release.
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def out_shape(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int], pads: Pads
) -> tuple[int, int, int, int]:
    """The shape of the convolution's result."""
    height, width = (
        (x_shape[1 + i] + sum(pads[i]) - kernel_shape[i]) // strides[i] + 1 for i in (0, 1)
    )
    return x_shape[0], height, width, kernel_shape[3]


def slices(x: Array, axis: int, taps: int, count: int, stride: int) -> list[Array]:
    """The `count` values of `x` along `axis` that each tap of a window reads."""
    last = (count - 1) * stride + 1
    return [lax.slice_in_dim(x, tap, tap + last, stride, axis) for tap in range(taps)]


def map_chunks(
    function: Callable[..., tuple[Any, Any]], max_images: int, *arrays: Array, unroll: int = 1
) -> tuple[Any, Any]:
    """Computes `function(*arrays)` on chunks of the batch, to bound the memory it takes.

    Args:
      function: A function of batches. Its first result has one entry per image; its second is a
        sum over images.
      max_images: Largest size of a chunk.
      *arrays: Batches of the same size.
      unroll: Number of chunks up to which there is no loop. XLA:CPU runs operations that are not
        matrix products on all cores only outside of loops, but programs without loops are larger.

    Returns:
      Both results for the whole batch; the second is summed in at least float32, since small
      terms would be lost in bfloat16.
    """
    batch = len(arrays[0])
    images = max(count for count in range(1, max(1, max_images) + 1) if batch % count == 0)
    if images == batch:
        return function(*arrays)
    chunks = [array.reshape(-1, images, *array.shape[1:]) for array in arrays]

    def zeros(part: Any) -> Array:
        dtype = jnp.promote_types(part.dtype, jnp.float32)
        return match_varying_axes(jnp.zeros(part.shape, dtype), arrays[0])[0]

    def add(total: Any, chunk: list[Array]) -> tuple[Any, Any]:
        per_image, part = function(*chunk)
        return jax.tree.map(operator.add, total, part), per_image

    _, parts = jax.eval_shape(function, *(chunk[0] for chunk in chunks))
    straight = batch // images <= unroll
    total, per_image = lax.scan(add, jax.tree.map(zeros, parts), chunks, unroll=straight)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), per_image), total
