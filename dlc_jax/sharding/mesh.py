"""Meshes of devices, and the placement of arrays on them.

By default JAX treats a CPU as one device; XLA then runs small operations on a single core. JAX can
treat each core as a device instead (`JAX_NUM_CPU_DEVICES`); batches are then sharded over the cores
as over any other devices.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

# Name of the mesh axis that batches are sharded over.
BATCH = "batch"
# With fewer examples per core, distributing the work takes longer than it saves.
_MIN_EXAMPLES_PER_CORE = 16
# JAX uses NumPy's memory in place where it is aligned to this many bytes.
_ALIGNMENT = 64


def device_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """Returns a mesh of devices to shard batches over; None for a single device.

    Args:
      batch_size: Batch size; no more devices are used, unless they belong to several processes.
      devices: Devices; by default all, including those of other processes.

    Example:
      >>> device_mesh(64, jax.devices()[:1]) is None
      True
    """
    devices = jax.devices() if devices is None else devices
    if len({device.process_index for device in devices}) == 1:
        devices = devices[:batch_size]
    return _mesh(devices)


def cpu_mesh(batch_size: int) -> Mesh | None:
    """Returns a mesh of the largest number of CPU devices that divides the batch size.

    Each device gets at least 16 examples. For a single device, or devices other than CPUs, the
    result is None.

    Args:
      batch_size: Batch size.

    Example:
      >>> cpu_mesh(1) is None
      True
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return None
    limit = min(len(devices), batch_size // _MIN_EXAMPLES_PER_CORE)
    counts = [count for count in range(1, limit + 1) if batch_size % count == 0]
    return _mesh(devices[: max(counts, default=1)])


def _mesh(devices: Sequence[jax.Device]) -> Mesh | None:
    if len(devices) == 1:
        return None
    return Mesh(devices, (BATCH,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh | None, axis: int = 0, ndim: int | None = None) -> Any:
    """Returns the sharding of an array over its batch axis; None without a mesh.

    Args:
      mesh: The devices.
      axis: The batch axis.
      ndim: Number of the array's axes; an array without a batch axis is replicated.

    Example:
      >>> mesh = Mesh(jax.devices()[:1], (BATCH,))
      >>> batch_sharding(mesh, axis=1).spec == PartitionSpec(None, "batch")
      True
    """
    if mesh is None:
        return None
    return NamedSharding(mesh, batch_spec(axis, axis + 1 if ndim is None else ndim))


def batch_spec(axis: int, ndim: int) -> PartitionSpec:
    """Returns the partition of an array with `ndim` axes over its batch axis, if it has one."""
    return PartitionSpec(*[None] * axis, BATCH) if ndim > axis else PartitionSpec()


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Copies arrays to every device of the mesh, or to the default device without one.

    Args:
      tree: Arrays, the same in all processes. The result shares no memory with NumPy arrays.
      mesh: The devices.

    Example:
      >>> mesh = device_mesh(16)
      >>> replicate({"weight": np.ones(3)}, mesh)["weight"].is_fully_replicated
      True
    """
    tree = jax.tree.map(_without_alias, tree)
    if mesh is None:
        return jax.block_until_ready(jax.device_put(tree))
    return jax.block_until_ready(
        jax.tree.map(partial(_put, sharding=NamedSharding(mesh, PartitionSpec())), tree)
    )


def put_batch(tree: Tree, mesh: Mesh | None, axis: int = 0) -> Tree:
    """Shards arrays over their batch axis; the transfer may continue in the background.

    Args:
      tree: Whole arrays, in every process that has devices of the mesh. NumPy arrays must not
        change afterwards.
      mesh: The devices.
      axis: The batch axis; arrays without one are replicated.

    Example:
      >>> mesh = device_mesh(16)
      >>> put_batch(np.zeros((16, 3)), mesh).shape
      (16, 3)
    """
    if mesh is None:
        return jax.device_put(tree)
    return jax.tree.map(lambda a: _put(a, batch_sharding(mesh, axis, np.ndim(a))), tree)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if len({device.process_index for device in sharding.mesh.devices.flat}) == 1:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(jnp.asarray(array).dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _without_alias(leaf: Any) -> Any:
    aligned = isinstance(leaf, np.ndarray) and leaf.ctypes.data % _ALIGNMENT == 0
    return leaf.copy() if aligned else leaf


def constrain_batch(tree: Tree, mesh: Mesh | None, axis: int = 0) -> Tree:
    """Makes the compiler shard arrays over their batch axis, inside `jax.jit`.

    Example:
      >>> mesh = device_mesh(16)
      >>> double = jax.jit(lambda x: 2 * constrain_batch(x, mesh))
      >>> double(put_batch(np.ones((16, 3)), mesh)).shape
      (16, 3)
    """
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda a: lax.with_sharding_constraint(a, batch_sharding(mesh, axis, jnp.ndim(a))), tree
    )


def device_get(tree: Tree, mesh: Mesh | None) -> Tree:
    """Returns arrays as NumPy arrays, wherever on the mesh their shards are.

    Example:
      >>> mesh = device_mesh(16)
      >>> device_get(put_batch(np.arange(4), mesh), mesh)
      array([0, 1, 2, 3], dtype=int32)
    """
    if mesh is not None and len({device.process_index for device in mesh.devices.flat}) > 1:
        whole = NamedSharding(mesh, PartitionSpec())
        tree = jax.jit(lambda tree: lax.with_sharding_constraint(tree, whole))(tree)
    return jax.tree.map(np.asarray, tree)
