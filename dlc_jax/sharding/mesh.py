"""Batches spread over devices: a CPU's cores, GPUs, TPUs, of one process or of several.

Arrays are placed by `NamedSharding`, programs are compiled by `jax.jit`; what runs on each
device is told by `jax.shard_map`, since with the compiler's own partitioning alone convolutions
on a CPU would gather the whole batch.

A CPU counts as one device, of which XLA leaves all cores but one idle wherever a program
consists of many small operations. JAX can count each core as a device instead
(`JAX_NUM_CPU_DEVICES`); batches are then spread over them as over any other devices.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from dlc_jax.errors import InputError

Tree = TypeVar("Tree")

BATCH = "batch"
# With fewer examples a CPU's core, handing out the work takes longer than it saves.
_LEAST_EXAMPLES = 16
# Bytes.
_ALIGNED = 64


def device_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, *, even: bool = False
) -> Mesh | None:
    """A mesh of devices to spread batches over; None for a single one.

    Args:
      batch_size: examples an update. What is left over when the devices share it evenly takes a
        pass of its own, the gradient of which is accumulated (see `train_step`).
      devices: by default all of them, those of other processes too.
      even: whether no examples may be left over, as where a network's examples depend on each
        other (`dlc_jax.training.couples_examples`); then as many devices as share the batch
        evenly.

    Raises:
      InputError: other processes' devices would have to be left out.
    """
    devices = jax.devices() if devices is None else devices
    most = min(len(devices), batch_size)
    count = most
    while even and batch_size % count:
        count -= 1
    hosts = {device.process_index for device in devices}
    if len(hosts) > 1 and count < len(devices):
        below, above = batch_size // len(devices), -(-batch_size // len(devices))
        sizes = " or ".join(str(len(devices) * each) for each in (below, above) if each)
        error = InputError(
            f"a batch size of {batch_size} does not spread evenly over the {len(devices)} devices "
            f"of {len(hosts)} processes, as it must here; choose {sizes}"
        )
        error.raised_on_all_processes = True
        raise error
    return _mesh(devices[:count])


def cpu_mesh(batch_size: int) -> Mesh | None:
    """As many CPU devices as share a batch evenly; None where that is one, or not a CPU.

    Args:
      batch_size: examples an update.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return None
    most = min(len(devices), batch_size // _LEAST_EXAMPLES)
    counts = [count for count in range(1, most + 1) if batch_size % count == 0]
    return _mesh(devices[: max(counts, default=1)])


def _mesh(devices: Sequence[jax.Device]) -> Mesh | None:
    if len(devices) == 1:
        return None
    return Mesh(devices, (BATCH,), axis_types=(AxisType.Auto,))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The arrays on every device of the mesh, or on the default device without one.

    Args:
      tree: the same in all processes. The result shares no memory with its arrays of NumPy.
      mesh: the devices.
    """
    return jax.block_until_ready(transfer(jax.tree.map(_without_alias, tree), mesh))


def _without_alias(leaf: Any) -> Any:
    # On a CPU, JAX goes on using NumPy's memory where it is aligned, and else copies it.
    aligned = isinstance(leaf, np.ndarray) and leaf.ctypes.data % _ALIGNED == 0
    return leaf.copy() if aligned else leaf


def transfer(tree: Tree, mesh: Mesh | None) -> Tree:
    """As `replicate`, but it may go on in the background, and in the given arrays' memory."""
    if mesh is None:
        return jax.device_put(tree)
    everywhere = NamedSharding(mesh, PartitionSpec())
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(partial(_from_each_process, sharding=everywhere), tree)


def _from_each_process(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array of which each process has all."""
    if jnp.issubdtype(jnp.asarray(array).dtype, jax.dtypes.prng_key):
        data = _from_each_process(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def of_batch(mesh: Mesh | None, *, shared: bool = True) -> Sharding | None:
    """Where the examples of a batch are: each on one device of the mesh, or all on each."""
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(BATCH) if shared else PartitionSpec())


def whole(tree: Tree, mesh: Mesh | None) -> Tree:
    """The arrays whole on every device of the mesh, wherever on it they are."""
    return jax.jit(everywhere, static_argnums=1)(tree, mesh)


def everywhere(tree: Tree, mesh: Mesh | None) -> Tree:
    """Inside `jax.jit`: has the compiler leave the arrays whole on every device of the mesh."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


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

    Raises:
      InputError: by that function: JAX can't spread an operation of it over devices.
    """
    if mesh is None:
        return partial(function, axis_name=None)
    in_specs = tuple(map(_spec, in_axes))
    out_specs = tuple(map(_spec, out_axes)) if isinstance(out_axes, tuple) else _spec(out_axes)
    named = partial(function, axis_name=BATCH)
    parts = jax.shard_map(named, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

    def on_parts(*arguments: Any) -> Any:
        try:
            return parts(*arguments)
        except ValueError as error:
            # JAX 0.12 so fails at the derivative of erf, of which jax.nn.gelu is made.
            failed = re.search(r"Primitive (\w+) requires varying manual axes", str(error))
            if failed is None:
                raise
            raise InputError(
                f"JAX {jax.__version__} can't spread the operation {failed[1]!r} of this network "
                "over several devices; use one device (leave out mesh), or for an exact GELU "
                "dlc_jax.nn.layers.gelu"
            ) from error

    return on_parts


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, BATCH)
