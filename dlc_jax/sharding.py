"""Batches spread over devices.

A CPU counts as one device, of which XLA leaves all cores but one idle wherever a program
consists of many small operations. JAX can count each core as a device instead
(`JAX_NUM_CPU_DEVICES`); batches are then spread over them as over any other devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

_BATCH = "batch"
# With fewer examples a device, handing out the work takes longer than it saves.
_LEAST_EXAMPLES = 16


def cpu_mesh(batch_size: int) -> Mesh | None:
    """As many CPU devices as share a batch evenly; None where that is one, or not a CPU.

    Args:
      batch_size: examples an update.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return None
    most = min(len(devices), batch_size // _LEAST_EXAMPLES)
    counts = [count for count in range(2, most + 1) if batch_size % count == 0]
    if not counts:
        return None
    return Mesh(devices[: counts[-1]], (_BATCH,), axis_types=(AxisType.Auto,))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The arrays on every device of the mesh, or on the default device without one."""
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def spread(
    function: Callable[..., Any],
    mesh: Mesh | None,
    *,
    in_axes: Sequence[int | None],
    out_axes: int | tuple[int | None, ...] | None,
) -> Callable[..., Any]:
    """A function that runs on each device of a mesh, on its part of the batch.

    Args:
      function: takes `axis_name`, by which it can average over the devices, beside its
        arguments.
      mesh: the devices; without one, `function` runs on whole batches, with None as the name.
      in_axes: the batch's axis in each argument, None where every device gets all of it.
      out_axes: likewise for the result, or for each of several: the batch's axis, or None
        where it is the same on all devices.
    """
    if mesh is None:
        return partial(function, axis_name=None)
    in_specs = tuple(map(_spec, in_axes))
    out_specs = tuple(map(_spec, out_axes)) if isinstance(out_axes, tuple) else _spec(out_axes)
    named = partial(function, axis_name=_BATCH)
    return jax.shard_map(named, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, _BATCH)
