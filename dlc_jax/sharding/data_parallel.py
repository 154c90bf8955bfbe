"""Data parallelism as a transformation of a training step."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from dlc_jax.errors import InputError
from dlc_jax.ops.windows import varying_axes
from dlc_jax.sharding.mesh import BATCH, batch_spec

Tree = TypeVar("Tree")
Reduce = Callable[[Any], Any]


def identity(tree: Tree) -> Tree:
    """Returns its argument: on one device, sums already cover the whole batch."""
    return tree


def data_parallel(
    step: Callable[..., Any],
    mesh: Mesh | None,
    *,
    batch_axis: int = 0,
    out_batch_axis: int | None = None,
) -> Callable[..., Any]:
    """Returns a function that runs `step` on every device of a mesh, each on its part of a batch.

    It uses `jax.shard_map`, since with the compiler's automatic partitioning, convolutions on a
    CPU would gather the whole batch on every device.

    Args:
      step: A function `step(state, batch, key, reduce)`. `reduce` sums a pytree over the
        devices.
      mesh: The devices; if None, `step` runs on whole batches.
      batch_axis: The batch axis of the arrays in `batch`; arrays without it are replicated. Its
        size must be a multiple of the number of devices (see `dlc_jax.data.BatchPlan`).
      out_batch_axis: The batch axis of the results; None if they are the same on all devices, as
        they are when everything that depends on the batch has been reduced.

    Returns:
      A function of `(state, batch, key=None)`.

    Raises:
      InputError: When that function is called, if JAX can't run an operation on several devices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mean(state, batch, key, reduce):
      ...     total, count = reduce((batch.sum(), jnp.float32(len(batch))))
      ...     return total / count
      >>> data_parallel(mean, None)(None, jnp.arange(4.0))
      Array(1.5, dtype=float32)
    """
    if mesh is None:

        def on_one_device(state: Any, batch: Any, key: Any = None) -> Any:
            return step(state, batch, key, reduce=identity)

        return on_one_device

    out_specs = (
        PartitionSpec()
        if out_batch_axis is None
        else batch_spec(out_batch_axis, out_batch_axis + 1)
    )

    def on_every_device(state: Any, batch: Any, key: Any = None) -> Any:
        specs = jax.tree.map(lambda array: batch_spec(batch_axis, jnp.ndim(array)), batch)
        sharded = jax.shard_map(
            partial(step, reduce=sum_over_devices),
            mesh=mesh,
            in_specs=(PartitionSpec(), specs, PartitionSpec()),
            out_specs=out_specs,
        )
        try:
            return sharded(state, batch, key)
        except ValueError as error:
            # JAX 0.12 raises this for the derivative of erf, which jax.nn.gelu uses.
            failed = re.search(r"Primitive (\w+) requires varying manual axes", str(error))
            if failed is None:
                raise
            raise InputError(
                f"JAX {jax.__version__} can't run the operation {failed[1]!r} of this network on "
                "several devices; use one device (mesh=None), or dlc_jax.nn.gelu for an exact GELU"
            ) from error

    return on_every_device


def sum_over_devices(tree: Tree) -> Tree:
    """Sums a pytree over the devices, inside `data_parallel`."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    summed = dict[int, Any]()
    # Reduces one array per dtype: XLA:CPU takes three times as long for several.
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        own = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = lax.psum(jnp.concatenate([leaves[place].ravel() for place in own]), BATCH)
        start = 0
        for place in own:
            size = leaves[place].size
            summed[place] = flat[start : start + size].reshape(leaves[place].shape)
            start += size
    return jax.tree.unflatten(structure, [summed[place] for place in range(len(leaves))])


def varying_like(tree: Tree, batch: Any) -> Tree:
    """Marks arrays as different on each device, as the batch is, inside `data_parallel`.

    Each device then has its own gradients with respect to them, which can be reduced all at once.
    """
    axes = tuple(sorted(set().union(*map(varying_axes, jax.tree.leaves(batch)))))
    if not axes:
        return tree
    return jax.tree.map(lambda array: lax.pcast(array, axes, to="varying"), tree)
