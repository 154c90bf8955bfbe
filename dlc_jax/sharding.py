"""Batches spread over devices.

A CPU counts as one device, of which XLA leaves all cores but one idle wherever a program
consists of many small operations. JAX can count each core as a device instead
(`JAX_NUM_CPU_DEVICES`); batches are then spread over them as over any other devices.
"""

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


def constrain(tree: Tree, mesh: Mesh | None, *, batch_axis: int | None = None) -> Tree:
    """Inside a jitted function, spreads arrays over the mesh.

    Args:
      tree: arrays.
      mesh: the devices; without one nothing happens.
      batch_axis: which axis of each array to spread; None to have all of it everywhere.
    """
    if mesh is None:
        return tree
    spec = () if batch_axis is None else (*[None] * batch_axis, _BATCH)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))

    def one(array: Any) -> Any:
        uneven = batch_axis is not None and array.shape[batch_axis] % mesh.size
        return array if uneven else jax.lax.with_sharding_constraint(array, sharding)

    return jax.tree.map(one, tree)
