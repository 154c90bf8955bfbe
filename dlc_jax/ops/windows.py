"""What convolution and pooling have in common: windows, strides and padding."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

Padding: TypeAlias = str | Sequence[tuple[int, int]]
Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


def check_window(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding
) -> None:
    """Raises a ValueError that names what does not fit the images."""
    if len(window) != 2 or len(strides) != 2 or min(*window, *strides) < 1:
        raise ValueError(
            f"{name}: window {tuple(window)} and strides {tuple(strides)} must each be two "
            "integers of at least 1"
        )
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'{name}: padding {padding!r} is neither "SAME" nor "VALID"')
    elif len(padding) != 2 or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise ValueError(
            f"{name}: padding {padding!r} is not ((top, bottom), (left, right)) of at least 0"
        )
    pads = explicit_padding(x.shape[1:3], window, strides, padding)
    if any(size + sum(pad) < w for size, w, pad in zip(x.shape[1:3], window, pads, strict=True)):
        raise ValueError(
            f"{name}: a window of {tuple(window)} does not fit into images of "
            f"{x.shape[1]}x{x.shape[2]} with padding {padding!r}"
        )


def explicit_padding(
    shape: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> Pads:
    """The padding in pixels, ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape, window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def over_batches(function: Callable[..., Array], *arguments: Array) -> Array:
    """`function(*arguments)`, where the first of them may be sharded along its batch.

    The formulations reshape batches, which JAX refuses where a mesh has explicit axes. There
    the compiler shards what is inside, and only the result's sharding is stated: that of the
    first argument.

    Inside `jax.shard_map`, what is the same on all devices is marked as differing where
    another argument differs, so that its gradient is summed over them.
    """
    x, *others = _equally_varying(*arguments)
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(x, *others)
    spec = PartitionSpec(*sharding.spec[:1])
    wrapped: Any = jax.sharding.auto_axes(function, out_sharding=spec)
    return wrapped(x, *others)


def _equally_varying(*arrays: Array) -> list[Array]:
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


def in_chunks(x: Array, most: int) -> Array:
    """The batch in equal parts of at most `most` images, [chunks, images, ...]."""
    images = max(count for count in range(1, max(1, most) + 1) if len(x) % count == 0)
    return x.reshape(-1, images, *x.shape[1:])
