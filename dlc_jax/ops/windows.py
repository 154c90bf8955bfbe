"""What convolution and pooling have in common: windows, strides and padding."""

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
# The dtypes for which there are formulations of our own. They round as floating-point numbers
# do, so that whole numbers are left to XLA; so are complex numbers.
_FLOATS = frozenset(map(jnp.dtype, ("float16", "bfloat16", "float32", "float64")))


def check_window(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], tuple[int, int], Pads]:
    """Window, strides and padding as integers.

    Raises:
      ValueError: they do not fit the images; it names what does not.
    """
    sizes, steps = integers(window), integers(strides)
    if sizes is None or steps is None or min(*sizes, *steps) < 1:
        raise ValueError(
            f"{name}: window {_shown(window)} and strides {_shown(strides)} must each be two "
            "integers of at least 1"
        )
    pads = explicit_padding(x.shape[1:3], sizes, steps, padding)
    if pads is None and isinstance(padding, str):
        raise ValueError(f'{name}: padding {padding!r} is none of "SAME", "SAME_LOWER" and "VALID"')
    if pads is None:
        raise ValueError(
            f"{name}: padding {padding!r} is not ((top, bottom), (left, right)) in whole pixels"
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
    """The padding in pixels, ((top, bottom), (left, right)); None if it is not one."""
    if isinstance(padding, str):
        if padding.upper() not in _PADDINGS:
            return None
        padding = lax.padtype_to_pads(shape, window, strides, padding)
    if not isinstance(padding, (tuple, list, np.ndarray)) or len(padding) != 2:
        return None
    vertical, horizontal = map(integers, padding)
    return None if vertical is None or horizontal is None else (vertical, horizontal)


def integers(values: Any) -> tuple[int, int] | None:
    """A pair of integers as Python's own; None if it is anything else."""
    if not isinstance(values, (tuple, list, np.ndarray)) or len(values) != 2:
        return None
    if not all(isinstance(value, (int, np.integer)) for value in values):
        return None
    return int(values[0]), int(values[1])


def _shown(values: Any) -> Any:
    return tuple(values) if isinstance(values, (list, np.ndarray)) else values


def covered(*arrays: Array, pads: Pads) -> bool:
    """Whether the formulations here cover arrays of these shapes and dtypes, and such padding.

    They want numbers of a floating point and sizes that are known and not zero. Padding that
    crops is left to XLA.
    """
    known = all(type(size) is int and size > 0 for array in arrays for size in array.shape)
    floats = all(array.dtype in _FLOATS for array in arrays)
    return known and floats and min(*pads[0], *pads[1]) >= 0


def over_batches(function: Callable[..., Array], *arguments: Array) -> Array:
    """`function(*arguments)`, where the first of them may be sharded along its batch.

    The formulations reshape batches, which JAX refuses where a mesh has explicit axes. There
    the compiler shards what is inside, and only the result's sharding is stated: that of the
    first argument.

    Inside `jax.shard_map`, what is the same on all devices is marked as differing where
    another argument differs, so that its gradient is summed over them.
    """
    x, *others = equally_varying(*arguments)
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(x, *others)
    spec = PartitionSpec(*sharding.spec[:1])
    wrapped: Any = jax.sharding.auto_axes(function, out_sharding=spec)
    return wrapped(x, *others)


def equally_varying(*arrays: Array) -> list[Array]:
    """The arrays, marked as differing over the same devices inside `jax.shard_map`."""
    axes = frozenset().union(*map(varying_axes, arrays))
    missing = [tuple(axes - varying_axes(array)) for array in arrays]
    return [
        lax.pcast(array, names, to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    ]


def varying_axes(x: Array) -> frozenset[str]:
    """The mesh axes along which, inside `jax.shard_map`, devices hold different values."""
    # Releases of JAX name them differently.
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def slices(x: Array, axis: int, taps: int, count: int, stride: int) -> list[Array]:
    """For each tap of a window along `axis`, the `count` values of `x` that it reads."""
    last = (count - 1) * stride + 1
    return [lax.slice_in_dim(x, tap, tap + last, stride, axis) for tap in range(taps)]


def over_chunks(
    function: Callable[..., tuple[Any, Any]], most: int, *arrays: Array
) -> tuple[Any, Any]:
    """`function(*arrays)`, computed for at most so many images at a time.

    Args:
      function: of batches; its first result is made of an array an image, its second is a sum
        over images.
      most: how many images at a time.
      *arrays: batches of the same length.

    Returns:
      The first result, of the whole batch, and the second, added up in at least float32, for
      many small terms would be lost in bfloat16.
    """
    batch = len(arrays[0])
    images = max(count for count in range(1, max(1, most) + 1) if batch % count == 0)
    if images == batch:
        return function(*arrays)
    chunks = [array.reshape(-1, images, *array.shape[1:]) for array in arrays]

    def zeros(part: Any) -> Array:
        dtype = jnp.promote_types(part.dtype, jnp.float32)
        return equally_varying(jnp.zeros(part.shape, dtype), arrays[0])[0]

    def add(total: Any, chunk: list[Array]) -> tuple[Any, Any]:
        of_images, part = function(*chunk)
        return jax.tree.map(operator.add, total, part), of_images

    _, parts = jax.eval_shape(function, *(chunk[0] for chunk in chunks))
    total, of_images = lax.scan(add, jax.tree.map(zeros, parts), chunks)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), of_images), total
